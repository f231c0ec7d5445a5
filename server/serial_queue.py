"""Work on blocks of bytes, in order and out of the way of the network thread."""

import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WORKERS = 8     # four uploads write, hash and wait for the disk at once; more gain nothing on one disk
TRIMMED = 512 << 20     # bytes received between two trims, which take 1 to 4 ms of a worker
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8     # malloc.h


class Intake:
    """What all uploads of one server share: the workers, and the count of bytes that wait for them."""

    def __init__(self) -> None:
        self.workers = ThreadPoolExecutor(WORKERS, "intake")
        self.changed = threading.Condition()
        self.backlog = 0
        self.in_flight = 0      # uploads begun and not closed
        self._untrimmed = 0

    def take(self, size: int) -> None:
        """Counts bytes that have come; to be called with `changed` held."""
        self.backlog += size
        self._untrimmed += size
        if self._untrimmed > TRIMMED:
            self._untrimmed = 0
            self.workers.submit(trim)


class Lane:
    """Does its work in batches, in order, on shared workers: a thread each would be two for each slow upload.

    It belongs to what is given to put(), and does not refer to it while it has nothing to do: the owner goes with the
    last who needs it, and not when the collector of cycles comes by.
    """

    def __init__(self, intake: Intake, work: Callable[[Any, list[memoryview]], None]) -> None:
        self._intake, self._work = intake, work
        self._waiting: list[memoryview] = []
        self._busy = self._again = False

    def put(self, owner: Any, *blocks: memoryview) -> None:
        with self._intake.changed:
            self._waiting += blocks
            self._again = True      # without blocks too: it is to look whether the upload was closed or refused
            if self._busy:
                return
            self._busy = True
        self._intake.workers.submit(self._run, owner)

    def _run(self, owner: Any) -> None:
        with self._intake.changed:
            batch, self._waiting, self._again = self._waiting, [], False
        try:
            self._work(owner, batch)
        except Exception as error:  # noqa: BLE001  kept, and raised where the upload is finished
            owner.refuse(error)
        with self._intake.changed:
            self._busy = again = self._again
            self._intake.changed.notify_all()
        if again:   # at the end of the queue: one fast upload must not starve the others
            self._intake.workers.submit(self._run, owner)

    def join(self) -> None:
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: not self._busy)


def tune() -> None:
    """Settings of the process, measured with uploads of 512 MiB."""
    sys.setswitchinterval(0.0005)   # seconds; who has a block to write must not wait 5 ms for who parses a head
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:     # glibc: keep the memory of one block for the next, in few arenas
        for option, value in ((M_TRIM_THRESHOLD, 16 << 20), (M_MMAP_THRESHOLD, 32 << 20), (M_ARENA_MAX, 2)):
            mallopt(option, value)


def trim() -> None:
    """Gives back the memory between blocks, which malloc would keep: it grew by a MiB with each GiB of an upload."""
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):     # glibc too
        malloc_trim(0)
