"""The seam to waitress: all that knows its insides.

It hands each block of a body on as it is received, and sends files without reading them.
"""

import logging
import sys
import threading
import time
from functools import partial
from typing import Any

from waitress import wasyncore
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher

from server.turns import Memory, Turns
from server.uploads import BLOCK
from server.waitress_adapter.channel import StreamingChannel
from server.waitress_adapter.parser import MAX_HEADERS

GRACE = 10.0                    # seconds for running requests after SIGTERM, docker stop waits 10
PROXY_HEADERS = "x-forwarded-for x-forwarded-proto x-forwarded-host"


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
