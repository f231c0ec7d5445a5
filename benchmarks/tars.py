"""Versions as tars: .venv/bin/python benchmarks/tars.py (docs/benchmarks.md)

1 GiB in 20 files, up as a tar and as one file, and down; nginx with one file of that size beside it. 10,000 small files
up, beside a program that unpacks the tar and syncs each file, and the first byte of their tar: after a start, again at
once, after a pause, and after one of the files was replaced. Ours computes SHA-256 and syncs; nginx does neither.
A smoke run: --size 64M --many 500 --rounds 1
"""

import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import peers
from peers import CURL, MIB, Server

DISCARD = ("curl", "-sS", "--fail", "-o", "/dev/null")
VERSION = "/models/p/a/1.0.0"
SMALL = 2048        # bytes of each of many files: a page of text
PAUSE = 3.0         # seconds without a request, after which the server looks at the disk again


def packed(path: Path, sizes: list[int]) -> Path:
    """A tar of files of these sizes, 200 in a directory."""
    with tarfile.open(path, "w") as tar:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"d{number // 200:03}/file-{number:05}.bin")
            info.size = size
            tar.addfile(info, io.BytesIO(os.urandom(size)))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def upload(server: Server, source: Path, path: str) -> dict[str, float]:
    peers.empty(server.data)
    before = server.cpu()
    seconds = peers.together([[*CURL, "-T", str(source), server.url + path]])
    figures = {"seconds": seconds, "cpu": server.cpu() - before}
    peers.empty(server.data)
    return figures


def download(server: Server, path: str) -> dict[str, float]:
    before = server.cpu()
    seconds = peers.together([[*DISCARD, server.url + path]])
    return {"seconds": seconds, "cpu": server.cpu() - before}


def unpack(source: Path, root: Path) -> dict[str, float]:
    """What writing many files takes without a server: two for each, synced one after the other, as ours are."""
    begun = time.monotonic()
    with tarfile.open(source) as tar:
        for member in tar:
            directory = root / member.name
            directory.mkdir(parents=True)
            for name, data in (("model", tar.extractfile(member).read()), ("metadata.json", bytes(600))):
                with (directory / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            descriptor = os.open(directory, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    seconds = time.monotonic() - begun
    peers.empty(root)
    return {"seconds": seconds, "cpu": float("nan")}


def first_byte(server: Server) -> float:
    """Milliseconds until the first byte of the tar of a version is there, on a connection that is open already."""
    connection = server.connect()
    begun = time.perf_counter()
    connection.request("GET", f"{VERSION}?format=tar")
    answer = connection.getresponse()
    answer.read(1)
    took = time.perf_counter() - begun
    assert answer.status == 200, answer.status
    connection.close()
    return took * 1000


def first_bytes(root: Path, many: Path) -> dict[str, float]:
    """That of many files, on a server that was started just now."""
    with peers.OURS.running(root) as server:
        if not (root / VERSION.removeprefix("/models/")).exists():
            peers.together([[*CURL, "-T", str(many), server.url + VERSION]])
            server.stop()
            return first_bytes(root, many)
        took = {"after a start": first_byte(server), "again at once": first_byte(server)}
        time.sleep(PAUSE)
        took["after a pause"] = first_byte(server)
        status, _ = peers.get(server.connect(), f"{VERSION}/d000/file-00000.bin", "PUT", os.urandom(SMALL))
        assert status == 200, status
        return {**took, "after a file was replaced": first_byte(server)}


Contestants = dict[str, Callable[[], dict[str, float]]]


def large(root: Path, size: int, files: int, rounds: int, running: ExitStack) -> Iterator[list[str]]:
    source, tar = peers.source_file(root / "source", size), packed(root / "tar", [size // files] * files)
    ours = running.enter_context(peers.OURS.running(root / "models"))
    dav = [running.enter_context(peer.running(root / peer.name)) for peer in peers.available(peers.NGINX_PEER)]
    what = f"tar of {files} files"
    ups: Contestants = {f"this server, {what}": partial(upload, ours, tar, VERSION),
                        "this server, one file": partial(upload, ours, source, f"{VERSION}/m")}
    ups |= {f"{server.name}, one file": partial(upload, server, source, "/m") for server in dav}
    yield from rows("up", size, peers.interleaved(rounds, ups))
    for server, path, what_is_sent in ((ours, VERSION, tar), (ours, "/models/p/a/2/m", source),
                                       *((server, "/m", source) for server in dav)):
        peers.together([[*CURL, "-T", str(what_is_sent), server.url + path]])
    downs: Contestants = {f"this server, {what}": partial(download, ours, f"{VERSION}?format=tar"),
                          "this server, one file": partial(download, ours, "/models/p/a/2/m")}
    downs |= {f"{server.name}, one file": partial(download, server, "/m") for server in dav}
    for ask in downs.values():
        ask()   # into the page cache
    yield from rows("down", size, peers.interleaved(rounds, downs))


def small(root: Path, many: Path, count: int, rounds: int) -> Iterator[list[str]]:
    (root / "unpacked").mkdir()
    with peers.OURS.running(root / "small") as ours:
        ups: Contestants = {f"this server, tar of {count} files": partial(upload, ours, many, VERSION),
                            f"unpack, {count} files": partial(unpack, many, root / "unpacked")}
        yield from rows("up", count * SMALL, peers.interleaved(rounds, ups))


def rows(way: str, size: int, results: dict[str, peers.Series]) -> Iterator[list[str]]:
    least = [*results.values()][-1].median("seconds")
    for name, series in results.items():
        seconds = series.median("seconds")
        yield [way, name, f"{seconds:.2f}", series.spread("seconds"), f"{size / seconds / MIB:.0f}",
               f"{series.median('cpu'):.2f}", f"{seconds / least:.2f}"]


def main() -> None:
    options = peers.arguments(__doc__, size=(peers.size, 1024 * MIB, "of all large files"),
                              files=(int, 20, "how many large ones"), many=(int, 10_000, "how many small ones"),
                              only=(str, "large,small,first", "what to measure"))
    peers.need_space(Path(options.scratch), 6 * options.size)
    chosen, done = options.only.split(","), list[list[str]]()
    with peers.scratch(options.scratch) as root, ExitStack() as running:
        many = packed(root / "many", [SMALL] * options.many)
        if "large" in chosen:
            done += large(root, options.size, options.files, options.rounds, running)
        if "small" in chosen:
            done += small(root, many, options.many, options.rounds)
        if done:
            peers.table(["way", "what", "median s", "range s", "MiB/s", "CPU s", "time / last"], done,
                        f"{options.size >> 20} MiB, and {options.many} files, medians of {options.rounds}")
        if "first" in chosen:
            series = peers.interleaved(options.rounds, {"": partial(first_bytes, root / "first", many)})[""]
            peers.table(["first byte of the tar", "median ms", "range ms"],
                        [[what, f"{series.median(what):.0f}", series.spread(what, ".0f")] for what in series.figures],
                        f"{options.many} files")


if __name__ == "__main__":
    main()
