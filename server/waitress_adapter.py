"""The seam to waitress: all that knows its insides.

It hands each block of a body on as it is received, and sends files without reading them.
"""

import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from waitress import wasyncore
from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import FixedStreamReceiver
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest, RequestHeaderFieldsTooLarge

from server.chunked import BadChunk, ChunkedDecoder
from server.heads import BAD_TARGET, HOST, TRANSFER_ENCODING, plain_head
from server.turns import FIELD, Memory, Turns
from server.uploads import BLOCK, CHUNKED_STEP, REQUEST, Body, ProtocolError

TURN = 2 << 20                  # bytes of a file sent to one client before the next one's: under a ms
MAX_HEADERS = 64 * 1024         # of a request; the usual limit is 8 KiB
MAX_FIELDS = 200                # of a head; browsers and proxies send some 20
HEAD_BLOCK = 16 << 10           # bytes of one recv before a request is known: what is behind it waits in memory
TURN_SECONDS = 0.005            # for the body of one client, before the next one's
AHEAD = 512 * 1024              # bytes of a list made and not yet taken by its reader, when making it pauses
CLOSE_BEHIND = 128 * 1024       # unsent bytes with which it goes on: a thread is woken for each 400 KB
LINGER = 5.0                    # seconds to read what a refused client still sends, so that it sees the answer
GRACE = 10.0                    # seconds for running requests after SIGTERM, docker stop waits 10
STREAM = "model_server.stream"  # in an environment: takes blocks over, see downloads.send
PROXY_HEADERS = "x-forwarded-for x-forwarded-proto x-forwarded-host"


class Overloaded(BadRequest):
    code, reason = 429, "Too Many Requests"     # not 503, for which a proxy would leave the server alone


class ChunkedReceiver:
    """A chunked body on its way, with the words that waitress has for a receiver."""

    completed = False
    error: BadRequest | None = None

    def __init__(self, body: Body) -> None:
        self._body, self._decoder = body, ChunkedDecoder()

    def received(self, data: bytes) -> int:
        try:
            pieces, taken = self._decoder.feed(data)
        except BadChunk as error:
            self.error = BadRequest(str(error))
            return len(data)
        if pieces:  # in one: a block costs a lock, and a chunk may have one byte
            self._body.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self.completed = self._decoder.done
        return taken

    def __len__(self) -> int:
        return len(self._body)

    def getfile(self) -> Body:
        return self._body

    getbuf = getfile


class StreamingParser(HTTPRequestParser):
    """Hands a request's body to what the application makes of its head, block by block."""

    command, path, request_uri, query, fragment, url_scheme = "-", "/", "", "", "", "http"  # until they are known
    refused = completed = False
    body_rcv: Any = None
    task: "StreamingTask | None" = None     # that answers it, once it has come

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self._begun = time.monotonic()
        self._head = bytearray()    # as long as there is no end of it
        self._held = 0
        self.environ: dict[str, Any] = {}   # once it is known

    def received(self, data: bytes) -> int:
        """How many of these bytes belong to it: those of the head, or then those of the body."""
        if self.headers_finished:
            return int(super().received(data))
        before = len(self._head)
        self._head += data
        end = self._head.find(b"\r\n\r\n", max(0, before - 3))
        if (len(self._head) if end < 0 else end) >= MAX_HEADERS:
            return self._too_large(f"the head of the request is longer than {MAX_HEADERS} bytes", data)
        if end < 0:
            return len(data)
        head, self._head = bytes(self._head[:end + 4]), bytearray()
        fields = head.count(b"\r\n", 0, end)
        if fields > MAX_FIELDS:
            return self._too_large(f"the request has more than {MAX_FIELDS} header fields", data)
        self._held = 2 * len(head) + FIELD * fields
        super().received(head)
        return end + 4 - before

    def _too_large(self, detail: str, data: bytes) -> int:
        self._head = bytearray()
        self.error = RequestHeaderFieldsTooLarge(detail)
        self.completed = self.headers_finished = True
        return len(data)

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(plain_head(header_plus))
        except ValueError as error:     # a Content-Length of 5,000 digits
            raise ParsingError(f"the request's head cannot be read: {error}") from error
        encodings = len(TRANSFER_ENCODING.findall(header_plus))     # waitress has taken the header away
        hosts = len(HOST.findall(header_plus))                      # and joined these
        for wrong, detail in (
            # RFC 9112 6.1 and 6.3: most are how a second request is smuggled in (TRAPS 7)
            (encodings > 1, "Transfer-Encoding comes twice"),
            (encodings and "CONTENT_LENGTH" in self.headers, "Transfer-Encoding excludes Content-Length"),
            ("TRANSFER_ENCODING" in self.headers, "Transfer-Encoding is not known to HTTP/1.0"),
            (self.version not in ("1.0", "1.1"), "this server speaks HTTP/1.0 and HTTP/1.1"),
            (BAD_TARGET.search(self.request_uri), "the request target has a control character or a # in it"),
            # RFC 9112 3.2: two readers would take it for requests to two servers
            (hosts > 1, "Host comes twice"),
            (hosts == 0 and self.version == "1.1", "HTTP/1.1 wants a Host header"),
        ):
            if wrong:
                raise ParsingError(detail)

    def begin_body(self, channel: "StreamingChannel") -> None:
        """To be called once the head is here."""
        if self.completed or self.body_rcv is None:
            self.expect_continue = False    # or the connection waits for a body that never comes (TRAPS 8)
            return
        environ = channel.task_class(channel, self).get_environment()
        body = environ["wsgi.input"] = channel.application.admit(environ)
        body.wake = channel.server.pull_trigger
        self.body_rcv = ChunkedReceiver(body) if self.chunked else FixedStreamReceiver(self.content_length, body)
        if body.refusal and (self.expect_continue or "X_FORWARDED_EXPECT" in self.headers):
            # RFC 9110 10.1.1: a final status, and the body is not asked for; nginx passes Expect on under this name
            self.expect_continue, self.completed, self.refused = False, True, True

    @property
    def body(self) -> Body | None:
        """What admit() made of it; None before, and without a body."""
        receiver = self.body_rcv    # once: a thread that counts what is held may look while it is closed
        body = receiver.getbuf() if receiver is not None else None
        return body if isinstance(body, Body) else None

    @property
    def appetite(self) -> int:
        """How many bytes are to be read at once."""
        body = self.body
        if body is None:
            return HEAD_BLOCK
        return CHUNKED_STEP if self.chunked else min(body.step, int(self.body_rcv.remain))

    @property
    def held(self) -> int:
        body = self.body
        return self._held + len(self._head) + (body.held if body is not None else 0)

    def overdue(self) -> bool:
        """Whether its head has come in drops for as long as a silent connection is kept."""
        return not self.headers_finished and time.monotonic() - self._begun > self.adj.channel_timeout

    def congested(self) -> bool:
        body = self.body
        return body is not None and body.congested()

    def close(self) -> None:
        """Gives back what it holds at once: the collector of cycles may not come by for long."""
        super().close()
        self._held, self._head, self.body_rcv = 0, bytearray(), None
        self.environ.pop(REQUEST, None)     # which refers to the environment
        self.environ.pop(STREAM, None)      # and this to the task, which refers to us
        task, self.task = self.task, None
        if task:
            task.close()


class FileSlice(NamedTuple):
    """Bytes to send that stay in their file until the kernel copies them."""

    descriptor: int
    offset: int
    length: int


class FileBuffer(ReadOnlyFileBasedBuffer):
    """wsgi.file_wrapper: waitress would read as much as the socket may ever take for each little that it takes."""

    def get(self, numbytes: int = -1, skip: bool = False) -> FileSlice:
        return FileSlice(self.file.fileno(), self.file.tell(), self.remain)


class Paused(BaseException):
    """An answer waits for its reader, and its thread does something else. No Exception, which waitress would answer."""


class StreamingTask(WSGITask):
    """Lets the application answer everything, faults below it included: those travel as the refusal of a body.

    An answer of many blocks pauses while its reader is AHEAD bytes behind, and is executed again when that one is not.
    """

    content_bytes_written = 0
    blocks: Any = None      # what is left of an answer that may pause

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = self.request.environ  # made already where the network thread might have answered
        if not environ:
            environ |= super().get_environment()
            environ["wsgi.file_wrapper"] = FileBuffer
            del environ["waitress.client_disconnected"]     # which refers to the channel, and the channel to this
            environ[STREAM] = self.stream    # for blocks what file_wrapper is for files
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
        if self.blocks is None:
            super().execute()
        for block in self.blocks or ():
            self.write(block)
            self.channel.pause_if_behind()

    def stream(self, blocks: Any) -> tuple[()]:
        """Takes an iterator of blocks over, which execute() sends when the application has returned."""
        self.blocks = blocks
        return ()

    def close(self) -> None:
        """Gives up what is left of the answer; called when it is over, sent or not."""
        blocks, self.blocks = self.blocks, None
        if blocks is not None:
            blocks.close()


class StreamingChannel(HTTPChannel):
    """One connection: reads while the disk keeps up, cleans up after a client that leaves, lingers after a refusal."""

    error_task_class = StreamingTask
    parser_class = StreamingParser
    request: StreamingParser | None = None
    requests: list[StreamingParser]
    sent_continue = False
    rest = b""          # what has come behind the request that is answered just now
    has_turn = False
    lingers = close_when_flushed = will_close = False
    at_once = False     # its next request is for the network thread to answer
    paused = False      # its answer waits until the client has taken more of it
    last_activity: float
    current_outbuf_count: int
    turn = 0    # bytes of files it may send before the others have theirs
    linger_until = 0.0

    def __init__(self, application: Any, turns: Turns, memory: Memory, *args: Any, **kwargs: Any) -> None:
        self.application, self.turns, self.memory = application, turns, memory
        super().__init__(*args, **kwargs)
        self.requests_lock = threading.RLock()  # give_up() may be called with it held

    def task_class(self, channel: "StreamingChannel", request: StreamingParser) -> StreamingTask:
        request.task = request.task or StreamingTask(channel, request)
        return request.task

    def pause_if_behind(self) -> None:
        """Raises Paused where the client has to take something first."""
        with self.outbuf_lock:
            self.paused = self.connected and self.total_outbufs_len > AHEAD
            if self.paused:
                raise Paused

    def go_on(self) -> None:
        """Gives a paused answer to a thread again when the client has taken enough."""
        with self.outbuf_lock:
            if not self.paused or self.total_outbufs_len > CLOSE_BEHIND:
                return
            self.paused = False
        self.server.add_task(self)

    def readable(self) -> bool:
        if self.paused and time.time() - self.last_activity > self.adj.channel_timeout:
            self.handle_close()     # waitress closes silent connections without a request, and when they can be sent to
            return False
        if self.linger_until:
            return True
        if self.request is not None:
            self.will_close = self.will_close or self.request.overdue()
            if self.request.congested():
                self.last_activity = time.time()    # it is our disk that is silent, not the client
                return False
        ready = bool(super().readable())
        if ready and self.rest:
            if self.turns.ask(self):
                self.server.pull_trigger()  # nobody may send anything: the turns come after the next event
            return False
        return ready

    def handle_read(self) -> None:
        if self.linger_until:
            if self.recv(BLOCK) and time.monotonic() > self.linger_until:
                self.handle_close()
        elif not super().readable():
            return  # it was given up since it asked: what comes now is of that request, and must not be taken for one
        elif self.rest:
            self.read_rest(time.monotonic() + TURN_SECONDS)
        elif self.request is None or self.request.body is None:
            self.read(HEAD_BLOCK)
        elif self.has_turn:
            self.read_body(time.monotonic() + TURN_SECONDS)
        else:
            self.turns.ask(self)

    def take_turn(self) -> None:
        self.has_turn = True
        if self.connected and not self.linger_until:
            wasyncore.read(self)    # handle_read, and the end of the connection for what that raises
        self.has_turn = False

    def read(self, size: int) -> bool:
        """Takes at most so many bytes; whether there may be more."""
        try:
            data = self.recv(size)
        except BlockingIOError:
            return False
        except OSError:     # the line is broken
            self.handle_close()
            return False
        if data:
            self.last_activity = time.time()
            self.received(data)
        return len(data) == size

    def read_rest(self, until: float) -> None:
        while self.rest and super().readable() and time.monotonic() < until:
            rest, self.rest = self.rest, b""
            self.received(rest)

    def read_body(self, until: float) -> None:
        left = BLOCK
        while left > 0 and self.request is not None and not self.request.congested():
            size = self.request.appetite
            if not self.read(size) or time.monotonic() > until:
                break
            left -= size

    def received(self, data: bytes) -> bool:
        """Takes what is of one request; what is behind that has to wait until it is answered and the answer is sent."""
        with self.requests_lock:
            if self.will_close or self.close_when_flushed:
                return False
            if self.request is None:
                data = data.lstrip(b"\r\n")     # RFC 9112 2.2: empty lines before a request are to be ignored
                self.request = StreamingParser(self.adj) if data else None
            while data and self.request is not None:
                data = data[self.receive_some(self.request, data):]
            self.rest = data
        self.memory.count(self)
        if self.at_once:
            self.at_once = False
            self.service()
        return True

    def receive_some(self, request: StreamingParser, data: bytes) -> int:
        """How many of these bytes it has taken, of the head or of the body of this request."""
        begun = request.headers_finished
        taken: int = request.received(data)
        if request.headers_finished and not begun:
            request.begin_body(self)
        if request.expect_continue and request.headers_finished and not self.sent_continue:
            self.send_continue()
        self.memory.count(self)
        self.memory.make_room()     # before it is complete, and has to be kept
        if self.request is not request or not self.connected:
            return len(data)        # it was given up, or its client has gone
        if request.completed:
            self.request = None
            self.sent_continue = False
            if not request.empty:
                self.hand_over(request)
        return taken

    def hand_over(self, request: StreamingParser) -> None:
        self.requests.append(request)
        self.server.add_task(self)

    @property
    def held(self) -> int:
        requests = (*self.requests, self.request)   # as they are now: this is asked from any thread
        return len(self.rest) + sum(request.held for request in requests if request is not None)

    @property
    def fixed(self) -> bool:
        return bool(self.requests)

    def give_up(self) -> None:
        with self.requests_lock:    # a thread may be about to send 100 Continue
            request, self.request, self.rest = self.request, None, b""
            if request is None:
                self.will_close = True  # its client does not read the answer
            else:
                request.close()
                refused = StreamingParser(self.adj)
                refused.error = Overloaded("too many requests are half received: send it again, in one go")
                self.hand_over(refused)
        self.memory.count(self)

    def service(self) -> None:
        with suppress(Paused):
            super().service()
        self.memory.count(self)

    def wants_no_thread(self) -> bool:
        """Whether its one request is answered faster than a thread is woken; of many in a row others had to wait."""
        request, *more = self.requests
        task = self.task_class(self, request)
        if more or request.error or request.body_rcv or task.blocks is not None:
            return False
        return bool(self.application.answers_at_once(task.get_environment()))

    def handle_write(self) -> None:
        # RFC 9112 9.6: closing with unread bytes would reset the connection and take the answer with it
        if self.lingers and self.close_when_flushed and not self.total_outbufs_len and not self.linger_until:
            self.close_when_flushed = False
            self.linger_until = time.monotonic() + LINGER
            with suppress(OSError):     # it is gone, which the next read tells
                self.socket.shutdown(socket.SHUT_WR)
            return
        super().handle_write()
        self.go_on()

    def write_soon(self, data: bytes | FileBuffer) -> int:
        with self.outbuf_lock:
            if self.current_outbuf_count > AHEAD:   # a new buffer: each keeps what was sent of it until all was sent
                self.current_outbuf_count = self.adj.outbuf_high_watermark
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
        self.rest = b""
        super().handle_close()
        self.memory.count(self)
        with self.outbuf_lock:
            paused, self.paused = self.paused, False
        if paused:      # else a thread is at it, and closes it
            self.requests[0].close()

    def busy(self) -> bool:
        return bool(self.request is not None or self.requests or self.rest or self.total_outbufs_len)


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
        self._turns, memory = Turns(), Memory()
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
            outbuf_high_watermark=sys.maxsize,  # what a slow reader has not taken yet holds no thread
        )
        self._listeners = [entry for entry in self._map.values() if isinstance(entry, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = partial(StreamingChannel, application, self._turns, memory)
        self.addresses = [f"http://{x.effective_host}:{x.effective_port}" for x in self._listeners]

    def stop(self) -> None:
        """Asks run() to return; may be called from a signal handler."""
        self._stopping = True
        self._listeners[0].pull_trigger()

    def run(self) -> None:
        self._dispatcher.network_thread = threading.get_ident()
        while not self._stopping:
            self._round(1)
        for listener in self._listeners:
            wasyncore.dispatcher.close(listener)
        deadline = time.monotonic() + GRACE
        while self._close_channels(idle_only=True) and time.monotonic() < deadline:
            self._round(0.1)
        self._close_channels(idle_only=False)
        self._dispatcher.shutdown(timeout=1)

    def _round(self, timeout: float) -> None:
        wasyncore.loop(timeout=0 if self._turns else timeout, use_poll=True, map=self._map, count=1)
        self._turns.give()

    def _close_channels(self, idle_only: bool) -> int:
        """Closes connections; says how many are left."""
        channels = [entry for entry in self._map.values() if isinstance(entry, StreamingChannel)]
        closing = [channel for channel in channels if not (idle_only and channel.busy())]
        for channel in closing:
            channel.handle_close()
        return len(channels) - len(closing)
