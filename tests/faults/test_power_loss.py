"""The power fails, really: ext4 on a loop device is shut down in the middle of the work, what was not synced is gone.

`xfs_io -x -c shutdown` stops the file system without writing its journal; with -f the journal is written and the data
are not, which finds files that have a name and no content.
"""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from support.common import ROOT, eventually, sha256
from support.disk import Disk
from support.ledger import Ledger
from support.live import running
from support.raw import head
from support.tracing import count_calls, points, strace, threads_of
from support.versions import put_version, stored
from support.witness import Version, assert_knows, assert_whole, attempt, perform, put, send

from storage import Storage

pytestmark = pytest.mark.power
SIZES = (0, 100, 5_000, 70_000, 300_000)
SHUTDOWNS = ("shutdown", "shutdown -f")
LISTS = """
import random, sys, threading
from pathlib import Path
from repository import tree_index
from repository.model import ModelKey
from storage import Storage
from support.common import app_of

tree_index.REMEMBERED, tree_index.REMEMBERED_EVERY, tree_index.REMEMBERED_SHARE, tree_index.RACY = 1, 0.0, 0, 0.05
with Storage(Path(sys.argv[1])) as store:
    app = app_of(store)
    threading.Thread(target=store.index.watch, daemon=True).start()
    while True:
        model = f"/models/p/a{random.randrange(5)}/{random.randrange(5)}/m{random.randrange(5)}"
        app.put(f"{model}?description={random.random()}", random.randbytes(100))
        app.delete(model) if random.random() < 0.3 else app.get("/models/list")
        store.index._write()
        print("wrote", flush=True)
"""


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


@pytest.mark.parametrize("how", SHUTDOWNS)
def test_after_a_power_cut_what_was_kept_of_the_tree_changes_no_list(disk, count, say, how):
    took_over = 0
    for _ in range(count(3, 30)):
        with disk.mounted() as storage:
            environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
            with subprocess.Popen([sys.executable, "-c", LISTS, storage], env=environment, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                for _ in range(random.randrange(20, 60)):
                    process.stdout.readline()
                os.sync()
                for _ in range(random.randrange(1, 20)):
                    process.stdout.readline()
                disk.cut_power(how)
                process.kill()
        with disk.mounted() as storage:
            took_over += takes_over(storage)
            gc.collect()    # a store keeps its directory open, which would prevent the unmount
    assert took_over
    say(f"{took_over} indices of a time before a power cut ({how}) were taken over, and changed no list")


def takes_over(storage):
    """Whether anything is taken over from .staging/index; if so, it must not make a difference."""
    with Storage(storage) as store:
        store.index.remember()
        known = store.index._recalled.models
        models, total = [batch.lines for batch in store.lines(())], store.index.total()
    with suppress(FileNotFoundError):
        (storage / ".staging/index").unlink()
    with Storage(storage) as store:
        assert [batch.lines for batch in store.lines(())] == models
        assert store.index.total() == total
    return known is not None
