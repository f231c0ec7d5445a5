"""Checks of a request's head before waitress parses it (RFC 9112, sections 2 to 5): bytes in, bytes out."""

import re

REQUEST_LINE = re.compile(rb"[!-~]+ [^ ]+ HTTP/[0-9]\.[0-9] *")
FOLDED = re.compile(rb"\n[ \t]")
HOST = re.compile(rb"^host:", re.IGNORECASE | re.MULTILINE)
TRANSFER_ENCODING = re.compile(rb"^transfer-encoding[ \t]*:", re.IGNORECASE | re.MULTILINE)
BAD_TARGET = re.compile(r"[\x00-\x20\x7f#]")    # waitress drops a raw TAB, and cuts off a fragment
TLS = "a TLS handshake"
LONGEST_BEGINNING = 16      # bytes that tell which protocol it is, where one of these begins so
BEGINNINGS = (
    (b"\x16\x03", TLS),     # RFC 8446 5.1: a handshake record, and its version
    (b"SSH-", "the banner of SSH"),     # RFC 4253 4.2
    (b"PROXY ", "the PROXY protocol"),  # version 1, as HAProxy describes it
    (b"\x00\r\nQUIT\n", "the PROXY protocol"),     # version 2, without the empty lines it begins with
)


def plain_head(head: bytes) -> bytes:
    """The head without white space around its values; raises ValueError, with what is wrong with it.

    The regular expressions of waitress take quadratic time, minutes for a long head, on two things that no client
    sends: a target that is not followed by a version, and much white space around a value.
    """
    if FOLDED.search(head):     # RFC 9112 5.2
        raise ValueError("a header is folded over several lines")
    line, _, fields = head.partition(b"\r\n")
    if not REQUEST_LINE.fullmatch(line):
        raise ValueError("the request does not begin with a line like: GET /health HTTP/1.1")
    parted = (field.partition(b":") for field in fields.split(b"\r\n"))
    return b"\r\n".join([line, *(name + colon + value.strip(b" \t") for name, colon, value in parted)])


def looks_like(head: bytes) -> str | None:
    """What the first bytes of a connection are if they are no HTTP; None where they are, or may become that.

    It needs no end of a head: another protocol may never send one, and its client waits for the server.
    """
    for beginning, what in BEGINNINGS:
        if head.startswith(beginning):
            return what
        if beginning.startswith(head):
            return None
    line, end, _ = head.partition(b"\n")
    if head and not b"!" <= head[:1] <= b"~":       # no method begins so (RFC 9110 5.6.2)
        return "binary data"
    if not end:
        return None
    if not line.endswith(b"\r"):    # RFC 9112 2.2 permits taking it for a line; what others take for one differs
        return "a line that ends with LF and not with CRLF"
    return None if REQUEST_LINE.fullmatch(line[:-1]) else "a line that is no request"
