"""The ways in which a model of some size comes to a server, as the bytes of its requests."""

import tarfile
from io import BytesIO

from support.common import sha256

AT = "/models/landing/app"
FORM = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\n%b\r\n--XX--\r\n'


def raw(number, content):
    return head(f"PUT {AT}/{number}/m", len(content)) + content


def form(number, content):
    body, query = FORM % content, f"project_id=landing&app_name=app&version={number}&model_name=m"
    return head(f"POST /models/upload?{query}", len(body), "Content-Type: multipart/form-data; boundary=XX") + body


def tar(number, content):
    with tarfile.open(fileobj=(file := BytesIO()), mode="w") as whole:
        for name in ("m", "folder/n"):
            (member := tarfile.TarInfo(name)).size = len(content)
            whole.addfile(member, BytesIO(content))
    return head(f"PUT {AT}/{number}", len(file.getvalue())) + file.getvalue()


def chunked(number, content):
    pieces = [content[at:at + 100_001] for at in range(0, len(content), 100_001)]
    return (f"PUT {AT}/{number}/m HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n")


def part(number, content):
    """The end of an upload, whose first 4,097 bytes are here already."""
    query = f"upload?sha256={sha256(content)}"
    first = head(f"PUT {AT}/{number}/m/{query}", 4097, "Upload-Offset: 0", "Upload-Complete: ?0") + content[:4097]
    return first + head(f"PUT {AT}/{number}/m/{query}", len(content) - 4097, "Upload-Offset: 4097") + content[4097:]


def head(target, length, *lines):
    return "\r\n".join([f"{target} HTTP/1.1", "Host: x", f"Content-Length: {length}", *lines, "", ""]).encode()


WAYS = [raw, form, tar, chunked, part]


def answered(wire):
    """Whether what was sent in one of these ways has been stored, by its last answer."""
    status = wire.response()[0]
    return (wire.response()[0] if status == 204 else status) == 201
