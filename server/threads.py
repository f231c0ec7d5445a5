"""Helper threads. All of them are started here; a fault is logged and counted, and does not end the thread."""

import logging
import threading
import time
import traceback
from collections.abc import Callable

from server.metrics import Metrics

log = logging.getLogger("model_server.threads")
PAUSE = 1.0             # seconds after a fault: a permanent one costs little, and a passing one delays little
MAX_TRACEBACK = 8000    # characters of a traceback that are logged, from its end: some fifty calls


def start(name: str, work: Callable[[], object], metrics: Metrics) -> threading.Thread:
    """Calls `work` in a daemon thread until it returns; if it raises, calls it again after PAUSE seconds.

    Each fault is counted in `metrics` under `name`. Only the first one from each place in the code is logged, with its
    traceback. Raises RuntimeError if the system cannot start a thread.
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
        except Exception as error:  # noqa: BLE001  whatever the fault is, the thread is still needed
            frame = traceback.extract_tb(error.__traceback__)[-1]
            if metrics.fault(name, f"{type(error)} at {frame.filename}:{frame.lineno}"):
                text = "".join(traceback.format_exception(error)).rstrip()
                log.error("the thread %s failed and goes on: %s", name, text[-MAX_TRACEBACK:])
        time.sleep(PAUSE)
