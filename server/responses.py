"""The way out: validators, conditional requests, ranges, and the answer that carries a model's bytes.

Functions of header values and sizes; the one that touches a file seeks it and hands it over.
"""

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any, BinaryIO
from urllib.parse import quote
from wsgiref.util import FileWrapper

from repository.model import Model
from repository.reading import OpenModel
from server.conditional import Header, byte_range, etag_of, last_modified, range_holds, read_status, tells_date
from server.errors import PreconditionFailed
from server.multipart import clean_filename

# Loaders take archives only under these types, KServe's for one. By the name and not by the bytes: a .pt is a zip, too.
ARCHIVES = {".zip": "application/zip", ".tar": "application/x-tar", ".tar.gz": "application/gzip",
            ".tgz": "application/gzip"}
SEND_BLOCK = 256 * 1024     # one read of a file where the server below cannot send files itself


@dataclass
class FileBody:
    """`length` bytes of an open file from `start` on; whoever sends it closes the file."""

    file: BinaryIO
    start: int
    length: int


@dataclass
class Response:
    status: int
    headers: list[tuple[str, str]]
    body: bytes | Iterable[bytes] | FileBody = b""


def json_response(status: int, document: dict[str, Any] | bytes, *headers: tuple[str, str]) -> Response:
    body = (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n"
    kind = ("Content-Type", "application/json")
    return Response(status, [kind, ("Cache-Control", "no-cache"), *headers], body)   # or proxies cache it


# ---- the answer


def content_disposition(filename: str) -> str:
    """attachment under this name; RFC 6266 4.3: `filename*` beside an ASCII one, which curl -OJ reads."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in filename)
    if plain == filename:
        return f'attachment; filename="{filename}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def type_of(model_name: str) -> str:
    name = model_name.lower()
    return next((kind for suffix, kind in ARCHIVES.items() if name.endswith(suffix)), "application/octet-stream")


def file_headers(model: Model) -> list[tuple[str, str]]:
    # cleaned again: metadata.json may have been put there by hand
    filename = clean_filename(model.details.filename or "") or model.key.name
    headers = [
        ("Content-Type", type_of(model.key.model_name)),
        ("Accept-Ranges", "bytes"),
        ("ETag", etag_of(model)),
        ("Cache-Control", "no-cache"),      # a name may get other bytes: ask, the ETag makes it cheap
        ("Content-Disposition", content_disposition(filename)),
    ]
    if model.sha256 and not model.corrupt:
        encoded = base64.b64encode(bytes.fromhex(model.sha256)).decode()
        headers += [
            ("X-Checksum-Sha256", model.sha256),
            ("Repr-Digest", f"sha-256=:{encoded}:"),    # RFC 9530 3
            ("Digest", f"SHA-256={encoded}"),           # RFC 3230, what aria2 verifies
        ]
    return headers


def file_response(method: str, header: Header, opened: OpenModel, dated: bool = True) -> Response:
    """The whole model, a range of it, or what the request's conditions make of it; closes what it does not send.

    Not `dated` is what one URL has of several models by turns: a date would be no validator of it.
    """
    model, file = opened.model, opened.file
    with ExitStack() as undo:
        undo.callback(file.close)
        etag, headers = etag_of(model), file_headers(model)
        modified = last_modified(model, time.time_ns()) if dated else None
        if modified and tells_date(header, modified):
            headers.append(("Last-Modified", format_datetime(modified, usegmt=True)))
        status = read_status(header, etag, modified)
        if status == 412:
            when = f", last modified {modified:%Y-%m-%d %H:%M:%S} UTC" if modified else ""
            raise PreconditionFailed(f"the model is {etag}{when}")
        if status == 304:
            return Response(304, [(name, value) for name, value in headers if not name.startswith("Content-")])
        wanted = None
        if method == "GET" and range_holds(header, etag, modified):     # RFC 9110 14.2: Range is for GET alone
            wanted = byte_range(header("Range") or "", model.size)
        start, stop = wanted or (0, model.size)
        if wanted:
            headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{model.size}"))
        headers.append(("Content-Length", str(stop - start)))
        undo.pop_all()
        return Response(206 if wanted else 200, headers, FileBody(file, start, stop - start))


# ---- sending


def send(response: Response, environ: dict[str, Any], start_response: Callable[..., Any], done: Callable[[int], None],
         ) -> Iterable[bytes]:
    """Starts the answer and gives what the server is to send; `done` hears in the end how many bytes went out."""
    status, body, headers = response.status, response.body, response.headers
    head = environ["REQUEST_METHOD"] == "HEAD"
    if isinstance(body, bytes) and status not in (204, 304):
        headers.append(("Content-Length", str(len(body))))
    elif head and not isinstance(body, bytes | FileBody):   # RFC 9110 9.3.2: counted, for to keep it takes memory
        headers.append(("Content-Length", str(sum(map(len, body)))))
    start_response(f"{status} {HTTPStatus(status).phrase}", headers)
    if isinstance(body, FileBody) and head:
        body.file.close()
    if isinstance(body, bytes) or head:
        rest = [body] if isinstance(body, bytes) and body and not head else []
        done(sum(map(len, rest)))
        return rest
    if isinstance(body, FileBody):
        wrapper = environ.get("wsgi.file_wrapper", FileWrapper)
        sending: Iterable[bytes] = wrapper(SentFile(body, done), SEND_BLOCK)
        return sending
    sent, stream = SentBlocks(body, done), environ.get("model_server.stream")
    return stream(sent) if stream else sent


class SentFile:
    """The bytes of a FileBody in the hands of the server: tells how many went out when it is closed."""

    def __init__(self, body: FileBody, done: Callable[[int], None]) -> None:
        self._file, self._done, self._start, self._left = body.file, done, body.start, body.length
        self._file.seek(body.start)
        self.fileno, self.seek, self.tell = self._file.fileno, self._file.seek, self._file.tell
        self.seekable = self._file.seekable

    def read(self, size: int) -> bytes:
        """For a server that does not send files by itself."""
        block = self._file.read(min(size, self._left))
        self._left -= len(block)
        return block

    def close(self) -> None:
        if not self._file.closed:
            sent = self._file.tell() - self._start
            self._file.close()
            self._done(sent)


class SentBlocks:
    """Blocks in the hands of the server, the same."""

    def __init__(self, blocks: Iterable[bytes], done: Callable[[int], None]) -> None:
        self._blocks, self._done, self._sent = iter(blocks), done, 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self._blocks)
        self._sent += len(block)
        return block

    def close(self) -> None:
        self._done(self._sent)
