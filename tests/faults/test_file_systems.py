"""Uploads that need no bytes, on file systems that clone files, that link them, and that can do neither."""

import os

import pytest
from faults.test_folding_mount import folding
from support.common import eventually, sha256, staged
from support.disk import Disk, skip_without
from support.live import running
from support.witness import send

DATA = os.urandom(32 << 20)
SOURCE, TARGET = "/models/source/app/1/m", "/models/p/app/1/m"


def target(model=TARGET):
    return f"{model}/upload?sha256={sha256(DATA)}"


def free(place):
    os.sync()
    status = os.statvfs(place)
    return status.f_bfree * status.f_frsize


@pytest.mark.parametrize(("kind", "way"), [
    pytest.param("xfs", "clone", marks=pytest.mark.needs("mkfs.xfs")),
    pytest.param("xfs without clones", "link", marks=pytest.mark.needs("mkfs.xfs")),
    pytest.param("btrfs", "clone", marks=pytest.mark.needs("mkfs.btrfs")),
    ("ext4", "link"),
])
def test_an_upload_that_needs_no_bytes_takes_no_room(tmp_path, kind, way):
    disk = Disk(tmp_path, kind)
    skip_without(disk)
    with disk.mounted() as storage, running(storage) as server:
        assert send(server, "PUT", SOURCE, DATA).status == 201
        eventually(lambda: send(server, "GET", target()).json == len(DATA))
        before = free(storage)
        answer = send(server, "PUT", target() + "&stage=prod", b"", Upload_Offset=str(len(DATA)))
        assert (answer.status, answer.json["sha256"], answer.json["metadata"]) == (201, sha256(DATA), {"stage": "prod"})
        assert before - free(storage) < 8 << 20, "it has not been copied"
        source, model = ((storage / name.removeprefix("/models/") / "model") for name in (SOURCE, TARGET))
        assert source.samefile(model) == (way == "link")
        assert model.stat().st_nlink == (2 if way == "link" else 1)
        server.wait_for_log("verified source/app/1/m: 1 model")
        if way == "clone":      # one of them decays, and the other one does not
            with model.open("r+b") as file:
                file.write(bytes(100))
            assert sha256(source.read_bytes()) == sha256(DATA)
        assert send(server, "DELETE", SOURCE).status == 200
        assert way == "clone" or sha256(model.read_bytes()) == sha256(DATA)
        assert staged(storage) == [] and "Traceback" not in server.log()
        server.stop()


@pytest.mark.needs("mkfs.xfs", "mkfs.btrfs")
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_clone_may_replace_what_is_newer_and_the_date_goes_on(tmp_path, kind):
    disk = Disk(tmp_path, kind)
    skip_without(disk)
    with disk.mounted() as storage, running(storage) as server:
        assert send(server, "PUT", SOURCE, DATA).status == 201
        os.utime(storage / SOURCE.removeprefix("/models/") / "model", (10**9, 10**9))
        assert send(server, "PUT", TARGET, b"newer").status == 201
        dates = [send(server, "GET", f"{TARGET}/info").json["updated_at"]]
        eventually(lambda: send(server, "GET", target()).json == len(DATA))
        before = (storage / TARGET.removeprefix("/models/") / "model").stat().st_mtime_ns
        answer = send(server, "PUT", target(), b"", Upload_Offset=str(len(DATA)))
        assert answer.status == 200 and sha256(send(server, "GET", TARGET).body) == sha256(DATA)
        assert (storage / TARGET.removeprefix("/models/") / "model").stat().st_mtime_ns >= before
        assert answer.json["updated_at"] >= dates[0]
        server.stop()


@pytest.mark.needs("a file system in user space")
def test_where_files_can_be_neither_cloned_nor_linked_the_bytes_are_sent(tmp_path):
    with folding(tmp_path / "below", tmp_path / "models") as storage, running(storage) as server:
        assert send(server, "PUT", SOURCE, DATA).status == 201
        assert send(server, "GET", target()).json == 0
        answer = send(server, "PUT", target(), b"", Upload_Offset=str(len(DATA)))
        assert (answer.status, answer.headers["upload-offset"]) == (409, "0")
        assert send(server, "PUT", target(), DATA, Upload_Offset="0").status == 201
        assert staged(storage) == [] and "Traceback" not in server.log()
        server.stop()
