"""The head of a request (RFC 9112 2 to 5) before it is parsed: bytes in, bytes out. No files, no sockets."""

import re

REQUEST_LINE = re.compile(rb"[!-~]+ [^ ]+ HTTP/[0-9]\.[0-9] *")
FOLDED = re.compile(rb"\n[ \t]")
HOST = re.compile(rb"^host:", re.IGNORECASE | re.MULTILINE)
TRANSFER_ENCODING = re.compile(rb"^transfer-encoding[ \t]*:", re.IGNORECASE | re.MULTILINE)
BAD_TARGET = re.compile(r"[\x00-\x20\x7f#]")    # a raw TAB would vanish, a fragment be cut off


def plain_head(head: bytes) -> bytes:
    """The same head without what parsing may take minutes for; raises ValueError with what is wrong.

    waitress' expressions for the request line and for a field are quadratic in what no client sends: a target without a
    version behind it, and white space around a value.
    """
    if FOLDED.search(head):     # RFC 9112 5.2
        raise ValueError("a header is folded over two lines")
    line, _, fields = head.partition(b"\r\n")
    if not REQUEST_LINE.fullmatch(line):
        raise ValueError("the request does not begin with a line like: GET /health HTTP/1.1")
    parted = (field.partition(b":") for field in fields.split(b"\r\n"))
    return b"\r\n".join([line, *(name + colon + value.strip(b" \t") for name, colon, value in parted)])
