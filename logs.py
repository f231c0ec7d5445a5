"""The log: one line a request, written many at a time."""

import collections
import logging
import threading
import time
from contextlib import suppress
from typing import TextIO

BATCH = 0.05    # seconds; a write for each line stops every thread of the server, and sooner is no use to a reader


class BatchedLog(logging.Handler):
    """Writes what was logged a moment later, and all of it when the process ends in order."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: collections.deque[str] = collections.deque()
        self._waiting = threading.Event()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record) + "\n")
        if not self._waiting.is_set():
            self._waiting.set()

    def flush(self) -> None:
        text = ""
        while self._lines:
            with suppress(IndexError):      # the last flush and the thread's may meet
                text += self._lines.popleft()
        self._stream.write(text)
        self._stream.flush()

    def _run(self) -> None:
        while self._waiting.wait():
            time.sleep(BATCH)
            self._waiting.clear()
            self.flush()


class Seconds(logging.Formatter):
    """Writes the same second once."""

    _second, _text = 0, ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        if int(record.created) != self._second:
            self._text = super().formatTime(record, datefmt)
            self._second = int(record.created)
        return self._text


def configure(stream: TextIO) -> None:
    """Sends every log line to `stream`, as the README shows them."""
    handler = BatchedLog(stream)
    handler.setFormatter(Seconds("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logging._srcfile = None     # logging's own advice where no line tells its source
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False     # our lines do not have them
    logging.basicConfig(level=logging.INFO, handlers=[handler])
