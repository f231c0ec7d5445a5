"""A connection: what it receives, whose turn it is, and what it sends."""

import fcntl
import logging
import os
import socket
import termios
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, cast

from waitress import wasyncore
from waitress.buffers import OverflowableBuffer
from waitress.channel import ClientDisconnected, HTTPChannel

from server.forwarded import Network
from server.heads import TLS
from server.landing import SLAB
from server.responses import FileSlice, Piece
from server.turns import Memory, Turns
from server.uploads import READ_BLOCK
from server.waitress_adapter.parser import HEAD_BLOCK, Overloaded, StreamingParser
from server.waitress_adapter.task import Paused, StreamingTask

log = logging.getLogger("model_server")
TURN = 2 << 20                  # bytes of a file sent to one client before it is the next one's turn: under a ms
TURN_SECONDS = 0.005            # for receiving the body of one client, before it is the next one's turn
FAR_BEHIND = 512 * 1024         # bytes of a list that its reader has not taken when the list is paused
CLOSE_BEHIND = 128 * 1024       # the same when it continues, so a thread is woken for each 400 KB
LINGER = 5.0                    # seconds to read what a refused client still sends, so that it sees the answer


def wake(server: Any, *descriptor: int) -> None:
    """Makes the loop of a server look at this connection, or at all; if that fails, it does within a second anyway."""
    with suppress(OSError):
        server.pull_trigger(*descriptor)


def plain(address: str) -> str:
    """An address without the prefix that IPv4 has on a socket of IPv6 (RFC 4291 2.5.5.2)."""
    return address.removeprefix("::ffff:")


class StreamingChannel(HTTPChannel):
    """One connection: reads while the disk keeps up, cleans up after a client that leaves, lingers after a refusal."""

    error_task_class = StreamingTask
    parser_class = StreamingParser
    request: StreamingParser | None = None
    requests: list[StreamingParser]
    sent_continue = False
    rest = b""          # what arrived after the request that is being answered
    has_turn = False
    lingers = close_when_flushed = will_close = False
    paused = False      # the answer waits until the client has taken more of it
    last_activity: float
    addr: tuple[Any, ...]
    outbufs: list[OverflowableBuffer | FileSlice]
    current_outbuf_count: int
    total_outbufs_len: int
    turn = 0    # bytes of files that may still be sent in this turn
    linger_until = 0.0
    in_kernel = b""     # how many bytes the client had not taken when has_stalled() looked, as ioctl(2) returns it

    def __init__(self, application: Any, turns: Turns, memory: Memory, trusted: tuple[Network, ...], *args: Any,
                 **kwargs: Any) -> None:
        self.application, self.turns, self.memory, self.trusted = application, turns, memory, trusted
        super().__init__(*args, **kwargs)
        self.descriptor = self.socket.fileno()      # kept, as the next one, because a closed socket knows neither
        self.local_address = plain(self.socket.getsockname()[0])
        self.addr = (plain(self.addr[0]), *self.addr[1:])
        self.requests_lock = threading.RLock()  # give_up() may be called with it held

    def task_class(self, channel: "StreamingChannel", request: StreamingParser) -> StreamingTask:
        request.task = request.task or StreamingTask(channel, request)
        return cast(StreamingTask, request.task)

    def pause_if_behind(self) -> None:
        """Raises Paused if the client has to take something first."""
        with self.outbuf_lock:
            self.paused = self.connected and self.total_outbufs_len > FAR_BEHIND
            if self.paused:
                raise Paused

    def go_on(self) -> None:
        """Hands a paused answer to a thread again if the client has taken enough."""
        with self.outbuf_lock:
            if not self.paused or self.total_outbufs_len > CLOSE_BEHIND:
                return
            self.paused = False
        self.server.add_task(self)

    def readable(self) -> bool:
        if self.total_outbufs_len and self.has_stalled():
            self.handle_close()     # waitress closes silent connections only if they are writable
            return False
        if self.linger_until:
            return True
        if self.request is not None:
            self.will_close = self.will_close or self.request.overdue() or self.request.superseded
            if self.request.admitting or self.request.congested():
                self.last_activity = time.time()    # the client waits for our disk, and is not silent
                return False
        ready = bool(super().readable())
        if ready and self.rest:
            self.turns.ask(self)    # turns are given even if no connection is ready
            return False
        return ready

    def has_stalled(self) -> bool:
        """Whether its reader has taken nothing for too long, not even of the megabytes that the kernel may hold."""
        if time.time() - self.last_activity <= self.adj.channel_timeout:
            return False
        before, self.in_kernel = self.in_kernel, fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))
        self.last_activity = time.time()
        return before == self.in_kernel

    def writable(self) -> bool:
        return not self.admitting and bool(super().writable())  # the thread that admits it may send 100 Continue

    @property
    def admitting(self) -> bool:
        return self.request is not None and self.request.admitting

    def takes(self) -> bool:
        """Whether what arrives now belongs to the request that is being received, or to the next one."""
        return not self.admitting and bool(super().readable())

    def handle_read(self) -> None:
        if self.linger_until:
            if self.recv(READ_BLOCK) and time.monotonic() > self.linger_until:
                self.handle_close()
        elif not self.takes():
            return  # its request was given up meanwhile: the rest of that must not be taken for another request
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
        self.look_again()

    def look_again(self) -> None:
        """Makes the loop look at the connection again."""
        wake(self.server, self.descriptor)

    def read(self, size: int) -> bool:
        """Receives at most so many bytes; returns whether there may be more."""
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
        while self.rest and self.takes() and time.monotonic() < until:
            rest, self.rest = self.rest, b""
            self.received(rest)

    def read_body(self, until: float) -> None:
        left = SLAB
        while left > 0 and self.request is not None and not self.request.congested():
            room = self.request.room()
            size = self.request.appetite if room is None else len(room)
            more = self.read(size) if room is None else self.read_into(self.request, room)
            if not more or time.monotonic() > until:
                break
            left -= size

    def read_into(self, request: StreamingParser, room: memoryview) -> bool:
        """Receives as much of a body as there is room for; returns whether there may be more."""
        size = 0
        try:
            size = self.socket.recv_into(room)
        except BlockingIOError:
            return False
        except OSError:     # the line is broken, which is seen below
            pass
        finally:
            with self.requests_lock:
                request.landed(size)
        if not size:
            self.handle_close()
            return False
        self.last_activity = time.time()
        with self.requests_lock:
            self.end_of(request)
        self.memory.count(self)
        return size == len(room)

    def received(self, data: bytes) -> bool:
        """Takes what belongs to one request; what follows has to wait until the answer to that is sent."""
        with self.requests_lock:
            if self.will_close or self.close_when_flushed:
                return False
            if self.request is None:
                data = data.lstrip(b"\r\n")     # RFC 9112 2.2: empty lines before a request are to be ignored
                self.request = StreamingParser(self.adj) if data else None
            while data and self.request is not None and not self.request.admitting:
                data = data[self.receive_some(self.request, data):]
            self.rest = data
        self.memory.count(self)
        return True

    def receive_some(self, request: StreamingParser, data: bytes) -> int:
        """Gives bytes to a request; returns how many of them belong to its head or its body."""
        begun = request.headers_finished
        taken: int = request.received(data)
        if request.foreign:
            log.info("%s sent %s, not HTTP", self.addr[0], request.foreign)
            self.will_close = request.foreign == TLS
        elif request.headers_finished and not begun:
            request.admitting = not request.completed
            request.expect_continue &= request.admitting    # otherwise it would wait for a body that never comes
            if request.admitting:
                self.server.add_task(self)
        self.memory.count(self)
        self.memory.make_room()     # now, because a complete request is never given up
        if self.request is not request or not self.connected:
            return len(data)        # it was given up, or its client has gone
        self.end_of(request)
        return taken

    def end_of(self, request: StreamingParser) -> None:
        """Hands a request over to be answered if it is complete."""
        if request.completed:
            self.request = None
            self.sent_continue = False
            if not request.empty:
                self.hand_over(request)

    def hand_over(self, request: StreamingParser) -> None:
        self.requests.append(request)
        self.server.add_task(self)

    @property
    def held(self) -> int:
        held, request = len(self.rest), self.request    # read once: any thread may call this
        if request is not None:
            held += request.held
        for request in tuple(self.requests):
            held += request.held
        return held

    @property
    def fixed(self) -> bool:
        return bool(self.requests) or self.admitting

    def give_up(self) -> None:
        with self.requests_lock:    # a thread may be about to send 100 Continue
            request, self.request, self.rest = self.request, None, b""
            if request is None:
                self.will_close = True  # the client does not read its answer
            else:
                if request.body is not None:
                    self.application.services.metrics.receive(request.body.received)
                request.close()
                refused = StreamingParser(self.adj)
                refused.error = Overloaded("too many requests are half received: send it again, in one go")
                self.hand_over(refused)
        self.memory.count(self)

    def service(self) -> None:
        """Does what needs the disk: decides what receives a body, or answers a request."""
        if self.request is not None and self.request.admitting:
            self.admit(self.request)
        else:
            request = self.requests[0]
            if not self.connected and self.task_class(self, request).sending is None:
                self.application.leave(request.task.get_environment(), request.body)
            with suppress(Paused):
                super().service()
        self.memory.count(self)

    def admit(self, request: StreamingParser) -> None:
        body = self.application.admit(self.task_class(self, request).get_environment())
        body.wake = partial(wake, self.server, self.descriptor)
        with self.requests_lock:
            request.begin_body(body)
            if request.completed:
                self.request = None
                self.hand_over(request)
            elif request.expect_continue and self.connected:
                self.send_continue()
            request.admitting = False
        if not self.connected:      # handle_close() leaves this to us
            self.drop(request)
        wake(self.server)

    def wants_no_thread(self) -> bool:
        """Whether service() takes less time than waking a thread, unless the disk is slow."""
        if self.admitting:
            return True
        request, *more = self.requests
        task = self.task_class(self, request)
        if more or request.error or request.body_rcv or task.sending is not None:
            return False
        return bool(self.application.answers_at_once(task.get_environment()))

    def handle_write(self) -> None:
        # RFC 9112 9.6: closing with unread bytes would reset the connection and take the answer with it
        if self.lingers and self.close_when_flushed and not self.total_outbufs_len and not self.linger_until:
            self.close_when_flushed = False
            self.linger_until = time.monotonic() + LINGER
            with suppress(OSError):     # the client has gone, as the next read will show
                self.socket.shutdown(socket.SHUT_WR)
            return
        super().handle_write()
        self.go_on()

    def write_soon(self, data: Piece) -> int:
        with self.outbuf_lock:
            if self.current_outbuf_count > FAR_BEHIND:  # a new buffer: each keeps its bytes until all of them are sent
                self.current_outbuf_count = self.adj.outbuf_high_watermark
            if isinstance(data, FileSlice):
                return self.send_file_soon(data)
            if self.connected and not self.total_outbufs_len:
                with suppress(OSError):     # the next call meets the same error
                    data = data[self.send(data, do_close=False):]
                    self.last_activity = time.time()
            return int(super().write_soon(data))

    def send_file_soon(self, piece: FileSlice) -> int:
        """Queues a FileSlice, as waitress queues a buffer of wsgi.file_wrapper."""
        if not self.connected:
            raise ClientDisconnected
        length = len(piece)
        self.outbufs += [piece, OverflowableBuffer(self.adj.outbuf_overflow)]   # the last one has to be writable
        self.total_outbufs_len += length
        self.current_outbuf_count = 0
        self._flush_exception(self._flush_some, do_close=False)
        if self.total_outbufs_len:
            wake(self.server)
        return length

    def _flush_some(self, do_close: bool = True) -> bool:
        self.turn = TURN
        return bool(super()._flush_some(do_close))

    def send(self, data: Piece, do_close: bool = True) -> int:
        if not isinstance(data, FileSlice):
            return int(super().send(data, do_close))
        try:
            sent = os.sendfile(self.socket.fileno(), data.file.fileno(), data.start, min(data.length, self.turn))
            if sent == 0 < self.turn:
                raise OSError("a file became shorter while it was sent")
        except BlockingIOError:
            return 0
        except ConnectionError:
            if do_close:
                self.handle_close()
            return 0
        except OSError as error:
            if self.connected and not self.will_close:
                log.warning("an answer ends early, and its connection is closed: %s", error)
            self.will_close = True
            return 0
        self.turn -= sent
        return sent

    def handle_close(self) -> None:
        self.connected = False
        if self.request is not None and not self.request.admitting:
            self.read_last(self.request)
            self.drop(self.request)     # waitress does not close a request that is only partly received
        self.rest = b""
        super().handle_close()
        self.memory.count(self)
        with self.outbuf_lock:
            paused, self.paused = self.paused, False
        if paused:      # otherwise a thread is working on it, and closes it
            self.requests[0].close()

    def read_last(self, request: StreamingParser) -> None:
        """Reads what arrived before the connection broke, if it is to be kept: what the kernel still has of it."""
        with suppress(OSError):
            while request.kept and not request.completed and (data := self.socket.recv(READ_BLOCK)):
                request.received(data)

    def drop(self, request: StreamingParser) -> None:
        """Closes a request that will never be answered, and has the log and the metrics tell of it."""
        if request.body is not None:
            self.application.leave(request.environ, request.body)
        request.close()

    def busy(self) -> bool:
        """Whether a server that stops has to wait for this connection: its request may still be in the kernel."""
        if self.requests or self.rest or self.total_outbufs_len:
            return True
        if self.request is not None:
            return not self.request.kept
        with suppress(OSError):     # nothing has come, or the line is broken
            return not self.linger_until and bool(self.socket.recv(1, socket.MSG_PEEK))
        return False
