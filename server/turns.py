"""What the connections of one server share: turns on the network thread, and memory for what is half received."""

import threading
import time
from collections import OrderedDict
from typing import Protocol

ROUND = 0.01                # seconds of a round for those who send much, before the others are asked again
MEMORY = 32 << 20           # bytes of heads and small bodies at once: 32 of the largest PATCH, thousands of requests
SHARE = 16 << 10            # of these, not counted: what a request of a browser takes; 4,096 of them are 64 MiB
FIELD = 256                 # bytes that a field of a head takes beside its text, here and in the environment


class Connection(Protocol):
    @property
    def held(self) -> int:
        """Bytes of memory."""

    @property
    def fixed(self) -> bool:
        """Whether it cannot give them up, because a thread is at it."""

    def take_turn(self) -> None: ...

    def give_up(self) -> None: ...


class Turns:
    """Whose bytes are looked at next, of those with many: one after the other, and not for long at once."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Connection, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def ask(self, connection: Connection) -> bool:
        """Whether it had not asked before."""
        waited = connection in self._waiting
        self._waiting[connection] = None
        return not waited

    def give(self) -> None:
        """Gives turns to those who have asked, each at most one, until the round is over."""
        until = time.monotonic() + ROUND
        for _ in range(len(self._waiting)):
            self._waiting.popitem(last=False)[0].take_turn()
            if time.monotonic() > until:
                break


class Memory:
    """A budget for what requests hold while they are received and wait for a thread.

    When it is used up, the request that has held more than its share for longest is refused. Those that are complete
    are not, and so there is always one to refuse, or one that will be answered.
    """

    def __init__(self, limit: int = MEMORY) -> None:
        self._limit = limit
        self._used = 0
        self._lock = threading.Lock()
        self._charged: dict[Connection, int] = {}   # the one charged first comes first

    def count(self, connection: Connection) -> None:
        """Takes note of what a connection holds now; to be called whenever that has changed, from any thread."""
        with self._lock:
            before = self._charged.get(connection, 0)
            now = max(0, connection.held - SHARE)
            if now:
                self._charged[connection] = now
            elif before:
                del self._charged[connection]
            self._used += now - before

    def make_room(self) -> None:
        """Makes connections give up what they hold until the budget suffices; from the network thread."""
        while self._used > self._limit and (connection := self._oldest()):
            connection.give_up()

    def _oldest(self) -> Connection | None:
        with self._lock:
            return next((connection for connection in self._charged if not connection.fixed), None)
