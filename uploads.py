"""The way in: request bodies are cut, written and hashed while they arrive, and refused as early as can be.

Three layers, each usable without the next: FormCutter (bytes in, events out), Upload (events to a draft and a digest),
and the seam to waitress, which hands every block to the Upload the moment it is received instead of spooling it.
"""

import base64
import binascii
import hashlib
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value
from functools import partial
from typing import Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import FixedStreamReceiver
from waitress.server import BaseWSGIServer, create_server
from waitress.task import WSGITask
from waitress.utilities import BadRequest

from storage import SHA256, Draft, Storage, StoreError

log = logging.getLogger("model_server.uploads")

MAX_BOUNDARY = 70               # RFC 2046 5.1.1; its short list of characters is kept by few clients
MAX_PADDING = 64                # white space after a boundary, which nobody sends
MAX_PREAMBLE = 16 * 1024        # nobody sends one either; beyond this the boundary is a wrong one
MAX_PART_HEADERS = 16 * 1024    # a browser sends under 1 KiB; beyond this somebody is filling our memory
MAX_PARTS = 256                 # 64 custom fields and ours, some of them twice
MAX_FIELD = 8 * 1024            # as the contract says
MAX_FILENAME = 255              # what a file system takes
FORM_OVERHEAD = MAX_FIELD       # how much longer than its file a form may be before its length alone refuses it
OWN_BACKLOG = 4 << 20           # bytes of one upload received and not yet written and hashed: some ms of a disk
ALL_BACKLOG = 24 << 20          # of all of them; with four uploads the first limit counts, with forty this one
BLOCK = 256 * 1024              # one recv: smaller costs system calls, larger costs cache
MAX_CHUNK_LINE = 1024           # a chunk size has at most 16 digits; the rest is extensions nobody uses
MAX_TRAILER = 16 * 1024
MAX_HEADERS = 64 * 1024         # of a request; the usual limit is 8 KiB
MAX_BEHIND = 1 << 20            # unsent bytes with which pipelined requests are still answered
LINGER = 5.0                    # seconds to read what a refused client still sends, so that it sees the answer
GRACE = 10.0                    # seconds for running requests after SIGTERM, docker stop waits 10
WORKERS = 4                     # two write while two hash; more gain nothing on one disk


class BadUpload(Exception):
    """What was sent cannot be taken: the request is wrong."""


class TooLarge(BadUpload):
    pass


class DigestMismatch(BadUpload):
    pass


class ProtocolError(Exception):
    """Not HTTP as we take it; `status` is the answer's."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


# ---- multipart/form-data


@dataclass(frozen=True)
class Part:
    """Where a part begins: its name, and the name of its file if it has one."""

    name: str
    filename: str | None


class PartEnd:
    """Where a part ends."""


class FormCutter:
    """Cuts multipart/form-data (RFC 7578, RFC 2046 5.1) while it arrives: bytes in, events out. Raises BadUpload.

    Part headers go through the standard library's e-mail parser, contents never do: they come out as they came in.
    A line that only begins like a boundary is content.
    """

    def __init__(self, content_type: str) -> None:
        self._delimiter = b"\r\n--" + boundary_of(content_type)
        self._rest = b"\r\n"    # the first boundary has no line before it
        self._state = "preamble"
        self._skipped = 0
        self._parts = 0

    def feed(self, data: bytes) -> Iterator[Part | memoryview | PartEnd]:
        data, self._rest = self._rest + data, b""
        position = 0
        while self._state != "epilogue":    # RFC 2046 5.1.1: which is to be ignored
            if self._state == "headers":
                end = self._end_of_headers(data, position)
                if end < 0:
                    self._rest = data[position:]
                    return
                yield parse_part(data[position + 2 : end])
                self._state, position = "content", end + 4
            stop, after, closing = self._find(data, position)
            if self._state == "preamble":
                self._skip(stop - position)
            elif stop > position:
                yield memoryview(data)[position:stop]
            if after < 0:
                self._rest = data[stop:]
                return
            if self._state == "content":
                yield PartEnd()
            self._state, position = "epilogue" if closing else "headers", after

    def finish(self) -> Iterator[PartEnd]:
        """What the end of the body tells; raises BadUpload when the closing boundary is missing."""
        if self._state == "content" and re.fullmatch(self._delimiter_line(rb"--[ \t]*\r?"), self._rest):
            self._state = "epilogue"    # RFC 2046 5.1.1: the CRLF after the closing boundary may be missing
            yield PartEnd()
        if self._state != "epilogue":
            raise BadUpload("the form ends without its closing boundary: the upload was cut short, send it again")

    def _delimiter_line(self, end: bytes) -> bytes:
        return re.escape(self._delimiter) + end

    def _find(self, data: bytes, position: int) -> tuple[int, int, bool]:
        """Where content stops, where the CRLF after the boundary is (-1: not here yet), whether it closes the form."""
        at = data.find(self._delimiter, position)
        while at >= 0:
            behind = at + len(self._delimiter)
            if end := LINE_END.match(data, behind):
                return at, end.end() - 2, bool(end[1])
            if len(data) - behind <= MAX_PADDING + 3 and LINE_BEGUN.fullmatch(data, behind):
                return at, -1, False
            at = data.find(self._delimiter, at + 2)
        at = data.rfind(b"\r", max(position, len(data) - len(self._delimiter) + 1))
        return (at if at >= 0 and self._delimiter.startswith(data[at:]) else len(data)), -1, False

    def _end_of_headers(self, data: bytes, position: int) -> int:
        # position is at the CRLF that ends the boundary's line, so that no headers at all end in CRLF CRLF too
        end = data.find(b"\r\n\r\n", position)
        if (end if end >= 0 else len(data)) - position > MAX_PART_HEADERS:
            raise BadUpload(f"the headers of a part are longer than {MAX_PART_HEADERS} bytes")
        self._parts += end >= 0
        if self._parts > MAX_PARTS:
            raise BadUpload(f"the form has more than {MAX_PARTS} parts")
        return end

    def _skip(self, length: int) -> None:
        self._skipped += length
        if self._skipped > MAX_PREAMBLE:
            raise BadUpload("no part begins where the form should: the boundary of the Content-Type is not in the body")


LINE_END = re.compile(rb"(--)?[ \t]{0,%d}\r\n" % MAX_PADDING)
LINE_BEGUN = re.compile(rb"-|(--)?[ \t]{0,%d}\r?" % MAX_PADDING)


def parse_headers(text: str) -> Message:
    """Header lines, by the standard library's e-mail parser; raises BadUpload for what that chokes on."""
    try:
        return HeaderParser().parsestr(text)
    except PARSER_FAULTS as error:
        raise BadUpload(f"headers that cannot be read: {error}") from error


# what the e-mail package raises on hostile headers, in parsing and in every later question
PARSER_FAULTS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, RecursionError)


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart/form-data Content-Type; raises BadUpload."""
    headers = parse_headers(f"Content-Type: {content_type}")
    try:
        boundary = headers.get_boundary() if headers.get_content_type() == "multipart/form-data" else None
        encoded = (boundary or "").encode("ascii")
    except PARSER_FAULTS as error:
        raise BadUpload(f"the Content-Type cannot be read: {error}") from error
    if not re.fullmatch(rb"[ -~]{0,%d}[!-~]" % (MAX_BOUNDARY - 1), encoded):
        raise BadUpload("send the form as multipart/form-data with a boundary, like curl -F 'file=@model.pt' does")
    return encoded


def parse_part(block: bytes) -> Part:
    """The headers of one part, without their last CRLF; raises BadUpload."""
    if re.search(rb"\r(?!\n)|(?<!\r)\n|\0", block):
        raise BadUpload("a part has a bare CR, LF or NUL in its headers")
    try:
        text = block.decode()
    except UnicodeDecodeError:
        text = block.decode("latin-1")
    headers = parse_headers(text)
    try:
        kind = headers.get_content_disposition()
        name = collapse_rfc2231_value(headers.get_param("name", "", "content-disposition"))
        filename = headers.get_filename()
        encoding = str(headers.get("Content-Transfer-Encoding", "binary")).strip().lower()
    except PARSER_FAULTS as error:
        raise BadUpload(f"the headers of a part cannot be read: {error}") from error
    if kind != "form-data" or not name:
        raise BadUpload('a part lacks its Content-Disposition: form-data; name="…"')
    if encoding not in ("binary", "8bit", "7bit"):     # RFC 7578 4.7: not to be used; storing it encoded would be worse
        raise BadUpload(f"a part comes with Content-Transfer-Encoding {encoding!r}: send the bytes as they are")
    return Part(name.replace("%22", '"'), None if filename is None else clean_filename(filename))


def clean_filename(filename: str) -> str:
    """The last part of the path a browser may send; curl and browsers write a quote as %22 (TRAPS 27)."""
    name = re.split(r"[/\\]", filename.replace("%22", '"'))[-1]
    return "".join(c for c in name if c.isprintable())[:MAX_FILENAME]


# ---- digests


def expected_sha256(header: Callable[[str], str | None], fields: dict[str, str]) -> str | None:
    """The digest a client vouches for, in hex, from its headers and the field sha256; raises BadUpload."""
    claims = {claim.strip().lower() for claim in (header("X-Checksum-Sha256"), fields.get("sha256")) if claim}
    for name in ("Repr-Digest", "Content-Digest"):     # RFC 9530 2 and 3; other algorithms may be ignored
        for encoded in re.findall(r"(?:^|,)\s*sha-256=([^,;\s]*)", header(name) or ""):
            try:
                claims.add(base64.b64decode(encoded[1:-1], validate=True).hex() if encoded[:1] == ":" else encoded)
            except binascii.Error:
                claims.add(encoded)
    for claim in claims:
        if not SHA256.fullmatch(claim):
            raise BadUpload(f"{claim[:100]!r} is not a SHA-256: 64 hex digits, or sha-256=:<base64>: in Repr-Digest")
    if len(claims) > 1:
        raise BadUpload(f"the request claims different digests: {', '.join(sorted(claims))}")
    return claims.pop() if claims else None


# ---- bodies


class Body:
    """A request's body while it arrives; this one is thrown away. append, __len__, getfile, close are waitress' words.

    A refusal is kept until somebody asks, so that the rest of the body can be read and every client sees the answer.
    """

    congested = False

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal = refusal
        self.received = 0
        self.started = time.monotonic()

    def append(self, data: bytes) -> None:
        self.received += len(data)
        if self.refusal is None:
            try:
                self._take(data)
            except (BadUpload, StoreError) as error:
                self.refuse(error)

    def refuse(self, error: Exception) -> None:
        self.refusal = self.refusal or error

    def _take(self, data: bytes) -> None:
        pass

    def __len__(self) -> int:
        return self.received

    def getfile(self) -> "Body":
        return self

    def close(self) -> None:
        """Gives up what was not published, without waiting for it."""

    def settle(self) -> None:
        """Waits until nothing of it is under way."""


class Document(Body):
    """A small body, kept in memory."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self.data = b""

    def _take(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > self._limit:
            raise TooLarge(f"the document is longer than {self._limit} bytes")


class Intake:
    """What all uploads of one server share: the workers, and the count of bytes that wait for them."""

    def __init__(self) -> None:
        self.workers = ThreadPoolExecutor(WORKERS, "intake")
        self.changed = threading.Condition()
        self.backlog = 0


class Lane:
    """Does its work in batches, in order, on shared workers: a thread each would be two for each slow upload."""

    def __init__(self, intake: Intake, work: Callable[[list[memoryview]], None], failed: Callable[[Exception], None]):
        self._intake, self._work, self._failed = intake, work, failed
        self._waiting: list[memoryview] = []
        self._busy = False

    def put(self, *blocks: memoryview) -> None:
        with self._intake.changed:
            self._waiting += blocks
            if self._busy:
                return
            self._busy = True
        self._intake.workers.submit(self._run)

    def _run(self) -> None:
        with self._intake.changed:
            batch, self._waiting = self._waiting, []
        try:
            self._work(batch)
        except Exception as error:      # kept, and raised where the upload is finished
            self._failed(error)
        with self._intake.changed:
            self._busy = again = bool(self._waiting)
            self._intake.changed.notify_all()
        if again:   # at the end of the queue: one fast upload must not starve the others
            self._intake.workers.submit(self._run)

    def join(self) -> None:
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: not self._busy)


class Upload(Body):
    """One model on its way in: a form's file part or a raw body, written to a draft and hashed while it arrives.

    `limit` is the largest model in bytes. Close it when the answer is made, published or not.
    """

    def __init__(self, store: Storage, intake: Intake, content_type: str | None, limit: int | None) -> None:
        super().__init__()
        self._store, self._intake, self._limit = store, intake, limit
        self._form = None if content_type is None else FormCutter(content_type)
        self._part: Part | None = None
        self._text = b""
        self._backlog = 0
        self._closed = False
        self._digest = hashlib.sha256()
        self._writes = Lane(intake, self._write, self.refuse)
        self._hashes = Lane(intake, self._hash, self.refuse)
        self.draft: Draft | None = None
        self.wake: Callable[[], None] = lambda: None    # called when congested turns false
        self.fields: list[tuple[str, str]] = []
        self.filename: str | None = None
        self.size = 0

    @property
    def congested(self) -> bool:    # type: ignore[override]
        return self._backlog > OWN_BACKLOG or (self._intake.backlog > ALL_BACKLOG and self._backlog > 0)

    def wait_for_room(self) -> None:
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: not self.congested)

    def _take(self, data: bytes) -> None:
        if self._form is None:
            self._keep(memoryview(data))
        else:
            for event in self._form.feed(data):
                self._handle(event)

    def _handle(self, event: Part | memoryview | PartEnd) -> None:
        if isinstance(event, Part):
            self._begin(event)
        elif isinstance(event, PartEnd):
            if self._part and self._part.name != "file":
                self._end_field(self._part.name)
        elif self._part and self._part.name == "file":
            self._keep(event)
        else:
            self._text += event
            if len(self._text) > MAX_FIELD:
                raise BadUpload(f"field {self._part and self._part.name!r} is longer than {MAX_FIELD} bytes; "
                                "the model itself comes in the part named 'file'")

    def _begin(self, part: Part) -> None:
        if part.name == "file":
            if self._file_seen:
                raise BadUpload("the form has two parts named 'file': one upload is one model")
            self._file_seen, self.filename = True, part.filename or None
        self._part, self._text = part, b""

    _file_seen = False

    def _end_field(self, name: str) -> None:
        try:
            self.fields.append((name, self._text.decode()))
        except UnicodeDecodeError:
            raise BadUpload(f"field {name!r} is not UTF-8") from None

    def _keep(self, block: memoryview) -> None:
        self.size += len(block)
        if self._limit is not None and self.size > self._limit:
            raise TooLarge(f"the model is larger than the {self._limit} bytes this server takes (MODEL_MAX_SIZE)")
        with self._intake.changed:
            self._backlog += len(block)
            self._intake.backlog += len(block)
        self._writes.put(block)

    def _write(self, batch: list[memoryview]) -> None:
        if self._closed or self.refusal:
            if self.draft:
                self.draft.discard()
            self._release(batch)
            return
        try:
            self.draft = self.draft or self._store.draft()
            self.draft.write(batch)
        except Exception:
            self._release(batch)
            raise
        self._hashes.put(*batch)

    def _hash(self, batch: list[memoryview]) -> None:
        for block in batch:
            self._digest.update(block)
        self._release(batch)

    def _release(self, batch: list[memoryview]) -> None:
        was_congested, length = self.congested, sum(map(len, batch))
        with self._intake.changed:
            self._backlog -= length
            self._intake.backlog -= length
            self._intake.changed.notify_all()
        if was_congested and not self.congested:
            self.wake()

    def refuse(self, error: Exception) -> None:
        super().refuse(error)
        self._writes.put()      # which discards the draft: a full disk wants its space back now

    def finish(self) -> str:
        """The SHA-256 of the model in hex, all of it written; raises what was wrong with the body."""
        if self._form is not None and self.refusal is None:
            for event in self._form.finish():
                self._handle(event)
            if not self._file_seen:
                raise BadUpload("the form has no part named 'file': send the model with -F 'file=@model.pt'")
        self._writes.join()
        self._hashes.join()
        if self.refusal:
            raise self.refusal
        self.draft = self.draft or self._store.draft()  # of an empty file nothing was written
        return self._digest.hexdigest()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._writes.put()  # the lane discards it: a worker may be writing to it just now

    def settle(self) -> None:
        self._writes.join()
        self._hashes.join()


def read_body(environ: dict[str, Any], body: Body) -> None:
    """Fills a body from wsgi.input, under a server that is not ours; a body cut short is refused."""
    stream = environ["wsgi.input"]
    announced = environ.get("CONTENT_LENGTH") or ""
    left = sys.maxsize if not announced and environ.get("wsgi.input_terminated") else int(announced or 0)
    while left > 0 and (data := stream.read(min(left, BLOCK))):
        left -= len(data)
        body.append(data)
        if isinstance(body, Upload):
            body.wait_for_room()
    if announced and left > 0:
        body.refuse(BadUpload(f"the body ends {left} bytes before its Content-Length: send it again"))


# ---- the seam to waitress: everything that knows its insides


class ChunkedBody:
    """Takes a chunked body apart (RFC 9112 7.1), strictly and in bounded memory; a receiver in waitress' words."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._line = b""        # of a control line or trailer, what arrived of it
        self._left = 0          # bytes of this chunk to come
        self._state = "size"
        self._trailer = 0
        self.completed = False
        self.error: BadRequest | None = None

    def received(self, data: bytes) -> int:
        position = 0
        while position < len(data) and not self.completed and not self.error:
            if self._state == "data":
                block = data[position : position + self._left]
                self._body.append(block)
                self._left -= len(block)
                position += len(block)
                self._state = "data" if self._left else "end"
                continue
            end = data.find(b"\n", position) + 1 or len(data)
            self._line += data[position:end][: MAX_CHUNK_LINE + 1]
            position = end
            if len(self._line) > MAX_CHUNK_LINE:
                self.error = BadRequest("a line of the chunked coding is too long")
            elif self._line.endswith(b"\n"):
                self._control(self._line)
                self._line = b""
        return position

    def _control(self, line: bytes) -> None:
        if self._state == "size" and (size := CHUNK_SIZE.fullmatch(line)):
            self._left = int(size[1], 16)
            self._state = "data" if self._left else "trailer"
        elif self._state == "end" and line == b"\r\n":
            self._state = "size"
        elif self._state == "trailer" and line.endswith(b"\r\n") and self._trailer + len(line) <= MAX_TRAILER:
            self._trailer += len(line)
            self.completed = line == b"\r\n"      # RFC 9110 6.5.1: trailer fields may be ignored
        else:
            self.error = BadRequest("the chunked coding is broken")

    def __len__(self) -> int:
        return len(self._body)

    def getfile(self) -> Body:
        return self._body

    def getbuf(self) -> Body:
        return self._body


CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n\0]*)?\r\n")
BAD_TARGET = re.compile(r"[\x00-\x20\x7f#]")     # a raw TAB would vanish, a fragment be cut off (TRAPS 10)
TRANSFER_ENCODING = re.compile(rb"^transfer-encoding[ \t]*:", re.IGNORECASE | re.MULTILINE)


class StreamingParser(HTTPRequestParser):
    """Hands a request's body to what `channel.admit` makes of its head, block by block."""

    command, path, request_uri, query, fragment, url_scheme = "-", "/", "", "", "", "http"  # until they are known
    refused = False

    def __init__(self, adj: Any, channel: "StreamingChannel") -> None:
        super().__init__(adj)
        self._channel = channel

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as error:     # a Content-Length of 5,000 digits
            raise ParsingError(f"the request's head cannot be read: {error}") from error
        # RFC 9112 6.1 and 6.3: all of these are how a second request is smuggled in, and in no release refused yet
        if len(TRANSFER_ENCODING.findall(header_plus)) > 1:
            raise ParsingError("Transfer-Encoding comes twice")
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise ParsingError("Transfer-Encoding and Content-Length exclude each other")
        if "TRANSFER_ENCODING" in self.headers:
            raise ParsingError("Transfer-Encoding is not known to HTTP/1.0")
        if self.version not in ("1.0", "1.1"):
            raise ParsingError("this server speaks HTTP/1.0 and HTTP/1.1")
        if BAD_TARGET.search(self.request_uri):
            raise ParsingError("the request target has a control character or a fragment: percent-encode it")

    def received(self, data: bytes) -> int:
        begun = self.headers_finished
        consumed: int = super().received(data)
        if self.headers_finished and not begun:
            self._begin_body()
        return consumed

    def _begin_body(self) -> None:
        if self.completed or self.body_rcv is None:
            self.expect_continue = False    # or the connection waits for a body that never comes
            return
        body = self._channel.admit(WSGITask(self._channel, self).get_environment())
        if isinstance(body, Upload):
            body.wake = self._channel.server.pull_trigger
        self.body_rcv = ChunkedBody(body) if self.chunked else FixedStreamReceiver(self.content_length, body)
        if body.refusal and self.expect_continue:
            # RFC 9110 10.1.1: a final status instead of 100, and the body is not asked for
            self.expect_continue, self.completed, self.refused = False, True, True

    @property
    def congested(self) -> bool:
        return self.headers_finished and self.body_rcv is not None and self.body_rcv.getfile().congested


class StreamingTask(WSGITask):
    """Lets the application answer everything, faults below it included: a refusal travels as a body."""

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        if error := self.request.error:
            environ["wsgi.input"] = Body(ProtocolError(error.code, error.body))
        return environ

    def execute(self) -> None:
        if self.request.error or self.request.refused:
            self.channel.lingers = True
            self.set_close_on_finish()
        super().execute()
        if len(self.channel.requests) > 1 and self.channel.total_outbufs_len > MAX_BEHIND:
            # each further pipelined request could hold another open file; RFC 9112 9.3.2: the client asks again
            self.close_on_finish = self.channel.lingers = True


class StreamingChannel(HTTPChannel):
    """One connection: reads while the disk keeps up, cleans up after a client that leaves, lingers after a refusal."""

    task_class = error_task_class = StreamingTask
    lingers = False
    linger_until = 0.0

    def __init__(self, admit: Callable[[dict[str, Any]], Body], *args: Any, **kwargs: Any) -> None:
        self.admit = admit
        self.parser_class = partial(StreamingParser, channel=self)
        super().__init__(*args, **kwargs)

    def readable(self) -> bool:
        if self.linger_until:
            return True
        return super().readable() and not (self.request is not None and self.request.congested)

    def handle_read(self) -> None:
        if not self.linger_until:
            super().handle_read()
        elif self.recv(BLOCK) and time.monotonic() > self.linger_until:
            self.handle_close()

    def handle_write(self) -> None:
        # RFC 9112 9.6: closing with unread bytes would reset the connection and take the answer with it
        if self.lingers and self.close_when_flushed and not self.total_outbufs_len and not self.linger_until:
            self.close_when_flushed = False
            self.linger_until = time.monotonic() + LINGER
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.handle_close()
            return
        super().handle_write()

    def handle_close(self) -> None:
        if self.request is not None:
            self.request.close()    # nobody else closes a request that is half received
        super().handle_close()

    @property
    def busy(self) -> bool:
        return bool(self.request is not None or self.requests or self.total_outbufs_len)


class Server:
    """waitress with our channel. run() returns after stop(), when the running requests are done or GRACE is over."""

    def __init__(self, application: Any, host: str, port: int, threads: int, connections: int) -> None:
        self._map: dict[int, Any] = {}
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)     # it warns of each request that waits
        self._waitress = create_server(
            application, map=self._map, host=host, port=port, threads=threads, ident="ai-model-repository",
            connection_limit=connections, asyncore_use_poll=True, recv_bytes=BLOCK, max_request_header_size=MAX_HEADERS,
            max_request_body_size=sys.maxsize,          # ours is checked where it can be answered
            outbuf_high_watermark=sys.maxsize,          # a list waits for a slow reader in a file, not in a thread
        )
        self._listeners = [entry for entry in self._map.values() if isinstance(entry, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = partial(StreamingChannel, application.admit)
        self._stopping = False

    @property
    def addresses(self) -> list[str]:
        return [f"http://{x.effective_host}:{x.effective_port}" for x in self._listeners]

    def stop(self) -> None:
        """Asks run() to return; may be called from a signal handler."""
        self._stopping = True
        self._listeners[0].pull_trigger()

    def run(self) -> None:
        while not self._stopping:
            wasyncore.loop(timeout=1, use_poll=True, map=self._map, count=1)
        for listener in self._listeners:
            wasyncore.dispatcher.close(listener)
        deadline = time.monotonic() + GRACE
        while self._channels(busy=True) and time.monotonic() < deadline:
            for channel in self._channels(busy=False):
                channel.handle_close()
            wasyncore.loop(timeout=0.1, use_poll=True, map=self._map, count=1)
        for channel in self._channels(busy=True) + self._channels(busy=False):
            channel.handle_close()
        self._listeners[0].task_dispatcher.shutdown(timeout=1)

    def _channels(self, busy: bool) -> list[StreamingChannel]:
        return [x for x in self._map.values() if isinstance(x, StreamingChannel) and x.busy == busy]
