"""The commands of model_server.py other than serving: --version and token."""

import sys

from server.access import new_token
from server.settings import VERSION

USAGE = """usage: python model_server.py                          starts the server; settings are environment variables
       python model_server.py --version                prints the version
       python model_server.py token NAME VERBS PREFIX  makes a token; VERBS: some of read,create,update,delete,
                                                       PREFIX: a project, project/app, or '*' for everything"""


def command(arguments: list[str]) -> int:
    """Runs the command in these arguments; returns the exit status."""
    if arguments == ["--version"]:
        sys.stdout.write(f"ai-model-repository {VERSION}\n")
        return 0
    return token_command(arguments)


def token_command(arguments: list[str]) -> int:
    """Runs `token NAME VERBS PREFIX`: prints the token to stderr, and its line for the file of tokens to stdout."""
    if len(arguments) != 4 or arguments[0] != "token":
        sys.stderr.write(f"{USAGE}\n")
        return 2
    try:
        token, line = new_token(*arguments[1:])
    except ValueError as error:
        sys.stderr.write(f"{USAGE}\n{error}\n")
        return 2
    sys.stderr.write(f"the token of {arguments[1]}, shown this once: {token}\n")
    sys.stdout.write(f"{line}\n")
    return 0
