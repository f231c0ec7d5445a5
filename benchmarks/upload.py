"""Goal 1, uploads: .venv/bin/python benchmarks/upload.py (docs/benchmarks.md)

Uploads 1 GiB with curl, as multipart and as a raw PUT, one and four at once, to our server and its peers. Ours computes
the SHA-256 and syncs to disk before it answers; nginx and the FastAPI application do neither; floor.py does only that.
The processor time is that of the servers, without the commands that do by hand what nginx does not.
Before each measurement, the files of the last one are removed and the disk is idle.
A smoke run: --size 64M --rounds 1
"""

import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import peers
from peers import CURL, MIB, Server

Commands = Callable[[Server, Path, int], list[list[str]]]
LOG_ARTIFACT = """
import sys, time, mlflow
client = mlflow.MlflowClient(sys.argv[1])
run = client.create_run(client.get_experiment_by_name("Default").experiment_id).info.run_id
begun = time.monotonic()
client.log_artifact(run, sys.argv[2])
print(time.monotonic() - begun)
"""


def put(server: Server, source: Path, count: int) -> list[list[str]]:
    return [[*CURL, "-T", str(source), f"{server.url}/models/p/a/{number}/m"] for number in range(count)]


def put_flat(server: Server, source: Path, count: int) -> list[list[str]]:
    return [[*CURL, "-T", str(source), f"{server.url}/model{number}"] for number in range(count)]


def put_by_hand(digest: str, server: Server, source: Path, count: int) -> list[list[str]]:
    """What our server promises, with nginx and three commands; each looks at the file that nginx has stored."""
    return [["sh", "-c", f"{shlex.join(command)} && {digest} {(stored := shlex.quote(str(server.data / path)))} && "
             f"sync -d {stored}"] for command, path in zip(put(server, source, count),
                                                           (f"models/p/a/{n}/m" for n in range(count)), strict=True)]


def form(server: Server, source: Path, count: int) -> list[list[str]]:
    query = "project_id=p&app_name=a&model_name=m&version="
    return [[*CURL, "-F", f"file=@{source}", f"{server.url}/models/upload?{query}{number}"] for number in range(count)]


def form_of_uploadserver(server: Server, source: Path, count: int) -> list[list[str]]:
    return [[*CURL, "-F", f"files=@{source};filename=model{number}", f"{server.url}/upload"] for number in range(count)]


CONTESTANTS: tuple[tuple[peers.Peer, str, Commands | None], ...] = (
    (peers.OURS, "multipart", form),
    (peers.OURS, "PUT", put),
    (peers.FLOOR, "receive, hash, write", put_flat),
    (peers.NGINX_PEER, "DAV PUT", put),
    (peers.NGINX_PEER, "PUT, sha256sum, sync -d", partial(put_by_hand, "sha256sum")),
    (peers.NGINX_PEER, "PUT, openssl dgst, sync -d", partial(put_by_hand, "openssl dgst -sha256")),
    (peers.COPYPARTY, "PUT", put_flat),
    (peers.RCLONE_WEBDAV, "DAV PUT", put_flat),
    (peers.WSGIDAV, "DAV PUT", put_flat),
    (peers.FASTAPI, "multipart", form),
    (peers.FASTAPI, "PUT", put),
    (peers.UPLOADSERVER, "multipart", form_of_uploadserver),
    (peers.MLFLOW, "log_artifact", None),
)


def measure(server: Server, commands: Commands | None, source: Path, count: int) -> dict[str, float]:
    peers.empty(server.data)
    before = server.cpu()
    if commands:
        seconds = peers.together(commands(server, source, count))
    else:   # its own client, whose start is not counted
        seconds = float(subprocess.run([sys.executable, "-c", LOG_ARTIFACT, server.url, str(source)], check=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.split()[-1])
    figures = {"seconds": seconds, "rate": count * source.stat().st_size / seconds / MIB, "cpu": server.cpu() - before}
    size = sum(path.stat().st_size for path in server.data.rglob("*") if path.is_file() and path.stat().st_size >= MIB)
    assert size == count * source.stat().st_size, f"{server.name} stored {size} bytes"
    peers.empty(server.data)
    return figures


def main() -> None:
    options = peers.arguments(__doc__, size=(peers.size, 1024 * MIB, "of each upload"), at_once=(int, 4, "uploads"),
                              only=(str, "", "names of servers, as in 'this server,nginx'"))
    peers.need_space(Path(options.scratch), (options.at_once + 2) * options.size)
    chosen = [entry for entry in CONTESTANTS if not options.only or entry[0].name in options.only.split(",")]
    with peers.scratch(options.scratch) as root, ExitStack() as running:
        source = peers.source_file(root / "source", options.size)
        servers = {peer.name: running.enter_context(peer.running(root / peer.name.split()[0] / "files"))
                   for peer in peers.available(*dict.fromkeys(entry[0] for entry in chosen))}
        here = [entry for entry in chosen if entry[0].name in servers]
        one = peers.interleaved(options.rounds, {
            f"{peer.name}|{how}": partial(measure, servers[peer.name], commands, source, 1)
            for peer, how, commands in here})
        # four at once of those that the goal is about; the others only ever get slower
        many = peers.interleaved(options.rounds, {
            f"{peer.name}|{how}": partial(measure, servers[peer.name], commands, source, options.at_once)
            for peer, how, commands in here
            if peer in (peers.OURS, peers.FLOOR, peers.NGINX_PEER) and "sync" not in how})
        memory = {name: server.memory() for name, server in servers.items()}
    rows = []
    for count, results in ((1, one), (options.at_once, many)):
        for name, series in results.items():
            server, how = name.split("|")
            seconds = series.median("seconds")
            rows.append([server, how, str(count), f"{seconds:.2f}", series.spread("seconds"),
                         f"{series.median('rate'):.0f}", f"{series.median('cpu'):.2f}", f"{memory[server]:.0f}",
                         *(f"{seconds / results.get(other, peers.Series()).median('seconds'):.2f}"
                           for other in ("nginx|DAV PUT", "nothing else|receive, hash, write"))])
    peers.table(["server", "how", "at once", "median s", "range s", "MiB/s", "CPU s", "peak MiB", "time / nginx",
                 "time / nothing else"], rows,
                f"{options.size >> 20} MiB each, medians of {options.rounds}")
    for how in ("multipart", "PUT"):
        alone, together = (results.get(f"{peers.OURS.name}|{how}") for results in (one, many))
        if alone and together:
            ratio = statistics.median(together.figures["rate"]) / statistics.median(alone.figures["rate"])
            print(f"ours, {how}: {options.at_once} at once together carry {ratio:.2f} times what one carries alone")


if __name__ == "__main__":
    main()
