"""Goal 1, many slow uploads beside a fast one: .venv/bin/python benchmarks/slow_uploads.py (docs/benchmarks.md)

Uploads 1 GiB with curl, alone and beside 500 uploads that send a little each second, to our server and nginx.
A smoke run: --size 64M --rounds 1 --slow 20
"""

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import peers
from peers import CURL, MIB, Server

EACH = 64 << 10     # bytes that a slow upload sends at a time: more than a server has of one that has just begun
DECLARED = 1 << 30  # bytes that it says it will send; it never comes so far


@contextmanager
def slow_uploads(server: Server, count: int) -> Iterator[None]:
    """So many uploads that each send EACH bytes a second, one after the other, until the block ends."""
    stop, data = threading.Event(), bytes(EACH)
    with ExitStack() as open_ones, selectors.DefaultSelector() as selector:
        for number in range(count):
            connection = open_ones.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(f"PUT /models/p/slow{number}/1/m HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                               f"Content-Length: {DECLARED}\r\n\r\n".encode() + data)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_WRITE)

        def send() -> None:
            while not stop.is_set():
                for key, _ in selector.select(1):
                    key.fileobj.send(data)      # type: ignore[union-attr]  a socket
                    if stop.wait(1 / count):
                        return

        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield
        finally:
            stop.set()
            sender.join()


def measure(server: Server, source: Path, slow: int) -> dict[str, float]:
    peers.empty(server.data)
    with slow_uploads(server, slow) if slow else ExitStack():
        time.sleep(2 if slow else 0)    # all of them have sent something
        before = server.cpu()
        seconds = peers.together([[*CURL, "-T", str(source), f"{server.url}/models/p/fast/1/m"]])
        return {"seconds": seconds, "cpu": server.cpu() - before}


def main() -> None:
    options = peers.arguments(__doc__, size=(peers.size, 1024 * MIB, "of the fast upload"),
                              slow=(int, 500, "uploads that are slow"))
    peers.need_space(Path(options.scratch), 4 * options.size + options.slow * EACH * 20)
    rows = []
    with peers.scratch(options.scratch) as root, ExitStack() as running:
        source = peers.source_file(root / "source", options.size)
        servers = [running.enter_context(peer.running(root / peer.name.split()[0] / "files"))
                   for peer in peers.available(peers.OURS, peers.NGINX_PEER)]
        results = peers.interleaved(options.rounds, {f"{server.name}|{slow}": partial(measure, server, source, slow)
                                                     for server in servers for slow in (0, options.slow)})
        for server in servers:
            alone = results[f"{server.name}|0"].median("seconds")
            for slow in (0, options.slow):
                series = results[f"{server.name}|{slow}"]
                rows.append([server.name, str(slow), f"{series.median('seconds'):.2f}", series.spread("seconds"),
                             f"{series.median('cpu'):.2f}", f"{server.memory():.0f}",
                             f"{series.median('seconds') / alone:.2f}"])
    peers.table(["server", "slow ones", "median s", "range s", "CPU s", "peak MiB", "time / alone"], rows,
                f"{options.size >> 20} MiB, medians of {options.rounds}")


if __name__ == "__main__":
    main()
