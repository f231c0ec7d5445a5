"""waitress with our channels, our event loop on two threads, and requests that are answered without a thread."""

import errno
import logging
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from waitress import wasyncore
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher

from server import threads as helpers
from server.forwarded import Network
from server.relay import Relay
from server.turns import Memory, Turns
from server.uploads import READ_BLOCK
from server.waitress_adapter.channel import StreamingChannel
from server.waitress_adapter.parser import MAX_HEADERS

BACKLOG = 1024      # connections that wait to be accepted, as waitress has it
LOOK = 0.01         # seconds, at least, from one look at all connections to the next
LOOK_SHARE = 20     # and at least so many times as long as a look takes: with 500 connections some 1.5 ms
SIGNAL_SECONDS = 0.5        # after which the main thread notices a signal, at worst: two wake-ups a second cost nothing


class Dispatcher(ThreadedTaskDispatcher):
    """Hands requests over to threads, except those that take less time than that.

    The thread that runs the loop answers these itself, as long as the other one can take the loop over if one of them
    has to wait for the disk.
    """

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self._relay = relay
        self._short: deque[StreamingChannel] = deque()

    def add_task(self, task: StreamingChannel) -> None:
        if self._relay.leads() and task.wants_no_thread():
            self._short.append(task)
        else:
            super().add_task(Errand(task))

    def answer_short(self) -> bool:
        """Answers the requests that need no thread; returns whether this thread still leads."""
        while self._short:
            task = self._short.popleft()
            if not self._relay.watched:
                super().add_task(Errand(task))
            elif not self._relay.call(partial(attend, task)):
                return False
        return True


class Errand:
    """A channel that waits for a thread. Without it, the thread would keep the channel alive until its next task."""

    def __init__(self, channel: StreamingChannel) -> None:
        self._channels = [channel]

    def service(self) -> None:
        self._channels.pop().service()

    cancel = service    # when the server stops: its connection is closed, so that this only tells of the request


def attend(task: StreamingChannel) -> None:
    try:
        task.service()
    except Exception:   # noqa: BLE001  logged, and the connection is closed, as after a fault while reading
        task.handle_error()
    task.look_again()


class Server:
    """waitress with our channel and our loop. `host` is empty for all addresses of the machine, of both families.

    run() returns after stop(), when the running requests are done or `grace` seconds are over. Raises OSError and
    ValueError if it cannot listen.
    """

    def __init__(self, application: Any, host: str, port: int, threads: int, connections: int, *, idle: int,
                 grace: float, proxies: tuple[Network, ...], prefix: str) -> None:
        self._map: dict[int, Any] = {}
        self._metrics = application.services.metrics
        self._turns, memory = Turns(), Memory()
        self._stopping, self._grace, self._deadline = False, grace, 0.0
        self._stopped = threading.Event()
        self._relay = Relay()
        self._poll, self._looked, self._look_again_at = select.poll(), dict[int, Any](), 0.0
        self._changed, self._all_changed = set[int](), False    # connections to look at again, by their descriptors
        self._dispatcher = Dispatcher(self._relay)
        self._dispatcher.set_thread_count(threads)
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)     # it warns of each request that waits
        create_server(
            application, map=self._map, _dispatcher=self._dispatcher, ident="ai-model-repository",
            connection_limit=connections, channel_timeout=idle, cleanup_interval=min(30, idle), backlog=BACKLOG,
            clear_untrusted_proxy_headers=False,    # server.forwarded decides what is believed
            url_prefix=prefix, recv_bytes=READ_BLOCK, max_request_header_size=MAX_HEADERS,
            max_request_body_size=sys.maxsize,  # the application has limits of its own, and answers as JSON
            outbuf_high_watermark=sys.maxsize,  # a slow reader must not hold a thread: see Paused
            **({"host": host, "port": port} if host else {"sockets": [socket_of_both_families(port)]}),
        )
        self._listeners = [entry for entry in self._map.values() if isinstance(entry, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = partial(StreamingChannel, application, self._turns, memory, proxies)
            listener.pull_trigger = self._wake
        self.addresses = [f"http://{in_url(x.effective_host)}:{x.effective_port}" for x in self._listeners]

    def stop(self) -> None:
        """Asks run() to return; may be called from a signal handler."""
        self._stopping = True
        self._wake()

    def _wake(self, descriptor: int | None = None) -> None:
        """Makes the loop look at this connection again, or at all. The loop's own thread will look soon anyway."""
        if descriptor is not None:
            self._changed.add(descriptor)
        if not self._relay.leads():
            self._all_changed = self._all_changed or descriptor is None
            self._listeners[0].trigger.pull_trigger()

    def run(self) -> None:
        """Serves until stop(). Call it in the main thread, which then only waits for signals."""
        for number in range(2):
            helpers.start(f"network-{number}", self._serve, self._metrics)
        while not self._stopped.wait(SIGNAL_SECONDS):
            pass    # the handler of a signal that arrives just before a wait runs after it
        self._dispatcher.shutdown(timeout=1)

    def _serve(self) -> None:
        while self._relay.follow():
            self._lead()

    def _lead(self) -> None:
        """Runs the loop until the server has stopped, or another thread has taken it over."""
        while not self._is_over():
            if not self._round(0.1 if self._stopping else 1):
                return
        self._close_channels(idle_only=False)
        self._relay.end()
        self._stopped.set()

    def _is_over(self) -> bool:
        if not self._stopping:
            return False
        if not self._deadline:
            self._deadline = time.monotonic() + self._grace
            for listener in self._listeners:
                known = -1
                while listener.readable() and known != len(self._map):
                    known = len(self._map)
                    listener.handle_accept()    # if a client is waiting, it may have sent its request already
                wasyncore.dispatcher.close(listener)
        return not self._close_channels(idle_only=True) or time.monotonic() > self._deadline

    def _round(self, timeout: float) -> bool:
        """Serves every connection that is ready once; returns whether this thread still leads."""
        for entry, events in self._ready(timeout):
            wasyncore.readwrite(entry, events)
            if not self._dispatcher.answer_short():
                return False    # the other thread has asked which connections are ready meanwhile
        self._turns.give()
        return self._dispatcher.answer_short()

    def _ready(self, timeout: float) -> Iterator[tuple[Any, int]]:
        """The connections that are ready within so many seconds, with their events.

        A generator, unlike wasyncore.loop(), can be left in the middle. All connections are asked now and then what
        they wait for, and in between only those that had something to do: otherwise each block of a slow client would
        cost a look at all the others.
        """
        now = time.monotonic()
        if self._all_changed or now > self._look_again_at or self._looked != self._map:
            self._all_changed = False
            self._changed.clear()
            self._poll, self._looked = select.poll(), dict(self._map)
            for descriptor, entry in self._looked.items():
                self._register(descriptor, entry)
            self._look_again_at = now + max(LOOK, LOOK_SHARE * (time.monotonic() - now))
        else:
            timeout = self._look_again_at - now
            while self._changed:
                if entry := self._map.get(descriptor := self._changed.pop()):
                    self._register(descriptor, entry)
        for descriptor, events in self._poll.poll(0 if self._turns else timeout * 1000):
            if entry := self._map.get(descriptor):  # otherwise it was closed in this round
                self._changed.add(descriptor)
                yield entry, events

    def _register(self, descriptor: int, entry: Any) -> None:
        """Makes the poll wait for what a connection waits for."""
        events = select.POLLIN | select.POLLPRI if entry.readable() else 0
        if entry.writable() and not entry.accepting:
            events |= select.POLLOUT
        if events:
            self._poll.register(descriptor, events)
        else:
            with suppress(KeyError):
                self._poll.unregister(descriptor)

    def _close_channels(self, idle_only: bool) -> int:
        """Closes connections; returns how many are left."""
        channels = [entry for entry in self._map.values() if isinstance(entry, StreamingChannel)]
        closing = [channel for channel in channels if not (idle_only and channel.busy())]
        for channel in closing:
            channel.handle_close()
        return len(channels) - len(closing)


def socket_of_both_families(port: int) -> socket.socket:
    """Listens on all addresses of IPv6 and IPv4 if the machine has both, otherwise of IPv4; raises OSError."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("0.0.0.0", port), backlog=BACKLOG)


def in_url(address: str) -> str:
    """The address as it is written in a URL (RFC 3986 3.2.2)."""
    return f"[{address}]" if ":" in address else address
