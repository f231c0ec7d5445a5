"""Tars of many files and of large ones, on their way out: memory and descriptors stay where they were."""

import hashlib
import json
import re
import tarfile
import threading
from pathlib import Path

from support.common import eventually, sha256, sparse
from support.live import running
from support.tars import tar_with

from folders.tar_upload import AT_ONCE, SYNCED

MIB = 1 << 20


def plant(directory, data, known=True):
    directory.mkdir(parents=True)
    (directory / "model").write_bytes(data)
    if known:
        moment = "2026-01-01T00:00:00.000Z"
        said = {"size": len(data), "sha256": sha256(data), "uploaded_at": moment, "updated_at": moment}
        (directory / "metadata.json").write_text(json.dumps(said))


def peak(server):
    """The most memory a server has ever had, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1])


def test_10000_files_come_as_one_tar_in_little_memory(tmp_path, http, say):
    files = {f"d{number // 200}/f{number % 200:03}": b"%d" % number * 50 for number in range(10_000)}
    for name, data in files.items():
        plant(tmp_path / "models/p/a/1" / name, data)
    with running(tmp_path / "models") as server:
        http.get(f"{server.url}/models/p/a/1?limit=1")
        before = peak(server)
        with http.get(f"{server.url}/models/p/a/1?format=tar", stream=True) as got, \
                tarfile.open(fileobj=got.raw, mode="r|") as tar:
            found = {member.name: tar.extractfile(member).read() for member in tar}
        assert found == files
        say(f"a tar of 10,000 files: {(peak(server) - before) / MIB:.0f} MiB of memory")
        assert peak(server) - before < 64 * MIB
        total = int(got.headers["Content-Length"])
        middle = f"bytes={total // 2}-{total // 2}"
        middle = http.get(f"{server.url}/models/p/a/1?format=tar", headers={"Range": middle})
        assert (middle.status_code, len(middle.content)) == (206, 1)


def test_readers_of_large_files_cost_neither_memory_nor_descriptors(tmp_path, http, say):
    for number in range(8):
        plant(tmp_path / f"models/p/a/1/shard-{number}", b"", known=False)
        sparse(tmp_path / f"models/p/a/1/shard-{number}/model", 128 * MIB)
    with running(tmp_path / "models") as server:
        before, most = peak(server), []
        whole = int(http.head(f"{server.url}/models/p/a/1?format=tar").headers["Content-Length"])
        idle = server.descriptors()

        def read():
            with server.connect(timeout=120) as wire:
                wire.send("GET /models/p/a/1?format=tar HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert wire.head()[0] == 200
                digest, length = hashlib.sha256(), 0
                while block := wire.file.read(4 * MIB):
                    length += len(block)
                    digest.update(block[:4096])
                    most.append(server.descriptors())
                read.lengths.append(length)

        read.lengths = []
        readers = [threading.Thread(target=read) for _ in range(4)]
        [reader.start() for reader in readers]
        [reader.join() for reader in readers]
        assert read.lengths == [whole] * 4
        say(f"4 tars of {whole >> 30} GiB: {(peak(server) - before) / MIB:.0f} MiB of memory, at most "
            f"{max(most) - idle} descriptors more")
        assert peak(server) - before < 16 * MIB and max(most) - idle <= 3 * 4


def test_many_small_files_going_up_cost_few_descriptors_and_little_memory(tmp_path, http, say):
    files = {f"d{number // 200}/f{number % 200:03}": b"%d" % number * 50 for number in range(2000)}
    with running(tmp_path / "models") as server:
        http.put(f"{server.url}/models/p/a/0", data=tar_with({"warm": b""}))
        before, idle, most, done = peak(server), server.descriptors(), [], threading.Event()

        def watch():
            while not done.wait(0.005):
                most.append(server.descriptors())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            assert http.put(f"{server.url}/models/p/a/1", data=tar_with(files)).status_code == 201
        finally:
            done.set()
            watcher.join()
        say(f"2,000 files up: {(peak(server) - before) / MIB:.0f} MiB of memory, {max(most) - idle} descriptors")
        assert max(most) - idle <= 3 * (AT_ONCE + SYNCED) and peak(server) - before < 32 * MIB
        eventually(lambda: server.descriptors() <= idle + 2)
