"""Goal 4, small requests: .venv/bin/python benchmarks/small_requests.py (docs/benchmarks.md)

Measures info, health and HEAD of a model over 16 keep-alive connections, and compares with FastAPI and one worker of
uvicorn, which answer the same JSON from the same file. A smoke run: --seconds 0.5 --rounds 1
"""

import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from peers import FASTAPI, FASTAPI_FAST, HERE, OURS, Server, arguments, available, get, interleaved, scratch, table

MODEL = "/models/project/app/1.0.0/baseline"
REQUESTS = {"info": ("GET", f"{MODEL}/info"), "health": ("GET", "/health"), "HEAD model": ("HEAD", MODEL)}


def measure(server: Server, method: str, path: str, connections: int, seconds: float) -> dict[str, float]:
    before = server.cpu()
    command = [sys.executable, str(HERE / "load.py"), str(server.port), method, path, str(connections), str(seconds)]
    rate, p50, p99 = map(float, subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split())
    return {"rate": rate, "p50": p50, "p99": p99, "cost": (server.cpu() - before) / (rate * seconds) * 1e6}


def main() -> None:
    options = arguments(__doc__, connections=(int, 16, "at once"), seconds=(float, 3.0, "of each measurement"))
    with scratch(options.scratch) as root, ExitStack() as running:
        ours, *others = [running.enter_context(peer.running(root / "models" if peer is OURS else root / peer.name))
                         for peer in available(OURS, FASTAPI, FASTAPI_FAST)]
        with_one_model(ours, others)
        servers = [ours, *others]
        results = interleaved(options.rounds, {
            f"{what}|{server.name}": partial(measure, server, *request, options.connections, options.seconds)
            for what, request in REQUESTS.items() for server in servers})
    rows = []
    for what in REQUESTS:
        for server in servers:
            series = results[f"{what}|{server.name}"]
            peer = results[f"{what}|{ours.name}"]
            rows.append([what, server.name, f"{series.median('rate'):.0f}", series.spread("rate", ".0f"),
                         f"{series.median('p50'):.1f}", f"{series.median('p99'):.1f}", f"{series.median('cost'):.0f}",
                         f"{peer.median('rate') / series.median('rate'):.2f}",
                         f"{series.median('cost') / peer.median('cost'):.2f}"])
    table(["request", "server", "requests/s", "range", "p50 ms", "p99 ms", "CPU µs each", "ours / it",
           "its CPU / ours"], rows,
          f"{options.connections} keep-alive connections, {options.seconds:g} s each, medians of {options.rounds}")


def with_one_model(ours: Server, others: list[Server]) -> None:
    """Uploads a model to us, and lets the others find the same files where they look for them."""
    connection = ours.connect()
    fields = "framework=pytorch&description=Sentiment&stage=prod"
    status, answer = get(connection, f"{MODEL}?{fields}", "PUT", b"x" * 100_000)
    assert status == 201, answer
    for server in others:
        Path(server.data / "project").symlink_to(ours.data / "project")


if __name__ == "__main__":
    main()
