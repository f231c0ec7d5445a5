"""Metrics in the text format of Prometheus. Counting a request takes a lock and a few additions."""

import os
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0)   # seconds: from an info to 40 GB on a slow link
NAMESPACE = "model_repository"
TROUBLED = 600.0    # seconds for which /health says degraded after a fault of the server: long enough to be noticed


class Metrics:
    """The counters of one process; render() adds the gauges, whose values are read at that moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._bytes: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._special = Counter(resumed=0, instant=0)   # uploads, by what was special about them
        self._started = time.time()
        self._watched: dict[str, tuple[str, Callable[[], float]]] = {}
        self.faults: Counter[str] = Counter()   # by the name of a helper thread
        self._places: set[str] = set()          # where in the code these were, so their number is limited
        self._lost = Counter(audit=0, other=0)  # log lines, by kind
        self._late = 0
        self._last_trouble = -inf

    def count(self, route: str, method: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Counts a request that is over. `route` is the pattern of its path, so that there are few label values."""
        with self._lock:
            self._requests[route, method, status] += 1
            self._buckets.setdefault(route, [0] * (len(BUCKETS) + 1))[bisect_left(BUCKETS, seconds)] += 1
            self._seconds[route] = self._seconds.get(route, 0.0) + seconds
            self._bytes["received"] += received
            self._bytes["sent"] += sent

    def receive(self, received: int) -> None:
        """Counts the bytes of a body that was given up, so that its request is never counted."""
        with self._lock:
            self._bytes["received"] += received

    def count_upload(self, kind: str) -> None:
        """Counts an upload that was `resumed`, or stored without its bytes being sent (`instant`)."""
        with self._lock:
            self._special[kind] += 1

    def refuse(self, reason: str) -> None:
        """Counts an upload that was not stored."""
        with self._lock:
            self._refused[reason] += 1

    def fault(self, thread: str, place: str) -> bool:
        """Counts a fault of a helper thread; returns whether it is the first one at this place in the code."""
        with self._lock:
            self.faults[thread] += 1
            self._last_trouble = time.monotonic()
            before = len(self._places)
            self._places.add(f"{thread}: {place}")
            return len(self._places) > before

    def lose(self, kind: str) -> None:
        """Counts a log line that will never be written; `kind` is audit or other."""
        with self._lock:
            self._lost[kind] += 1
            self._last_trouble = time.monotonic()

    def delay(self) -> None:
        """Counts a change that is acknowledged before its audit line is written."""
        with self._lock:
            self._late += 1
            self._last_trouble = time.monotonic()

    def troubles(self) -> dict[str, Any]:
        """What has gone wrong in the server itself since it started, for /health; {} if nothing has."""
        if self._last_trouble == -inf:
            return {}
        with self._lock:
            counts = {"faults": +self.faults, "lost_log_lines": +self._lost, "late_audit_lines": self._late}
            return {name: count for name, count in counts.items() if count}

    def troubled(self) -> bool:
        """Whether something has gone wrong in the last TROUBLED seconds."""
        return time.monotonic() - self._last_trouble < TROUBLED

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a gauge: its help text, and a function that returns its current value."""
        self._watched[name] = text, value

    def render(self, gauges: dict[str, tuple[str, float]]) -> str:
        """The whole page; `gauges` are values by name, each with its help text."""
        with self._lock:
            gauges = gauges | {name: (text, value()) for name, (text, value) in self._watched.items()}
            return "".join(f"{line}\n" for line in (*self._counters(), *self._histogram(), *self._gauges(gauges)))

    def _counters(self) -> Iterator[str]:
        yield from head("requests_total", "counter", "Requests; those that broke off have the status 499.")
        for (route, method, status), count in self._requests.items():
            yield sample("requests_total", count, route=route, method=method, status=str(status))
        for name in ("received", "sent"):
            yield from head(f"{name}_bytes_total", "counter", f"Bytes of bodies {name}.")
            yield sample(f"{name}_bytes_total", self._bytes[name])
        yield from head("uploads_refused_total", "counter", "Uploads that were not stored, by reason.")
        for reason, count in self._refused.items():
            yield sample("uploads_refused_total", count, reason=reason)
        for kind, text in (("resumed", "Uploads continued after a break."), ("instant", "Uploads without bytes.")):
            yield from head(f"uploads_{kind}_total", "counter", text)
            yield sample(f"uploads_{kind}_total", self._special[kind])
        yield from head("thread_faults_total", "counter", "Faults of helper threads, each of which went on.")
        for thread, count in self.faults.items():
            yield sample("thread_faults_total", count, thread=thread)
        yield from head("log_lines_lost_total", "counter", "Lines of the log that were never written, by kind.")
        for kind, count in self._lost.items():
            yield sample("log_lines_lost_total", count, kind=kind)
        yield from head("audit_lines_late_total", "counter", "Changes answered before their audit line was written.")
        yield sample("audit_lines_late_total", self._late)

    def _histogram(self) -> Iterator[str]:
        yield from head("request_seconds", "histogram", "Seconds from a request's head to the end of its answer.")
        for route, buckets in self._buckets.items():
            for place, bound in enumerate((*BUCKETS, "+Inf")):
                yield sample("request_seconds_bucket", sum(buckets[: place + 1]), route=route, le=str(bound))
            yield sample("request_seconds_sum", self._seconds[route], route=route)
            yield sample("request_seconds_count", sum(buckets), route=route)

    def _gauges(self, gauges: dict[str, tuple[str, float]]) -> Iterator[str]:
        for name, (text, value) in gauges.items():
            yield from head(name, "gauge", text)
            yield sample(name, value)
        with open("/proc/self/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        # the names that all client libraries of Prometheus use, and therefore without our prefix
        for name, kind, text, number in (
            ("resident_memory_bytes", "gauge", "Memory in use.", float(resident)),
            ("open_fds", "gauge", "Descriptors open.", len(os.listdir("/proc/self/fd"))),
            ("start_time_seconds", "gauge", "Start, in seconds since 1970.", self._started),
            ("cpu_seconds_total", "counter", "Processor time spent.", time.process_time()),
        ):
            yield f"# HELP process_{name} {text}"
            yield f"# TYPE process_{name} {kind}"
            yield f"process_{name} {number}"


def head(name: str, kind: str, text: str) -> tuple[str, str]:
    """The two lines before the samples of a metric."""
    return f"# HELP {NAMESPACE}_{name} {text}", f"# TYPE {NAMESPACE}_{name} {kind}"


def sample(name: str, value: float, **labels: str) -> str:
    """The line of one sample. The values of labels are our own and need no escaping."""
    inside = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{NAMESPACE}_{name}{{{inside}}} {value}" if inside else f"{NAMESPACE}_{name} {value}"
