"""Goal 5, others while uploads run: .venv/bin/python benchmarks/latency.py (docs/benchmarks.md)

Measures how long /health and info take while 4 uploads of 1 GiB run, with a request every few milliseconds over a
keep-alive connection. The same client asks a second, idle server of ours at the same time: what slows that one down is
the machine.
A smoke run: --size 64M --rounds 1
"""

import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import peers
import upload
from peers import FASTAPI, MIB, OURS, Server, percentile

MODEL = "/models/probe/app/1.0.0/baseline"
PAUSE = 0.005
PROBE = """
import sys, time
from http.client import HTTPConnection
import socket
port, pause = int(sys.argv[1]), float(sys.argv[2])
connection = HTTPConnection("127.0.0.1", port, timeout=60)
connection.connect()
connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print("ready", flush=True)
number = 0
while True:
    number += 1
    path = sys.argv[3 + number % 2]
    begun = time.monotonic()
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, answer.status
    print(path, time.monotonic() - begun, flush=True)
    time.sleep(pause)
"""


class Probe:
    """Asks one server for /health and info in turn, from a process of its own, until stop()."""

    def __init__(self, server: Server) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", PROBE, str(server.port), str(PAUSE), "/health",
                                         f"{MODEL}/info"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.process.stdout.readline()
        self.took: dict[str, list[float]] = {"health": [], "info": []}
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            path, _, seconds = line.partition(" ")
            if seconds.endswith("\n"):
                self.took[path.rpartition("/")[2]].append(float(seconds) * 1000)

    def stop(self) -> dict[str, list[float]]:
        self.process.terminate()
        self.process.wait()
        self.reader.join()
        return self.took


def measure(server: Server, idle: Server | None, uploads: list[list[str]], quiet: float) -> dict[str, float]:
    """Percentiles in ms while these uploads run, or for `quiet` seconds when there are none."""
    probes = {"": Probe(server), **({"idle ": Probe(idle)} if idle else {})}
    if uploads:
        seconds = peers.together(uploads)
    else:
        time.sleep(quiet)
        seconds = quiet
    figures = {"seconds": seconds}
    for whose, probe in probes.items():
        for what, took in probe.stop().items():
            figures |= {f"{whose}{what} p50": percentile(took, 50), f"{whose}{what} p99": percentile(took, 99),
                        f"{whose}{what} max": max(took), f"{whose}{what} n": len(took)}
    peers.empty(server.data, "probe")
    return figures


def main() -> None:
    options = peers.arguments(__doc__, size=(peers.size, 1024 * MIB, "of each upload"), uploads=(int, 4, "at once"))
    peers.need_space(Path(options.scratch), (options.uploads + 1) * options.size)
    with peers.scratch(options.scratch) as root, ExitStack() as running:
        source = peers.source_file(root / "source", options.size)
        ours, idle = (running.enter_context(OURS.running(root / name)) for name in ("models", "idle"))
        others = [running.enter_context(peer.running(root / "peer")) for peer in peers.available(FASTAPI)]
        for server in (ours, idle):
            peers.get(server.connect(), MODEL, "PUT", b"x" * 1000)
        for server in others:
            (server.data / "probe").symlink_to(ours.data / "probe")
        contestants = {f"{ours.name}, nothing else": partial(measure, ours, None, [], 3.0)}
        for commands, how in ((upload.form, "multipart"), (upload.put, "PUT")):
            contestants |= {f"{s.name}, {how}": partial(measure, s, idle, commands(s, source, options.uploads), 0)
                            for s in (ours, *others)}
        results = peers.interleaved(options.rounds, contestants)
    rows = []
    for name, series in results.items():
        for what in ("health", "info"):
            idle_p99 = f"{series.median(f'idle {what} p99'):.1f}" if f"idle {what} p99" in series.figures else ""
            rows.append([name, f"/{what}" if what == "health" else what, f"{series.median(f'{what} n'):.0f}",
                         *(f"{series.median(f'{what} {which}'):.1f}" for which in ("p50", "p99", "max")), idle_p99,
                         f"{series.median('seconds'):.1f}"])
    heads = ["server, uploads", "request", "asked", "p50 ms", "p99 ms", "max ms", "idle server p99", "uploads took s"]
    peers.table(heads, rows, f"{options.uploads} uploads of {options.size >> 20} MiB, medians of {options.rounds}")


if __name__ == "__main__":
    main()
