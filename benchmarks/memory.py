"""Goal 3, memory: .venv/bin/python benchmarks/memory.py (docs/benchmarks.md)

Measures the peak resident memory of a server process during uploads and downloads of 1 GiB, four at once, 64 ranges,
100 slow readers, and the upload and download of a sparse file of 20 GiB. The server really writes those 20 GiB;
--sparse 0 leaves them out.
A smoke run: --size 64M --sparse 256M --readers 10 --seconds 3
"""

import shutil
from functools import partial
from pathlib import Path

import download
import peers
import upload
from peers import CURL, MIB, OURS

LIMIT = 80  # MiB, the goal


def main() -> None:
    options = peers.arguments(
        __doc__, size=(peers.size, 1024 * MIB, "of each upload"), at_once=(int, 4, "uploads"),
        sparse=(peers.size, 20 * 1024 * MIB, "of the sparse file"), readers=(int, 100, "slow ones"),
        rate=(peers.size, MIB, "bytes a second of each slow reader"), seconds=(float, 10.0, "of slow reading"))
    peers.need_space(Path(options.scratch), max((options.at_once + 2) * options.size, options.sparse + options.size))
    with peers.scratch(options.scratch) as root, OURS.running(root / "models") as server:
        source = peers.source_file(root / "source", options.size)
        sparse = root / "sparse"
        rows = [["started", "", f"{server.memory():.0f}"]]

        def phase(what: str, *commands: list[str]) -> None:
            seconds = peers.together([*commands])
            rows.append([what, f"{seconds:.1f}", f"{server.memory():.0f}"])

        for at_once in (1, options.at_once):
            phase(f"{at_once} by multipart", *upload.form(server, source, at_once))
            shutil.rmtree(server.data / "p")
            phase(f"{at_once} by PUT", *upload.put(server, source, at_once))
            shutil.rmtree(server.data / "p")
        phase("1 by PUT, for the downloads", [*CURL, "-T", str(source), f"{server.url}/models/{download.MODEL}"])
        url = f"{server.url}/models/{download.MODEL}"
        phase("1 download", [*download.DISCARD, url])
        phase(f"{options.at_once} downloads", *([[*download.DISCARD, url]] * options.at_once))
        phase("64 ranges", download.ranges_of(server, options.size, 64))
        slow = partial(download.slow_readers, server, options.size, options.readers, options.rate, options.seconds, 64)
        rows.append([f"{options.readers} slow readers and 64 ranges", f"{slow()['cores']:.2f} cores",
                     f"{server.memory():.0f}"])
        shutil.rmtree(server.data / "p")
        source.unlink()
        if options.sparse:
            with sparse.open("wb") as file:
                file.truncate(options.sparse)
            big = f"{server.url}/models/p/a/sparse/m"
            phase(f"{options.sparse >> 20} MiB sparse, PUT", [*CURL, "-T", str(sparse), big])
            phase(f"{options.sparse >> 20} MiB, download", [*download.DISCARD, big])
            shutil.rmtree(server.data / "p")
        peak = server.memory()
    peers.table(["phase", "s", "peak MiB so far"], rows, f"{options.size >> 20} MiB each, one server process")
    print(f"peak {peak:.0f} MiB, the goal is {LIMIT}: {'reached' if peak < LIMIT else 'MISSED'}")


if __name__ == "__main__":
    main()
