"""What the connections of one server share: turns on the network thread, and memory for what is half received."""

import threading
import time
from collections import OrderedDict
from typing import Protocol

ROUND = 0.01                # seconds for connections that send a lot, before the others are polled again
MEMORY = 32 << 20           # bytes of all heads and small bodies: 32 of the largest PATCH, or thousands of requests
SHARE = 16 << 10            # bytes of each connection that do not count: a browser's request; for 4,096 of them, 64 MiB
FIELD = 256                 # bytes that a header field takes in addition to its text, here and in the environment


class Connection(Protocol):
    @property
    def held(self) -> int:
        """Bytes of memory that what it has received takes."""

    @property
    def fixed(self) -> bool:
        """Whether it cannot give them up, because a thread is using them."""

    def take_turn(self) -> None:
        """Processes some of what has arrived; asks for another turn if there is more."""

    def give_up(self) -> None:
        """Refuses the request and frees its memory."""


class Turns:
    """A queue of connections with much to process: each gets a short turn, one after the other."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Connection, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def ask(self, connection: Connection) -> None:
        """Queues a connection for a turn, unless it is queued already."""
        self._waiting[connection] = None

    def give(self) -> None:
        """Gives each queued connection at most one turn, until ROUND seconds are over."""
        until = time.monotonic() + ROUND
        for _ in range(len(self._waiting)):
            self._waiting.popitem(last=False)[0].take_turn()
            if time.monotonic() > until:
                break


class Memory:
    """A budget for the memory of requests that are being received or are waiting for a thread.

    When it is used up, the request that has exceeded its share for longest is refused. Complete requests never are; so
    there is always one to refuse, or one that will soon be answered.
    """

    def __init__(self) -> None:
        self._used = 0
        self._lock = threading.Lock()
        self._charged: dict[Connection, int] = {}   # in the order in which they exceeded their share

    def count(self, connection: Connection) -> None:
        """Records how much a connection holds; call it whenever that has changed, from any thread."""
        with self._lock:
            before = self._charged.get(connection, 0)
            now = max(0, connection.held - SHARE)
            if now:
                self._charged[connection] = now
            elif before:
                del self._charged[connection]
            self._used += now - before

    def make_room(self) -> None:
        """Makes connections give up their requests until the budget suffices; call it from the network thread."""
        while self._used > MEMORY and (connection := self._oldest()):
            connection.give_up()

    def _oldest(self) -> Connection | None:
        """The connection that exceeded its share first, of those that can give up."""
        with self._lock:
            return next((connection for connection in self._charged if not connection.fixed), None)
