"""Uploads that are kept: kill -9 and failures at the system calls of each step, and many clients on one of them."""

import os
import random
import re
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from support.common import eventually, sha256, staged
from support.live import running, several
from support.raw import head
from support.tracing import NO_EXCHANGE, calls_in, count_calls, points, strace, threads_of
from support.witness import Version, assert_knows, attempt, half_models, listed, perform, put, send

CALLS = ("openat", "write", "pwrite64", "fsync", "ftruncate", "renameat", "renameat2", "unlinkat", "mkdirat", "rmdir",
         "sendto")
DATA, MIDDLE = os.urandom(600_000), 400_001
OLD = Version(b"old " * 1000, "old")


def target(key):
    return f"/models/{key}/upload?sha256={sha256(DATA)}&description=new&stage=test"


def part(server, key, start, end=None, more=False):
    headers = {"Upload_Offset": str(start), **({"Upload_Complete": "?0"} if more else {})}
    return attempt(server, "PUT", target(key), DATA[start:end], **headers)


def offset(server, key):
    return send(server, "GET", target(key)).json


STEPS = {   # name: what was done before, the step
    "begin": (lambda server, key: None, lambda server, key: part(server, key, 0, MIDDLE, more=True)),
    "continue": (lambda server, key: part(server, key, 0, MIDDLE, more=True),
                 lambda server, key: part(server, key, MIDDLE, 500_000, more=True)),
    "finish": (lambda server, key: part(server, key, 0, MIDDLE, more=True),
               lambda server, key: part(server, key, MIDDLE)),
    "delete": (lambda server, key: part(server, key, 0, MIDDLE, more=True),
               lambda server, key: attempt(server, "DELETE", target(key))),
}


def go_on(server, key):
    """Continues the upload as the line of shell does; returns what it began with."""
    here = offset(server, key)
    assert 0 <= here <= len(DATA)
    answer = part(server, key, here)
    assert answer.status in (200, 201), (here, answer)
    assert_knows(server, key, Version(DATA, "new"))
    return here


@pytest.mark.parametrize(("name", "replacing", "expressions"), [
    *((name, replacing, ()) for name in STEPS for replacing in (False, True)),
    ("finish", True, (NO_EXCHANGE,)),
], ids=[*(f"{name}-{way}" for name in STEPS for way in ("new", "replacing")), "finish-without exchange"])
def test_a_crash_at_any_system_call_leaves_what_can_be_continued(tmp_path, single, some, say, name, replacing,
                                                                 expressions):
    """What had been acknowledged before is never lost, nor is an old model continued as if it were the draft."""
    before, step = STEPS[name]
    storage, log, lost = tmp_path / "models", tmp_path / "strace.log", 0
    server = single(storage)

    def prepare(key):
        if replacing:
            assert perform(server, put(key, OLD)).status == 201
        before(server, key)

    prepare("count/app/1/m")
    counted = count_calls(server, log, lambda: step(server, "count/app/1/m"), CALLS, *expressions)
    cases = [case for case in points(counted) if not expressions or (case[0] == "task" and case[1] != "renameat2")]
    cases = some(cases, 12, always=lambda case: case[1] in ("renameat", "renameat2", "ftruncate"))
    for number, (kind, call, n) in enumerate(cases):
        key = f"n{number}/app/1/m"
        prepare(key)
        with strace(log, [threads_of(server)[kind]], "trace=" + ",".join(CALLS), f"inject={call}:signal=KILL:when={n}",
                    *expressions):
            answer = step(server, key)
            time.sleep(0.05 if answer else 0)
        server.stop(signal.SIGKILL)
        server = single(storage)
        where = f"killed at {call} {n} of the {kind} thread, {answer and answer.status}"
        assert half_models(storage) == [], where
        if replacing and not (answer and name == "finish"):
            assert_knows(server, key, OLD, Version(DATA, "new"))
        assert send(server, "DELETE", f"/models/other/app/1/m/upload?sha256={sha256(DATA)}").status == 204
        here = go_on(server, key)
        assert here >= MIDDLE or name in ("begin", "delete"), where
        lost += here == 0
        assert send(server, "DELETE", f"/models/{key}").status == 200
    assert send(server, "DELETE", target("count/app/1/m")).status == 204
    assert staged(storage) == []
    say(f"{name}: {len(cases)} crashes of {sum(counted.values())} calls, {lost} of them began again")


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", ["begin", "continue", "finish"])
def test_a_failing_call_is_a_refusal_and_the_upload_can_be_sent_again(tmp_path, single, some, name, error):
    before, step = STEPS[name]
    server, log, statuses = single(tmp_path / "models"), tmp_path / "strace.log", Counter()
    before(server, "count/app/1/m")
    calls = tuple(call for call in CALLS if call != "sendto")
    counted = count_calls(server, log, lambda: step(server, "count/app/1/m"), calls)
    for number, (kind, call, n) in enumerate(some(points(counted), 10)):
        key = f"n{number}/app/1/m"
        before(server, key)
        inject = f"inject={call}:error={error}:when={n}"
        with strace(log, [threads_of(server)[kind]], "trace=" + ",".join(calls), inject):
            answer = step(server, key)
        assert answer is not None, (call, n)
        statuses[answer.status] += 1
        if answer.status not in (200, 201):
            go_on(server, key)
    assert half_models(server.storage) == []
    assert set(statuses) <= {200, 201, 204, 409, 500, 503, 507}, statuses


EXPIRING = {"MODEL_UPLOAD_AGE": "1h"}


def old_upload(storage, key):
    """Begins an upload whose last byte came two hours ago; returns the start of a command that traces its removal."""
    with running(storage) as server:
        assert part(server, key, 0, MIDDLE, more=True).status == 204
    uploads = storage / ".staging/uploads"
    lock, = uploads.glob("*.lock")
    places = [uploads, lock, lock.with_suffix(""), lock.with_suffix("") / "model"]
    for place in places:
        os.utime(place, (0, time.time() - 7200))
    return ["strace", "-D", "-f", "-qq", "-o", str(storage.with_suffix(".log")), *(f"-P{place}" for place in places)]


def removals(tmp_path):
    """Every (call, n) of the thread that removes an old upload, in the order of the calls."""
    storage = tmp_path / "count"
    traced = [*old_upload(storage, "p/app/1/m"), "-e", "trace=" + ",".join(EXPIRY)]
    with running(storage, *traced, **EXPIRING):
        eventually(lambda: staged(storage) == [])
    counted = Counter()
    for thread, call, _ in calls_in(storage.with_suffix(".log")):
        counted[thread, call] += 1
        yield call, counted[thread, call]


EXPIRY = ("openat", "ftruncate", "unlinkat", "fstat", "newfstatat", "flock", "pread64")


def test_a_crash_at_any_system_call_of_the_removal_of_an_old_upload_leaves_it_or_nothing(tmp_path, some, say):
    storage, heres = tmp_path / "models", Counter()
    cases = some(list(removals(tmp_path)), 8, always=lambda case: case[0] in ("ftruncate", "unlinkat"))
    for call, n in cases:
        traced = [*old_upload(storage, "p/app/1/m"), "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={n}"]
        with pytest.raises((AssertionError, pytest.fail.Exception)), running(storage, *traced, **EXPIRING) as server:
            server.process.wait(20)
            assert server.stop() == 0, "it was killed"
        with running(storage) as server:
            heres[go_on(server, "p/app/1/m")] += 1
            assert send(server, "DELETE", "/models/p/app/1/m").status == 200
            eventually(lambda: staged(storage) == [])
    assert set(heres) <= {0, MIDDLE}
    say(f"expiry: {len(cases)} crashes, continued from {dict(heres)}")


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_of_an_old_upload_that_cannot_be_removed_the_log_tells_and_the_next_start_removes_it(tmp_path, some, error):
    storage = tmp_path / "models"
    for call, n in some([case for case in removals(tmp_path) if case[0] not in ("flock", "pread64")], 4):
        inject = ("-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={n}")
        with running(storage, *old_upload(storage, "p/app/1/m"), *inject, **EXPIRING) as server:
            eventually(lambda: staged(storage) == [] or re.search("cannot remove|failed and goes on", server.log()))
            # the call can fail for the thread that answers, too
            assert send(server, "GET", target("p/app/1/m")).status in (200, 500, 507), (call, n)
        with running(storage, **EXPIRING):
            eventually(lambda: staged(storage) == [])


@pytest.fixture
def servers(tmp_path):
    """Two servers on one storage directory."""
    with several(2, tmp_path / "models") as started:
        yield started


def assert_clean(servers):
    """On NFS, a file that is removed while it is open stays, with another name; the log says so."""
    storage, lines = servers[0].storage, [line for server in servers for line in server.lines]
    on_nfs = any(".nfs" in line for line in lines)
    eventually(lambda: not [path for path in staged(storage) if not on_nfs or (storage / ".staging" / path).is_file()])
    assert [line for line in lines if re.search("Traceback| ERROR ", line) and ".nfs" not in line] == []


def test_of_16_clients_on_one_upload_all_get_there(servers, say):
    """Each continues from what it is told, as the line of shell does, at two servers."""
    data, tries = os.urandom(24 << 20), Counter()
    url = f"/models/p/app/1/m/upload?sha256={sha256(data)}"

    def upload(n):
        server, chance, until = servers[n % 2], random.Random(n), time.monotonic() + 120
        while time.monotonic() < until:
            answer = attempt(server, "GET", url)
            here = answer.json if answer else 0
            # no copy: in User Mode Linux a process has 256 MiB, see deploy/prove_scaling_nfs.sh
            done = attempt(server, "PUT", url, memoryview(data)[here:], Upload_Offset=str(here))
            tries[done and done.status] += 1
            if done and done.status in (200, 201):
                return
            assert done is None or done.status == 409, done
            time.sleep(chance.random() * 0.3)
        raise AssertionError("it never got there")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(upload, range(16)))
    assert send(servers[1], "GET", "/models/p/app/1/m").body == data
    assert listed(servers[0]) == {"p/app/1/m"}
    assert_clean(servers)
    say(f"16 clients at two servers: {dict(tries)}")


def test_as_many_uploads_as_connections_are_continued_at_once_where_few_files_may_be_open(tmp_path):
    with running(tmp_path / "models", "bash", "-c", 'ulimit -n 256; exec "$@"', "-") as server, ExitStack() as stack:
        most = int(re.search("only ([0-9]+) connections at once", server.log())[1]) - 4     # the server's own
        urls = [f"/models/p/app/1/m{n}/upload?sha256={sha256(DATA)}" for n in range(most)]
        for url in urls:
            assert send(server, "PUT", url, DATA[:MIDDLE], Upload_Offset="0", Upload_Complete="?0").status == 204
        wires = [stack.enter_context(server.connect()) for _ in urls]
        for url, wire in zip(urls, wires, strict=True):
            wire.send(head(f"PUT {url}", f"Upload-Offset: {MIDDLE}", f"Content-Length: {len(DATA) - MIDDLE}"),
                      DATA[MIDDLE:-1])
        eventually(lambda: server.descriptors() > 4 * most)
        for wire in wires:
            wire.send(DATA[-1:])
        assert Counter(wire.response()[0] for wire in wires) == {201: most}
        assert "Traceback" not in server.log()


def test_what_one_server_has_of_an_upload_the_other_continues_and_the_newest_writer_wins(servers):
    data = os.urandom(12 << 20)
    url, length = f"/models/p/app/1/m/upload?sha256={sha256(data)}", f"Content-Length: {len(data)}"
    with servers[0].connect(60) as first:
        first.send(head(f"PUT {url}", "Upload-Offset: 0", length), data[:6 << 20])
        eventually(lambda: send(servers[1], "GET", url).json >= 4 << 20)
        here = send(servers[1], "GET", url).json
        answer = send(servers[1], "PUT", url, data[here:10 << 20], Upload_Offset=str(here), Upload_Complete="?0")
        assert (answer.status, answer.headers["upload-offset"]) == (204, str(10 << 20))
        first.send(os.urandom(1 << 20))
        assert first.file.read() == b"", "the connection is closed"
    assert [send(server, "GET", url).json for server in servers] == [10 << 20] * 2
    assert send(servers[0], "PUT", url, data[10 << 20:], Upload_Offset=str(10 << 20)).status == 201
    for server in servers:
        assert send(server, "GET", "/models/p/app/1/m").body == data
    assert_clean(servers)


def test_when_a_server_dies_the_other_one_continues_its_uploads(servers, say):
    """In the middle of one, and at the end of another one, while that replaces a model."""
    data, key, heres = os.urandom(12 << 20), "p/app/1/m", []
    url = f"/models/p/app/1/large/upload?sha256={sha256(data)}"
    assert perform(servers[1], put(key, OLD)).status == 201
    assert part(servers[0], key, 0, MIDDLE, more=True).status == 204
    with servers[0].connect(60) as wire, ThreadPoolExecutor(1) as pool:
        wire.send(head(f"PUT {url}", "Upload-Offset: 0", f"Content-Length: {len(data)}"), data[:6 << 20])
        eventually(lambda: send(servers[1], "GET", url).json >= 4 << 20)
        end = pool.submit(part, servers[0], key, MIDDLE)
        time.sleep(random.random() * 0.2)
        servers[0].stop(signal.SIGKILL)
        end.result()
    assert_knows(servers[1], key, OLD, Version(DATA, "new"))
    heres.append(go_on(servers[1], key))
    heres.append(send(servers[1], "GET", url).json)
    assert heres[0] >= MIDDLE and heres[1] >= 4 << 20
    assert send(servers[1], "PUT", url, data[heres[1]:], Upload_Offset=str(heres[1])).status == 201
    assert send(servers[1], "GET", "/models/p/app/1/large").body == data
    say(f"after the death of a server the other one continued from {heres}")
