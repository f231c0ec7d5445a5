"""The way in: request bodies are cut, written and hashed while they arrive, and refused as early as can be.

Upload takes blocks to a draft and a digest; the seam to waitress hands it every block as it is received.
"""

import hashlib
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from waitress import wasyncore
from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import ChunkedReceiver, FixedStreamReceiver
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest

from forms import BadUpload, TooLarge, UploadForm
from lanes import Intake, Lane
from models import StoreError
from storage import Draft, Storage

OWN_BACKLOG = 8 << 20           # bytes of one upload received and not yet written and hashed: some ms of a disk
HANDOVER = 2 << 20              # bytes given to the workers at once: less costs switches, more leaves the caches
ALL_BACKLOG = 12 << 20          # of all of them: four were no faster with 24, and took 11 MiB more memory at the peak
TURN = 2 << 20                  # bytes of a file sent to one client before the next one's: under a ms
BLOCK = 1 << 20                 # bytes of one recv: 256 KiB cost 4 times the polls, and 20 % more CPU
MAX_CHUNK_LINE = 1024           # a chunk size has at most 16 digits; the rest is extensions nobody uses
MAX_TRAILER = 16 * 1024
MAX_HEADERS = 64 * 1024         # of a request; the usual limit is 8 KiB
MAX_BEHIND = 1 << 20            # unsent bytes with which pipelined requests are still answered
LINGER = 5.0                    # seconds to read what a refused client still sends, so that it sees the answer
GRACE = 10.0                    # seconds for running requests after SIGTERM, docker stop waits 10
PROXY_HEADERS = "x-forwarded-for x-forwarded-proto x-forwarded-host"
BAD_TARGET = re.compile(r"[\x00-\x20\x7f#]")     # a raw TAB would vanish, a fragment be cut off (TRAPS 10)
FOLDED = re.compile(rb"\n[ \t]")
TRANSFER_ENCODING = re.compile(rb"^transfer-encoding[ \t]*:", re.IGNORECASE | re.MULTILINE)


class ProtocolError(Exception):
    """Not HTTP as we take it; `status` is the answer's."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Body:
    """A request's body while it arrives. append, __len__, getfile, close are waitress' words for what it does with it.

    This one keeps up to `limit` bytes in memory, without a limit none. A refusal is kept until somebody asks, so that
    the rest of the body can be read and every client sees the answer.
    """

    def __init__(self, refusal: Exception | None = None, limit: int | None = None) -> None:
        self.refusal, self.limit, self.received = refusal, limit, 0
        self.started = time.monotonic()
        self.data = b""
        self.wake: Callable[[], None] = lambda: None    # called when congested() turns false

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
        if self.limit is not None:
            self.data += data
            if len(self.data) > self.limit:
                raise TooLarge(f"the document is longer than {self.limit} bytes")

    def congested(self) -> bool:
        """Whether more bytes have arrived than the disk has taken; no more should be read then."""
        return False

    def __len__(self) -> int:
        return self.received

    def getfile(self) -> "Body":
        return self

    def close(self) -> None:
        """Gives up what was not published, without waiting for it."""

    def settle(self) -> None:
        """Waits until nothing of it is under way."""


class Upload(Body):
    """One model on its way in: a form's file part or a raw body, written to a draft and hashed while it arrives.

    `content_type` is the form's, None for a raw body; `limit` is the largest model in bytes.
    """

    def __init__(self, store: Storage, intake: Intake, content_type: str | None, limit: int | None) -> None:
        super().__init__(limit=limit)
        self._store, self._intake = store, intake
        self._form = None if content_type is None else UploadForm(content_type)
        self._closed = self._paused = False
        self._digest = hashlib.sha256()
        self._backlog = self._size = self._written = self._hashed = 0
        self._writes, self._hashes = (Lane(intake, work, self.refuse) for work in (self._write, self._hash))
        self._gathered: list[memoryview] = []
        self.draft: Draft | None = None
        with intake.changed:
            intake.in_flight += 1

    def congested(self) -> bool:
        self._paused = self._backlog > OWN_BACKLOG or (self._intake.backlog > ALL_BACKLOG and self._backlog > 0)
        return self._paused

    def _take(self, data: bytes) -> None:
        if self._form is None:
            self._keep(memoryview(data))
        else:
            for block in self._form.feed(data):
                self._keep(block)

    def _keep(self, block: memoryview) -> None:
        self._size += len(block)
        if self.limit is not None and self._size > self.limit:
            raise TooLarge(f"the model is larger than the {self.limit} bytes this server takes (MODEL_MAX_SIZE)")
        with self._intake.changed:
            self._backlog += len(block)
            self._intake.take(len(block))
        self._gathered.append(block)
        share = min(HANDOVER, ALL_BACKLOG // 2 // self._intake.in_flight)
        # the first at once: a disk that takes nothing shows now
        if self._written == 0 or sum(map(len, self._gathered)) >= share:
            self._hand_over()

    def _hand_over(self) -> None:
        blocks, self._gathered = self._gathered, []
        self._writes.put(*blocks)
        self._hashes.put(*blocks)

    def _write(self, batch: list[memoryview]) -> None:
        try:
            if self._closed or self.refusal:
                if self.draft:
                    self.draft.discard()
            elif batch:
                self.draft = self.draft or self._store.draft()
                self.draft.write(batch)
        finally:
            self._advance(written=sum(map(len, batch)))

    def _hash(self, batch: list[memoryview]) -> None:
        for block in batch if self.refusal is None else ():
            self._digest.update(block)
        self._advance(hashed=sum(map(len, batch)))

    def _advance(self, written: int = 0, hashed: int = 0) -> None:
        paused = self._paused
        with self._intake.changed:
            before = min(self._written, self._hashed)
            self._written += written
            self._hashed += hashed
            done = min(self._written, self._hashed) - before
            self._backlog -= done
            self._intake.backlog -= done
            self._intake.changed.notify_all()
        if paused and not self.congested():
            self.wake()

    def refuse(self, error: Exception) -> None:
        super().refuse(error)
        self._writes.put()      # which discards the draft: a full disk wants its space back now

    @property
    def fields(self) -> list[tuple[str, str]]:
        return self._form.fields if self._form else []

    @property
    def filename(self) -> str | None:
        return self._form.filename if self._form else None

    def finish(self) -> str:
        """The SHA-256 of the model in hex, all of it written; raises what was wrong with the body."""
        if self._form is not None and self.refusal is None:
            for block in self._form.finish():
                self._keep(block)
        self._hand_over()
        self.settle()
        if self.refusal:
            raise self.refusal
        self.draft = self.draft or self._store.draft()  # of an empty file nothing was written
        return self._digest.hexdigest()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            with self._intake.changed:
                self._intake.in_flight -= 1
            self._hand_over()   # the lane discards it: a worker may be writing to it just now

    def settle(self) -> None:
        self._writes.join()
        self._hashes.join()

    def wait_for_room(self) -> None:
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: not self.congested())


# ---- the seam to waitress: everything that knows its insides


class BoundedChunks(ChunkedReceiver):
    """waitress' reader of chunked bodies, which keeps and searches again a line without an end (TRAPS 9)."""

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        if len(self.control_line) > MAX_CHUNK_LINE or len(self.trailer) > MAX_TRAILER:
            self.error = BadRequest("a line of the chunked coding is too long")
        if self.chunk_remainder >= 1 << 63:
            self.error = BadRequest("no chunk is that large")
        return consumed


class StreamingParser(HTTPRequestParser):
    """Hands a request's body to what `channel.admit` makes of its head, block by block."""

    command, path, request_uri, query, fragment, url_scheme = "-", "/", "", "", "", "http"  # until they are known
    refused = completed = False
    body_rcv: Any = None

    def __init__(self, adj: Any, channel: "StreamingChannel") -> None:
        super().__init__(adj)
        self._channel = channel
        self._begun = time.monotonic()
        self.environ: dict[str, Any] = {}   # once it is known

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as error:     # a Content-Length of 5,000 digits
            raise ParsingError(f"the request's head cannot be read: {error}") from error
        # RFC 9112 6.1 and 6.3: most are how a second request is smuggled in (TRAPS 7)
        encodings = len(TRANSFER_ENCODING.findall(header_plus))     # waitress has taken the header away
        for wrong, detail in (
            (FOLDED.search(header_plus), "a header is folded over two lines"),   # RFC 9112 5.2
            (encodings > 1, "Transfer-Encoding comes twice"),
            (encodings and "CONTENT_LENGTH" in self.headers, "Transfer-Encoding excludes Content-Length"),
            ("TRANSFER_ENCODING" in self.headers, "Transfer-Encoding is not known to HTTP/1.0"),
            (self.version not in ("1.0", "1.1"), "this server speaks HTTP/1.0 and HTTP/1.1"),
            (BAD_TARGET.search(self.request_uri), "the request target has a control character or a # in it"),
        ):
            if wrong:
                raise ParsingError(detail)

    def received(self, data: bytes) -> int:
        begun = self.headers_finished
        consumed: int = super().received(data)
        if self.headers_finished and not begun:
            self._begin_body()
        return consumed

    def _begin_body(self) -> None:
        if self.completed or self.body_rcv is None:
            self.expect_continue = False    # or the connection waits for a body that never comes (TRAPS 8)
            return
        body = self._channel.application.admit(WSGITask(self._channel, self).get_environment())
        body.wake = self._channel.server.pull_trigger
        self.body_rcv = BoundedChunks(body) if self.chunked else FixedStreamReceiver(self.content_length, body)
        if body.refusal and (self.expect_continue or "X_FORWARDED_EXPECT" in self.headers):
            # RFC 9110 10.1.1: a final status, and the body is not asked for; nginx passes Expect on under this name
            self.expect_continue, self.completed, self.refused = False, True, True

    def overdue(self) -> bool:
        """Whether its head has come in drops for as long as a silent connection is kept."""
        return not self.headers_finished and time.monotonic() - self._begun > self.adj.channel_timeout

    def congested(self) -> bool:
        return self.headers_finished and self.body_rcv is not None and self.body_rcv.getfile().congested()


class FileSlice(NamedTuple):
    """Bytes to send that stay in their file until the kernel copies them."""

    descriptor: int
    offset: int
    length: int


class FileBuffer(ReadOnlyFileBasedBuffer):
    """wsgi.file_wrapper: waitress would read as much as the socket may ever take for each little that it takes."""

    def get(self, numbytes: int = -1, skip: bool = False) -> FileSlice:
        return FileSlice(self.file.fileno(), self.file.tell(), self.remain)


class StreamingTask(WSGITask):
    """Lets the application answer everything, faults below it included: those travel as the refusal of a body."""

    content_bytes_written = 0

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = self.request.environ  # made already where the network thread might have answered
        if not environ:
            environ |= super().get_environment()
            environ["wsgi.file_wrapper"] = FileBuffer
            if error := self.request.error:
                environ["wsgi.input"] = Body(ProtocolError(error.code, error.body))
        return environ

    def write(self, data: bytes) -> None:
        if self.content_bytes_written or self.content_length != len(data) or not self.has_body:
            super().write(data)
            return
        header = self.build_response_header()   # head and body of a short answer in one packet
        self.wrote_header = True
        self.content_bytes_written = len(data)
        self.channel.write_soon(header + data)

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
    lingers = close_when_flushed = will_close = False
    at_once = False     # its next request is for the network thread to answer
    turn = 0    # bytes of files it may send before the others have theirs
    linger_until = 0.0

    def __init__(self, application: Any, *args: Any, **kwargs: Any) -> None:
        self.application = application
        self.parser_class = partial(StreamingParser, channel=self)
        super().__init__(*args, **kwargs)

    def readable(self) -> bool:
        if self.linger_until:
            return True
        if self.request is None:
            return bool(super().readable())
        self.will_close = self.will_close or self.request.overdue()
        if self.request.congested():
            self.last_activity = time.time()    # it is our disk that is silent, not the client
            return False
        return bool(super().readable())

    def received(self, data: bytes) -> bool:
        taken = bool(super().received(data))
        while self.at_once:
            self.at_once = False
            self.service()
        return taken

    def wants_no_thread(self) -> bool:
        """Whether its one request is answered faster than a thread is woken; of many in a row others had to wait."""
        request, *more = self.requests
        if more or request.error or request.body_rcv:
            return False
        return bool(self.application.answers_at_once(StreamingTask(self, request).get_environment()))

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
            with suppress(OSError):     # it is gone, which the next read tells
                self.socket.shutdown(socket.SHUT_WR)
            return
        super().handle_write()

    def write_soon(self, data: bytes | FileBuffer) -> int:
        with self.outbuf_lock:
            if isinstance(data, bytes) and self.connected and not self.total_outbufs_len:
                with suppress(OSError):     # what is left runs into it again
                    data = data[self.send(data, do_close=False):]
                    self.last_activity = time.time()
            return int(super().write_soon(data))

    def _flush_some(self, do_close: bool = True) -> bool:
        self.turn = TURN
        return bool(super()._flush_some(do_close))

    def send(self, data: bytes | FileSlice, do_close: bool = True) -> int:
        if not isinstance(data, FileSlice):
            return int(super().send(data, do_close))
        try:
            sent = os.sendfile(self.socket.fileno(), data.descriptor, data.offset, min(data.length, self.turn))
        except BlockingIOError:
            return 0
        except ConnectionError:
            if do_close:
                self.handle_close()
            return 0
        if sent == 0 < self.turn:
            raise OSError("a file became shorter while it was sent")    # waitress closes the connection
        self.turn -= sent
        return sent

    def handle_close(self) -> None:
        if self.request is not None:
            self.request.close()    # nobody else closes a request that is half received
        super().handle_close()

    def busy(self) -> bool:
        return bool(self.request is not None or self.requests or self.total_outbufs_len)


class Dispatcher(ThreadedTaskDispatcher):
    """Gives requests to threads, but for those that take less time than to give them away and back."""

    network_thread = 0

    def add_task(self, task: StreamingChannel) -> None:
        if threading.get_ident() == self.network_thread and task.wants_no_thread():
            task.at_once = True
        else:
            super().add_task(task)


class Server:
    """waitress with our channel. run() returns after stop(), when the running requests are done or GRACE is over."""

    def __init__(self, application: Any, host: str, port: int, threads: int, connections: int, *, idle: int,
                 proxy: str | None = None, prefix: str = "") -> None:
        self._map: dict[int, Any] = {}
        self._stopping = False
        self._dispatcher = Dispatcher()
        self._dispatcher.set_thread_count(threads)
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)     # it warns of each request that waits
        create_server(
            application, map=self._map, _dispatcher=self._dispatcher, host=host, port=port, ident="ai-model-repository",
            connection_limit=connections, channel_timeout=idle, cleanup_interval=min(30, idle),
            trusted_proxy=proxy, trusted_proxy_headers=PROXY_HEADERS if proxy else (), url_prefix=prefix,
            asyncore_use_poll=True, recv_bytes=BLOCK, max_request_header_size=MAX_HEADERS,
            max_request_body_size=sys.maxsize,  # ours is checked where it can be answered
            outbuf_high_watermark=sys.maxsize,  # a list waits for a slow reader in a file, not in a thread
        )
        self._listeners = [entry for entry in self._map.values() if isinstance(entry, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = partial(StreamingChannel, application)
        self.addresses = [f"http://{x.effective_host}:{x.effective_port}" for x in self._listeners]

    def stop(self) -> None:
        """Asks run() to return; may be called from a signal handler."""
        self._stopping = True
        self._listeners[0].pull_trigger()

    def run(self) -> None:
        self._dispatcher.network_thread = threading.get_ident()
        while not self._stopping:
            wasyncore.loop(timeout=1, use_poll=True, map=self._map, count=1)
        for listener in self._listeners:
            wasyncore.dispatcher.close(listener)
        deadline = time.monotonic() + GRACE
        while self._close_channels(idle_only=True) and time.monotonic() < deadline:
            wasyncore.loop(timeout=0.1, use_poll=True, map=self._map, count=1)
        self._close_channels(idle_only=False)
        self._dispatcher.shutdown(timeout=1)

    def _close_channels(self, idle_only: bool) -> int:
        """Closes connections; says how many are left."""
        channels = [entry for entry in self._map.values() if isinstance(entry, StreamingChannel)]
        closing = [channel for channel in channels if not (idle_only and channel.busy())]
        for channel in closing:
            channel.handle_close()
        return len(channels) - len(closing)
