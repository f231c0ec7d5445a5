"""Goal 2, the first download after an upload: .venv/bin/python benchmarks/first_download.py (docs/benchmarks.md)

Uploads 1 GiB and downloads it at once, from our server, nginx and copyparty; then the same while four others upload.
Whoever writes past the page cache is faster first and slower then, so both are counted together.
A smoke run: --size 64M --rounds 1
"""

import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import peers
from peers import CURL, MIB, Server


def url_of(server: Server, name: str) -> str:
    return f"{server.url}/models/p/a/1/{name}" if server.name == peers.OURS.name else f"{server.url}/{name}"


def measure(server: Server, source: Path, others: int) -> dict[str, float]:
    peers.empty(server.data)
    running = [subprocess.Popen([*CURL, "-T", str(source), url_of(server, f"other{n}")]) for n in range(others)]
    begun = time.monotonic()
    peers.together([[*CURL, "-T", str(source), url_of(server, "m")]])
    uploaded = time.monotonic()
    peers.together([["curl", "-sS", "--fail", "-o", "/dev/null", url_of(server, "m")]])
    ended = time.monotonic()
    for process in running:
        process.wait()
    return {"upload": uploaded - begun, "download": ended - uploaded, "both": ended - begun}


def main() -> None:
    options = peers.arguments(__doc__, size=(peers.size, 1024 * MIB, "of each upload"), others=(int, 4, "uploads"))
    peers.need_space(Path(options.scratch), (options.others + 3) * options.size)
    rows = []
    with peers.scratch(options.scratch) as root, ExitStack() as running:
        source = peers.source_file(root / "source", options.size)
        servers = [running.enter_context(peer.running(root / peer.name.split()[0]))
                   for peer in peers.available(peers.OURS, peers.NGINX_PEER, peers.COPYPARTY)]
        for others in (0, options.others):
            results = peers.interleaved(options.rounds, {s.name: partial(measure, s, source, others) for s in servers})
            for name, series in results.items():
                rows.append([name, str(others), *(f"{series.median(what):.2f}" for what in ("upload", "download")),
                             f"{series.median('both'):.2f}", series.spread("both"),
                             f"{results[peers.OURS.name].median('both') / series.median('both'):.2f}"])
    peers.table(["server", "others", "upload s", "first download s", "both s", "range s", "ours / it"], rows,
                f"{options.size >> 20} MiB, medians of {options.rounds}")


if __name__ == "__main__":
    main()
