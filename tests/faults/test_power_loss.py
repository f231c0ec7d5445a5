"""The power fails, really: ext4 on a loop device is shut down in the middle of the work, what was not synced is gone.

`xfs_io -x -c shutdown` stops the file system without writing its journal; with -f the journal is written and the data
are not, which finds files that have a name and no content.
"""

import os
import random
import shutil
import signal
import subprocess
import threading
import time

import pytest
from support.common import eventually, sha256
from support.disk import Disk
from support.ledger import Ledger
from support.live import running
from support.raw import head
from support.tracing import count_calls, points, strace, threads_of
from support.versions import put_version, stored
from support.witness import Version, assert_knows, assert_whole, attempt, perform, put, send

pytestmark = pytest.mark.power
SIZES = (0, 100, 5_000, 70_000, 300_000)
SHUTDOWNS = ("shutdown", "shutdown -f")


@pytest.fixture(scope="module")
def can_cut_power(tmp_path_factory):
    """Skips where there are no loop devices, or no way to shut a file system down."""
    try:
        disk = Disk(tmp_path_factory.mktemp("probe"))
        with disk.mounted():
            disk.cut_power("shutdown")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop device, no ext4 or no shutdown here: {getattr(error, 'stderr', '') or error}")


@pytest.fixture
def disk(can_cut_power, tmp_path):
    return Disk(tmp_path)


def lose_power(disk, ledger, seed, how, *prefix):
    """One round: clients at work, the power goes, the next start. How many changes were acknowledged, what is lost.

    Every other time it goes just after the last answer, before another change's fsync can save what this one forgot.
    """
    moments = random.Random(seed)
    with disk.mounted() as storage, running(storage, *prefix) as server:
        def cut(workers):
            while sum(worker.acknowledged for worker in workers) < 10:
                time.sleep(0.001)
            time.sleep(moments.random() * 0.7)
            if moments.random() < 0.5:
                for worker in workers:
                    worker.enough.set()
                    worker.join(60)
            disk.cut_power(how)

        changes = ledger.disturb(server, 4, SIZES, cut, seed)
        server.stop(signal.SIGKILL)
    with disk.mounted() as storage, running(storage) as server:
        losses = ledger.losses(server)
        if not losses:
            assert_whole(server)
        server.stop()
    return changes, losses


@pytest.mark.parametrize("how", SHUTDOWNS)
def test_a_power_cut_loses_nothing_that_was_acknowledged(disk, count, say, how):
    rounds, ledger, seed, changes = count(2, 15), Ledger(), random.randrange(10**9), 0
    begun = time.monotonic()
    for number in range(rounds):
        acknowledged, losses = lose_power(disk, ledger, f"{seed} {number}", how)
        assert losses == [], f"round {number} of seed {seed}"
        changes += acknowledged
    say(f"{rounds} power cuts ({how}), {changes} acknowledged changes, none lost, {time.monotonic() - begun:.0f} s")


@pytest.mark.parametrize("how", SHUTDOWNS)
def test_a_power_cut_right_after_the_answer_leaves_an_alias_where_it_was_moved(disk, count, how):
    def point(server, method, version=""):
        query = f"?version={version}" if version else ""
        assert send(server, method, f"/models/p/a/@production{query}", b"").status in (200, 201)

    def pointing(server):
        return send(server, "GET", "/models/p/a").json["aliases"]

    for number in range(count(1, 10)):
        with disk.mounted() as storage, running(storage) as server:
            for version in ("1", "2"):
                assert send(server, "PUT", f"/models/p/a/{version}/m", b"model").status in (200, 201)
            point(server, "PUT", "1")
            if number % 2 == 0:
                point(server, "PUT", "2")
            disk.cut_power(how)
            server.stop(signal.SIGKILL)
        with disk.mounted() as storage, running(storage) as server:
            assert pointing(server) == {"@production": "12"[number % 2 == 0]}
            point(server, "DELETE")
            disk.cut_power(how)
            server.stop(signal.SIGKILL)
        with disk.mounted() as storage, running(storage) as server:
            assert pointing(server) == {}
            server.stop()


@pytest.mark.parametrize("how", SHUTDOWNS)
def test_a_power_cut_leaves_a_version_that_was_acknowledged_or_the_next_one_whole(disk, count, say, how):
    rounds, last, moments, versions = count(3, 30), 0, random.Random(), 0
    for _ in range(rounds):
        with disk.mounted() as storage, running(storage) as server:
            cut = threading.Timer(0.1 + moments.random() * 0.8, disk.cut_power, [how])
            cut.start()
            tried = last + 1
            while (answer := put_version(server, "p/app/1", tried)) and answer.status in (200, 201):
                last, tried, versions = tried, tried + 1, versions + 1
            cut.join()
            server.stop(signal.SIGKILL)
        with disk.mounted() as storage, running(storage) as server:
            found = stored(server, "p/app/1")
            assert found in (last or None, tried), f"{last} was acknowledged, and {found} is there"
            last = found or 0
            assert_whole(server)
            server.stop()
    say(f"{rounds} power cuts ({how}), {versions} versions acknowledged, none lost")


@pytest.mark.parametrize("how", SHUTDOWNS)
def test_without_fsync_the_same_test_finds_losses(disk, say, how):
    """The control: eatmydata makes fsync do nothing."""
    assert shutil.which("eatmydata"), "the package eatmydata is not installed"
    ledger, seed = Ledger(), random.randrange(10**9)
    for number in range(5):
        acknowledged, losses = lose_power(disk, ledger, f"{seed} {number}", how, "eatmydata")
        if losses:
            say(f"control without fsync ({how}): {len(losses)} models lost in round {number + 1}, of "
                f"{acknowledged} changes")
            return
    raise AssertionError("five rounds without fsync lost nothing: this test finds nothing")


@pytest.mark.parametrize("how", SHUTDOWNS)
def test_after_a_power_cut_an_upload_continues_with_what_had_reached_the_disk(disk, count, say, how):
    heres = []
    for _ in range(count(2, 15)):
        data = os.urandom(24 << 20)
        url, sent = f"/models/p/app/1/m/upload?sha256={sha256(data)}", random.randrange(10 << 20, 20 << 20)
        with disk.mounted() as storage, running(storage) as server:
            with server.connect() as wire:
                wire.send(head(f"PUT {url}", "Upload-Offset: 0", f"Content-Length: {len(data)}"), data[:sent])
                eventually(lambda server=server, url=url: send(server, "GET", url).json > 8 << 20)
                disk.cut_power(how)
            server.stop(signal.SIGKILL)
        with disk.mounted() as storage, running(storage) as server:
            heres.append(send(server, "GET", url).json)
            assert heres[-1] <= sent
            answer = send(server, "PUT", url, data[heres[-1]:], Upload_Offset=str(heres[-1]))
            assert answer.status in (200, 201), answer
            assert send(server, "GET", "/models/p/app/1/m").body == data
            server.stop()
    say(f"{len(heres)} power cuts ({how}) during uploads, continued from {heres}")


@pytest.mark.parametrize("how", SHUTDOWNS)
def test_a_power_cut_while_an_upload_replaces_a_model_loses_nothing_of_it(disk, single, tmp_path, some, say, how):
    """At a system call that the server was killed at, so that it has synced all that comes before, and no more."""
    data, log, here = os.urandom(600_000), tmp_path / "strace.log", 400_001
    old, new = Version(b"old " * 1000, "old"), Version(data, "new")
    url = f"/models/p/app/1/m/upload?sha256={sha256(data)}&description=new&stage=test"

    def finish(server, start):
        return attempt(server, "PUT", url, data[start:], Upload_Offset=str(start))

    def prepare(server):
        assert perform(server, put("p/app/1/m", old)).status in (200, 201)
        assert send(server, "PUT", url, data[:here], Upload_Offset="0", Upload_Complete="?0").status == 204

    calls = ("fsync", "renameat", "renameat2", "unlinkat", "ftruncate")
    with disk.mounted() as storage:
        server = single(storage)
        prepare(server)
        counted = count_calls(server, log, lambda: finish(server, here), calls)
        server.stop()
    cases = some(points(counted), 6, always=lambda case: case[1] in ("renameat", "renameat2", "ftruncate"))
    for kind, call, n in cases:
        with disk.mounted() as storage:
            server = single(storage)
            prepare(server)
            with strace(log, [threads_of(server)[kind]], f"trace={','.join(calls)}",
                        f"inject={call}:signal=KILL:when={n}"):
                answer = finish(server, here)
            disk.cut_power(how)
            server.stop(signal.SIGKILL)
        with disk.mounted() as storage:
            server, where = single(storage), f"{call} {n} of the {kind} thread"
            assert_knows(server, "p/app/1/m", *(() if answer else (old,)), new)
            start = send(server, "GET", url).json
            assert start >= here, where
            assert finish(server, start).status == 200, where
            assert_knows(server, "p/app/1/m", new)
            server.stop()
    say(f"{len(cases)} power cuts ({how}) while an upload replaced a model")
