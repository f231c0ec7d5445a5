"""Tokens, the headers that send them, and their lines in the file of tokens."""

import base64

from support.common import sha256

ALL = "read,create,update,delete"
HASH = sha256(b"token")


def line(name, verbs, prefix):
    """A line of the file of tokens; the token of a name is `token-of-<name>`."""
    return f"{name}:{sha256(f'token-of-{name}'.encode())}:{verbs}:{prefix}\n"


def bearer(name):
    return {"Authorization": f"Bearer token-of-{name}"}


def basic(credentials):
    return "Basic " + base64.b64encode(credentials).decode()
