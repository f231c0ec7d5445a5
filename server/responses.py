"""Answers: JSON, the bytes of a model or a range of them, and how they are handed to the server below.

A body is bytes, part of an open file, or an iterable of both.
"""

import base64
import json
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from functools import partial
from http import HTTPStatus
from typing import Any, BinaryIO, Self
from urllib.parse import quote

from repository.model import Model
from repository.reading import OpenModel
from server.conditional import Header, byte_range, etag_of, last_modified, range_holds, read_status, tells_date
from server.errors import PreconditionFailed
from server.multipart import clean_filename

# Loaders take archives only under these types, KServe's for one. By the name and not by the bytes: a .pt is a zip, too.
ARCHIVES = {".zip": "application/zip", ".tar": "application/x-tar", ".tar.gz": "application/gzip",
            ".tgz": "application/gzip"}
NOT_QUOTED = re.compile(r'[^ -~]|["\\%]')     # characters that need an escape, which some clients do not undo
PHRASES = {status.value: status.phrase for status in HTTPStatus}
SEND_BLOCK = 256 * 1024     # one read of a file where the server below cannot send files itself


class FileSlice:
    """`length` bytes of an open file from `start` on, as an answer or as a piece of one. The sender has to close it.

    `done` is then called with the number of bytes sent. Any server can iterate over it. For ours it is also a buffer,
    which is sent without being read: len() is what is left, get() returns that, skip() counts what was sent.
    """

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self.file, self.start, self.length = file, start, length    # the last two are about what is left
        self.sent = 0
        self.done: Callable[[int], None] = lambda sent: None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[bytes]:
        self.file.seek(self.start)
        while block := self.file.read(min(SEND_BLOCK, self.length)):
            self.skip(len(block))
            yield block

    def get(self, at_most: int) -> Self:
        return self

    def skip(self, count: int, prune: bool = True) -> None:
        self.start, self.length, self.sent = self.start + count, self.length - count, self.sent + count

    def close(self) -> None:
        if not self.file.closed:
            self.file.close()
            self.done(self.sent)


Piece = bytes | FileSlice


class AnswerCutShort(Exception):
    """The rest of an answer cannot be sent; the message says why. The client has to notice that some is missing."""


@dataclass
class Response:
    """An answer. A body of many pieces is made while it is sent, each piece when the reader has taken most of the last.

    If a FileSlice is among the pieces, the headers need a Content-Length. Small files should be bytes instead: up to
    half a MiB waits for its reader, and each FileSlice in that keeps a descriptor open.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes | FileSlice | Iterable[Piece] = b""


def json_response(status: int, document: dict[str, Any] | list[Any] | bytes, *headers: tuple[str, str]) -> Response:
    body = (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n"
    kind = ("Content-Type", "application/json")
    return Response(status, [kind, ("Cache-Control", "no-cache"), *headers], body)   # otherwise proxies may cache it


def tagged_response(header: Header, document: bytes, etag: str, what: str, *headers: tuple[str, str]) -> Response:
    """A JSON document, or 304 if the client has it already. Raises PreconditionFailed, which calls it `what`."""
    status = read_status(header, etag, None)
    if status == 412:
        raise PreconditionFailed(f"{what} is {etag}")
    if status == 304:
        return Response(304, [("ETag", etag), ("Cache-Control", "no-cache"), *headers])
    return json_response(200, document, ("ETag", etag), *headers)


# ---- the answer


def content_disposition(filename: str) -> str:
    """An attachment of this name. RFC 6266 4.3: `filename*` follows an ASCII `filename`, which curl -OJ reads."""
    plain = NOT_QUOTED.sub("_", filename)
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


def file_response(method: str, header: Header, opened: OpenModel, *, dated: bool) -> Response:
    """The whole model, a range of it, or the answer that the request's conditions demand; closes the file unless sent.

    If the URL can stand for different models by turns, it is not `dated`: a date would not be a reliable validator.
    """
    model, file = opened.model, opened.file
    with ExitStack() as undo:
        undo.callback(file.close)
        modified = last_modified(model, time.time_ns()) if dated else None
        response = ranged_response(method, header, file_headers(model), etag_of(model), modified, model.size,
                                   lambda start, stop: FileSlice(file, start, stop - start))
        if isinstance(response.body, FileSlice):
            undo.pop_all()
        return response


def ranged_response(method: str, header: Header, headers: list[tuple[str, str]], etag: str, modified: datetime | None,
                    size: int, body: Callable[[int, int], FileSlice | Iterable[Piece]]) -> Response:
    """All `size` bytes, a range of them, or the answer that the request's conditions demand.

    `headers` are those of the whole; `body` returns the bytes from one position to another. Raises PreconditionFailed,
    RangeNotSatisfiable.
    """
    if modified and tells_date(header, modified):
        headers.append(("Last-Modified", format_datetime(modified, usegmt=True)))
    status = read_status(header, etag, modified)
    if status == 412:
        when = f", last modified {modified:%Y-%m-%d %H:%M:%S} UTC" if modified else ""
        raise PreconditionFailed(f"it is {etag}{when}")
    if status == 304:
        return Response(304, [(name, value) for name, value in headers if not name.startswith("Content-")])
    wanted = None
    if method == "GET" and range_holds(header, etag, modified):     # RFC 9110 14.2: Range is for GET alone
        wanted = byte_range(header("Range") or "", size)
    start, stop = wanted or (0, size)
    if wanted:
        headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{size}"))
    headers.append(("Content-Length", str(stop - start)))
    return Response(206 if wanted else 200, headers, body(start, stop))


# ---- sending


def send(response: Response, environ: dict[str, Any], start_response: Callable[..., Any], done: Callable[[int], None],
         ) -> Iterable[bytes]:
    """Starts the answer and returns what the server has to send; `done` is called in the end with the bytes sent."""
    status, body, headers = response.status, response.body, response.headers
    head = environ["REQUEST_METHOD"] == "HEAD"
    if isinstance(body, bytes) and status not in (204, 304):
        headers.append(("Content-Length", str(len(body))))
    elif head and not isinstance(body, bytes) and not any(name == "Content-Length" for name, _ in headers):
        headers.append(("Content-Length", str(sum(map(len, body)))))    # RFC 9110 9.3.2; keeping it would take memory
    start_response(f"{status} {PHRASES[status]}", headers)
    if isinstance(body, FileSlice) and not head:
        body.done = done
        return body
    if isinstance(body, bytes) or head:
        if isinstance(body, FileSlice):
            body.close()
        rest = [body] if isinstance(body, bytes) and body and not head else []
        done(sum(map(len, rest)))
        return rest
    return Sending(body, done)


class Sending:
    """A body of many pieces on its way. Any server can iterate over its bytes; ours takes `pieces`, and sends files.

    Counts what it hands over, and what comes back unsent because the reader has left.
    """

    def __init__(self, body: Iterable[Piece], done: Callable[[int], None]) -> None:
        self._done, self._handed, self._unsent = done, 0, 0
        self.pieces = self._counted(body)

    def _counted(self, body: Iterable[Piece]) -> Generator[Piece, None, None]:
        for piece in body:
            self._handed += len(piece)
            if isinstance(piece, FileSlice):
                piece.done = partial(self._closed, len(piece))
            yield piece

    def _closed(self, length: int, sent: int) -> None:
        self._unsent += length - sent

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                with closing(piece):
                    yield from piece

    def close(self) -> None:
        self.pieces.close()
        self._done(self._handed - self._unsent)
