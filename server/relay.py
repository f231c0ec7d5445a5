"""Two threads for one event loop: while one is stuck in a call that was meant to be short, the other one goes on."""

import threading
import time
from collections.abc import Callable

PATIENCE = 0.01     # seconds of one call before the loop is taken over; a look at a disk in order takes 0.1 ms


class Relay:
    """Knows which of the two threads leads. The other one watches it, or is stuck itself.

    A call costs the leader an uncontended lock, and wakes no other thread: the one that watches looks every PATIENCE
    seconds while there are calls, and sleeps while there are none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._called = threading.Event()
        self._leader = 0        # the thread's identifier
        self._calls = 0         # how many have begun
        self._inside = False    # whether the leader is in one of them
        self._over = False
        self.watched = False    # whether the other thread could take over

    def leads(self) -> bool:
        """Whether the calling thread is the leader."""
        return threading.get_ident() == self._leader

    def call(self, work: Callable[[], object]) -> bool:
        """Does the work; returns whether the calling thread still leads. If not, it has to leave the loop."""
        self._calls += 1
        self._inside = True
        if not self._called.is_set():
            self._called.set()
        try:
            work()
        finally:
            with self._lock:
                leads = self.leads()
                if leads:
                    self._inside = False
        return leads

    def follow(self) -> bool:
        """Returns True when the calling thread has to lead, False after end()."""
        with self._lock:
            self._leader = self._leader or threading.get_ident()
            self.watched = self.watched or not self.leads()
        while not self.leads() and not self._over:
            calls = self._calls
            time.sleep(PATIENCE)
            if calls == self._calls and not self._take_over(calls):
                self._called.clear()
                if calls == self._calls and not self._over:     # otherwise a call began before it was cleared
                    self._called.wait()
        return not self._over

    def _take_over(self, calls: int) -> bool:
        """Makes the calling thread the leader if the other one is still in the same call."""
        with self._lock:
            stuck = self._inside and calls == self._calls
            if stuck:
                self._leader, self._inside, self.watched = threading.get_ident(), False, False
        return stuck

    def end(self) -> None:
        """Makes follow() return, for both."""
        self._over = True
        self._called.set()
