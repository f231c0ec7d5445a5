"""The log: one line a request, written many at a time, and a line of the audit before its change is acknowledged.

Whoever logs never waits for stdout, which may be full, closed or a pipe that nobody reads: one thread writes. What
stdout does not take is kept up to a limit, so a short trouble loses nothing; what is lost beyond is counted and told.
"""

import logging
import os
import select
import threading
from collections import Counter

from server import threads
from server.metrics import Metrics

AUDIT = "audit"         # the logger whose lines are precious
BATCH = 0.05            # seconds; a write for each line stops every thread of the server, sooner is no use to a reader
CHUNK = 64 << 10        # bytes of one write: what a pipe holds
MAX_WAITING = 4 << 20   # bytes that wait for stdout: ten seconds of a busy server, half an hour of a usual one
MAX_AUDIT = 8 << 20     # the same for the lines of the audit, which have the second half for themselves
AUDIT_WAIT = 2.0        # seconds for which one change waits for a stdout that stalls; those after it do not
LAST_WAIT = 2.0         # seconds for all that is left when the process ends: two attempts


class Log(logging.Handler):
    """Writes to a descriptor what was logged a moment ago, and all that waits when the process ends in order."""

    def __init__(self, descriptor: int, metrics: Metrics) -> None:
        super().__init__()
        self._descriptor, self._metrics = descriptor, metrics
        self._changed = threading.Condition(threading.Lock())
        self._lines = bytearray()       # logged, and not yet taken by the thread
        self._rest = memoryview(b"")    # taken, and not yet written
        self._logged = self._written = 0    # bytes since the start; the difference waits
        self._urgent = False    # somebody waits for what was logged
        self._stalled = False   # stdout took nothing the last time that somebody wanted it to
        self._lost: Counter[str] = Counter()    # lines, and not yet told
        metrics.watch("log_waiting_bytes", "Bytes of the log that stdout has not taken yet.", self.waiting)
        threads.start("log", self._run, metrics)

    def waiting(self) -> int:
        """How many bytes wait to be written."""
        return self._logged - self._written

    def handle(self, record: logging.LogRecord) -> bool:
        """Without logging's own lock: whoever waits for the audit must not stop the others."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a line to be written soon; returns when it is written if it is one of the audit, see AUDIT_WAIT."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:   # noqa: BLE001  as every handler of logging does: a bad line must not fail a request
            self.handleError(record)
            return
        audit = record.name == AUDIT
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
        """Waits until so many bytes are written, but not for a stdout that is known to stall."""
        self._urgent = True
        self._changed.notify_all()
        if not self._stalled:
            done = self._changed.wait_for(lambda: self._written >= end or self._stalled, AUDIT_WAIT)
            self._stalled = self._stalled or not done
        if self._written < end:     # the change is on the disk: its client must hear of it all the same
            self._metrics.delay()

    def flush(self) -> None:
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
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._lost)
            self._changed.wait_for(lambda: self._urgent, BATCH)
            if self._lost:      # here, behind the last line that had room
                line = self._line_of_lost()
                self._lines += line
                self._logged += len(line)
                self._lost.clear()
            self._urgent = False
            self._rest, self._lines = memoryview(self._lines), bytearray()

    def _write(self) -> None:
        """Writes some of it; an OSError counts as a fault of this thread, which begins again where it was."""
        try:
            written = os.write(self._descriptor, self._rest[:CHUNK])
        except BlockingIOError:     # another process that has this stdout, too, made it so
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


def configure(descriptor: int, metrics: Metrics) -> None:
    """Sends every log line to `descriptor`, as the README shows them."""
    handler = Log(descriptor, metrics)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logging._srcfile = None     # logging's own advice where no line tells its source
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False     # our lines do not have them
    logging.basicConfig(level=logging.INFO, handlers=[handler])
