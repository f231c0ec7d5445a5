"""The log: one line for each request, written in batches, and audit lines, written before a change is acknowledged.

One thread writes to stdout, which may be full, closed, or a pipe that nobody reads; threads that log do not wait for
it. Lines that stdout does not take are kept up to a limit, so a short stall loses nothing. Lines lost beyond that are
counted, and the log says how many there were.
"""

import functools
import logging
import os
import select
import threading
import time
from collections import Counter

from server import threads
from server.metrics import Metrics

TIME = "%Y-%m-%dT%H:%M:%S%z"    # ISO 8601
AUDIT = "audit"         # the logger whose lines must not be lost
DELAY = 0.05            # seconds for which lines are gathered: a write for each line would slow down every thread
MAX_WRITE = 64 << 10    # bytes of one write: the capacity of a pipe
MAX_WAITING = 4 << 20   # bytes waiting for stdout: ten seconds of a busy server, half an hour of a typical one
MAX_AUDIT = 8 << 20     # the same limit for audit lines, which have the second half to themselves
AUDIT_WAIT = 2.0        # seconds for which one change waits for a stalled stdout; later changes do not wait
LAST_WAIT = 2.0         # seconds at the end of the process to write what is left: enough for two attempts


@functools.lru_cache(maxsize=1)
def moment(second: int) -> str:
    """The time of a request's line, formatted once a second: strftime takes a good part of a short request."""
    return time.strftime(TIME, time.localtime(second))


class Log(logging.Handler):
    """Writes log lines to a descriptor in a thread of its own, and what is left when the process exits normally."""

    def __init__(self, descriptor: int, metrics: Metrics) -> None:
        super().__init__()
        self._descriptor, self._metrics = descriptor, metrics
        self._changed = threading.Condition(threading.Lock())
        self._lines = bytearray()       # logged, but not yet taken by the thread
        self._rest = memoryview(b"")    # taken, but not yet written
        self._logged = self._written = 0    # bytes since the start; the difference is waiting
        self._urgent = False    # somebody waits for what was logged
        self._stalled = False   # the last attempt to write took too long or failed
        self._lost: Counter[str] = Counter()    # lines by kind, since the log last said so
        metrics.watch("log_waiting_bytes", "Bytes of the log that stdout has not taken yet.", self.waiting)
        threads.start("log", self._run, metrics)

    def waiting(self) -> int:
        """How many bytes are waiting to be written."""
        return self._logged - self._written

    def handle(self, record: logging.LogRecord) -> bool:
        """Emits without logging's own lock: a thread that waits for its audit line must not block the others."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Queues a line; for an audit line, waits until it is written, but at most AUDIT_WAIT seconds."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:   # noqa: BLE001  as in logging's own handlers: a bad log call must not fail a request
            self.handleError(record)
            return
        self._queue(line, record.name == AUDIT)

    def tell(self, text: str) -> None:
        """Queues the line of a request, as info() of the logger `access` would, in half the time."""
        self._queue(f"{moment(int(time.time()))} INFO access {text}\n".encode(errors="backslashreplace"), audit=False)

    def _queue(self, line: bytes, audit: bool) -> None:
        with self._changed:
            if self.waiting() + len(line) > (MAX_AUDIT if audit else MAX_WAITING):
                kind = AUDIT if audit else "other"
                self._lost[kind] += 1
                self._metrics.lose(kind)
                return
            if not self._lines:
                self._changed.notify_all()
            self._lines += line
            self._logged += len(line)
            if audit:
                self._await_audit(self._logged)

    def _await_audit(self, end: int) -> None:
        """Waits until `end` bytes have been written, unless stdout is known to be stalled."""
        self._urgent = True
        self._changed.notify_all()
        if not self._stalled:
            done = self._changed.wait_for(lambda: self._written >= end or self._stalled, AUDIT_WAIT)
            self._stalled = self._stalled or not done
        if self._written < end:     # the change is on disk, so the client must be told anyway
            self._metrics.delay()

    def flush(self) -> None:
        """Waits until everything logged so far is written, but at most LAST_WAIT seconds."""
        with self._changed:
            end, self._urgent = self._logged, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._written >= end, LAST_WAIT)

    # ---- the thread

    def _run(self) -> None:
        while True:
            if not self._rest:
                self._take()
            while self._rest:
                self._write()

    def _take(self) -> None:
        """Waits for lines, gathers them for a moment, and takes them."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._lost)
            self._changed.wait_for(lambda: self._urgent, DELAY)
            if self._lost:      # logged here, after the last line that was kept
                line = self._line_of_lost()
                self._lines += line
                self._logged += len(line)
                self._lost.clear()
            self._urgent = False
            self._rest, self._lines = memoryview(self._lines), bytearray()

    def _write(self) -> None:
        """Writes part of the lines taken. An OSError counts as a fault of this thread, which then tries again."""
        try:
            written = os.write(self._descriptor, self._rest[:MAX_WRITE])
        except BlockingIOError:     # another process with the same stdout made it non-blocking
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll()
            return
        except OSError:
            with self._changed:
                self._stalled = True
                self._changed.notify_all()
            raise
        with self._changed:
            self._rest = self._rest[written:]
            self._written += written
            self._stalled = False
            self._changed.notify_all()

    def _line_of_lost(self) -> bytes:
        text = f"lines lost because stdout did not take them: {self._lost.total()}, of the audit: {self._lost[AUDIT]}"
        return f"{self.format(logging.LogRecord('model_server.logs', logging.ERROR, '', 0, text, (), None))}\n".encode()


def configure(descriptor: int, metrics: Metrics) -> Log:
    """Sends all logging to `descriptor`, in the form that docs/operating.md describes."""
    handler = Log(descriptor, metrics)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", TIME))
    logging._srcfile = None     # as the logging HOWTO advises if no line contains its source
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False      # they contain none of these
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return handler
