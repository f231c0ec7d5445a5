"""The head of a request (RFC 9112, sections 2 to 5): bytes in, values out, in time proportional to its length."""

import re
from typing import NamedTuple

REQUEST_LINE = re.compile(rb"([!-~]+) ([^ ]+) HTTP/([0-9]\.[0-9]) *")
METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Z-]+")       # not in lower case: servers disagree on what that is
BAD_TARGET = re.compile(rb"[^!-~]|#")       # RFC 3986 2: other bytes are encoded, and fragments not sent
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)")
ONCE = {"HOST": "Host", "TRANSFER_ENCODING": "Transfer-Encoding"}   # of two, a proxy may use the other
TLS = "a TLS handshake"
LONGEST_BEGINNING = 16      # bytes that are enough to recognise each of these protocols
BEGINNINGS = (
    (b"\x16\x03", TLS),     # RFC 8446 5.1: a handshake record, and its version
    (b"SSH-", "the banner of SSH"),     # RFC 4253 4.2
    (b"PROXY ", "the PROXY protocol"),  # version 1, as HAProxy describes it
    (b"\x00\r\nQUIT\n", "the PROXY protocol"),     # version 2, without the empty lines it begins with
)


class Head(NamedTuple):
    """`fields` are named as in a WSGI environment, but without HTTP_; repeated fields are joined into one."""

    method: str
    target: str
    version: str
    fields: dict[str, str]


def parse(head: bytes) -> Head:
    """Parses a head, from the request line to the empty line at its end; raises ValueError, which says what is wrong.

    Fields with a _ are left out: in a WSGI environment they could not be told from those with a - (RFC 9110 5.1).
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    line = REQUEST_LINE.fullmatch(first)
    if not line or not METHOD.fullmatch(line[1]):
        raise ValueError("the request does not begin with a line like: GET /health HTTP/1.1")
    if BAD_TARGET.search(line[2]):
        raise ValueError("the request target has a control character, a # or a byte beyond ASCII in it")
    fields: dict[str, str] = {}
    for text in lines:
        field = FIELD.fullmatch(text)
        if not field:   # RFC 9112 5.1 and 5.2
            folded = text.startswith((b" ", b"\t"))
            raise ValueError("a header is folded over several lines" if folded else f"{text[:100]!r} is not a header")
        name, value = field[1].decode("latin-1"), field[2].decode("latin-1").strip(" \t")
        if "_" in name:
            continue
        name = name.upper().replace("-", "_")
        if name in fields:
            if name in ONCE:
                raise ValueError(f"{ONCE[name]} comes twice")
            value = f"{fields[name]}, {value}"      # RFC 9110 5.3
        fields[name] = value
    return Head(line[1].decode("latin-1"), line[2].decode("latin-1"), line[3].decode("latin-1"), fields)


def begins_with_request(head: bytes) -> bool:
    """Whether the first line is complete, and is a request line."""
    line, end, _ = head.partition(b"\r\n")
    return bool(end) and REQUEST_LINE.fullmatch(line) is not None


def looks_like(head: bytes) -> str | None:
    """What the first bytes of a connection are if they are not HTTP; None if they are, or may still be.

    The end of a head is not needed: a client of another protocol may never send one, and wait for the server.
    """
    for beginning, what in BEGINNINGS:
        if head.startswith(beginning):
            return what
        if beginning.startswith(head):
            return None
    line, end, _ = head.partition(b"\n")
    if head and not b"!" <= head[:1] <= b"~":       # no method begins with it (RFC 9110 5.6.2)
        return "binary data"
    if not end:
        return None
    if not line.endswith(b"\r"):    # RFC 9112 2.2 permits accepting it, and not every server does
        return "a line that ends with LF and not with CRLF"
    return None if REQUEST_LINE.fullmatch(line[:-1]) else "a line that is no request"
