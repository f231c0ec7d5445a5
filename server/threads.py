"""The helper threads: every one of them is started here, and a fault neither ends one nor goes unseen."""

import logging
import threading
import time
import traceback
from collections.abc import Callable

from server.metrics import Metrics

log = logging.getLogger("model_server.threads")
PAUSE = 1.0             # seconds after a fault: one that lasts costs nearly nothing, and one that passes delays little
MAX_TRACEBACK = 8000    # characters of one in the log, the last ones: some fifty calls


def start(name: str, work: Callable[[], object], metrics: Metrics) -> threading.Thread:
    """Calls `work` in a daemon thread of this name until it returns; when it raises, again after PAUSE seconds.

    Each fault is counted in `metrics`. The log has the traceback of the first one from the same place in the code.
    Raises RuntimeError when the system has no thread to spare.
    """
    thread = threading.Thread(target=_keep_going, args=(name, work, metrics), name=name, daemon=True)
    thread.start()
    metrics.faults.setdefault(name, 0)
    return thread


def _keep_going(name: str, work: Callable[[], object], metrics: Metrics) -> None:
    while True:
        try:
            work()
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the thread has more to do
            frame = traceback.extract_tb(error.__traceback__)[-1]
            if metrics.fault(name, f"{type(error)} at {frame.filename}:{frame.lineno}"):
                text = "".join(traceback.format_exception(error)).rstrip()
                log.error("the thread %s failed and goes on: %s", name, text[-MAX_TRACEBACK:])
        time.sleep(PAUSE)
