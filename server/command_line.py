"""The commands of model_server.py other than serving: --version and token."""

import os
import sys

from server.access import new_token
from server.settings import VERSION

USAGE = """usage: python model_server.py                          starts the server; settings are environment variables
       python model_server.py --version                prints the version
       python model_server.py token NAME VERBS PREFIX  makes a token; VERBS: some of read,create,update,delete,
                                                       PREFIX: a project, project/app, or '*' for everything"""


def command(arguments: list[str]) -> int:
    """Runs the command in these arguments; returns the exit status."""
    try:
        if arguments != ["--version"]:
            return token_command(arguments)
        tell(f"ai-model-repository {VERSION}")
        return 0
    except OSError as error:
        sys.stderr.write(f"model_server: cannot write to stdout: {error.strerror}\n")
        return 1


def tell(line: str) -> None:
    """Writes a line to stdout; raises OSError if that is full or closed."""
    os.write(1, f"{line}\n".encode())


def token_command(arguments: list[str]) -> int:
    """Runs `token NAME VERBS PREFIX`: its line for the file of tokens goes to stdout, then the token to stderr."""
    if len(arguments) != 4 or arguments[0] != "token":
        sys.stderr.write(f"{USAGE}\n")
        return 2
    try:
        token, line = new_token(*arguments[1:])
    except ValueError as error:
        sys.stderr.write(f"{USAGE}\n{error}\n")
        return 2
    tell(line)      # first, because a token without its line is worth nothing
    sys.stderr.write(f"the token of {arguments[1]}, shown this once: {token}\n")
    return 0
