"""Helper threads. All of them are started here; a fault is logged and counted, and does not end the thread."""

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from server.metrics import Metrics

log = logging.getLogger("model_server.threads")
PAUSE = 1.0             # seconds after a fault: a permanent one costs little, and a passing one delays little work
MAX_TRACEBACK = 8000    # characters of a traceback that are logged, from its end: some fifty calls
REST = 0.5              # seconds without work until a worker ends: another one starts in 0.1 ms
Work = Callable[[], object]


def start(name: str, work: Work, metrics: Metrics, daemon: bool = True) -> threading.Thread:
    """Calls `work` in a thread until it returns; if it raises, calls it again after PAUSE seconds.

    Each fault is counted in `metrics` under `name`. Only the first one from each place in the code is logged, with its
    traceback. The process waits for the end of the thread unless it is a daemon. Raises RuntimeError if the system
    cannot start a thread.
    """
    thread = threading.Thread(target=_keep_going, args=(name, work, metrics), name=name, daemon=daemon)
    thread.start()
    metrics.faults.setdefault(name, 0)
    return thread


def _keep_going(name: str, work: Work, metrics: Metrics) -> None:
    while True:
        try:
            work()
            return
        except Exception as error:  # noqa: BLE001  whatever the fault is, the thread is still needed
            frame = traceback.extract_tb(error.__traceback__)[-1]
            if metrics.fault(name, f"{type(error)} at {frame.filename}:{frame.lineno}"):
                text = "".join(traceback.format_exception(error)).rstrip()
                log.error("the thread %s failed and goes on: %s", name, text[-MAX_TRACEBACK:])
        time.sleep(PAUSE)


class Workers:
    """At most `most` threads, which do pieces of work. The process does not end before all of it is done.

    Each piece of work wakes one thread, the one that became idle last. The threads of a ThreadPoolExecutor wait for one
    lock: the one that gets it wakes the next, which finds nothing to do.
    """

    def __init__(self, name: str, most: int, metrics: Metrics) -> None:
        self._name, self._most, self._metrics = name, most, metrics
        self._lock = threading.Lock()
        self._threads = 0
        self._resting = list[SimpleQueue[Work]]()   # where each of them waits
        self._due = deque[Work]()

    @property
    def busy(self) -> bool:
        """Whether there is work for which no thread is free."""
        return bool(self._due)

    def submit(self, work: Work) -> None:
        """Does this on a thread as soon as one is free; raises RuntimeError if the system cannot start one."""
        with self._lock:
            if self._resting:
                self._resting.pop().put(work)
                return
            self._due.append(work)
            if self._threads < self._most:
                start(self._name, self._run, self._metrics, daemon=False)
                self._threads += 1

    def _run(self) -> None:
        place = SimpleQueue[Work]()
        while work := self._next(place):
            work()
            del work    # and with it what it refers to

    def _next(self, place: SimpleQueue[Work]) -> Work | None:
        """What to do next; None to end, after REST seconds without work."""
        with self._lock:
            if self._due:
                return self._due.popleft()
            self._resting.append(place)
        with suppress(Empty):
            return place.get(timeout=REST)
        with self._lock:
            if place in self._resting:
                self._resting.remove(place)
                self._threads -= 1
                return None
        return place.get()      # it was chosen at the last moment
