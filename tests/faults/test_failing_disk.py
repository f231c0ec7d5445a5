"""A disk that fails or is full: each system call of every operation with each error. The server says so and goes on."""

import os
import re
import subprocess
import sys
import time
from collections import Counter

import pytest
from support.common import ROOT, eventually, staged
from support.live import running
from support.tracing import CALLS, NO_EXCHANGE, calls_in, count_calls, points, strace, threads_of, verifying
from support.witness import Version, assert_knows, delete, fill, half_models, leftovers, patch, perform, post, put, send

OLD, NEW = Version(b"old " * 1000, "old"), Version(b"new!" * 1500, "new")
AMENDED = OLD._replace(description="amended")
KEY = "here/app/1/m"
OPERATIONS = {  # name: the version before, the request, the version after
    "publish": (None, post(KEY, NEW), NEW),
    "replace": (OLD, put(KEY, NEW), NEW),
    "delete": (OLD, delete(KEY), None),
    "amend": (OLD, patch(KEY, AMENDED), AMENDED),
}
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EMFILE", "EACCES")
FULL = ("ENOSPC", "EDQUOT")
# the call that failed is one that removes something, opens what is on the way to it, or tells what is mounted in it
CLEANING = re.compile(r"unlink|rmdir|openat\(.*(\.staging|[0-9a-f]{16}|/models|>, \"\d+|/mountinfo)\", O_RDONLY")


def reset(server, version):
    """Puts `version` where the tests look for it, as the next upload after a failure."""
    assert perform(server, delete(KEY)).status in (200, 404)
    if version:
        assert perform(server, put(KEY, version)).status == 201


def syncs(log):
    return sum(call == "fsync" and line.endswith("= 0") for _, call, line in calls_in(log))


def fail(server, log, request, before, after, synced, kind, call, when, error, *expressions):
    """What is wrong with how the server takes this failure, in words; the answer's status."""
    reset(server, before)
    with strace(log, [threads_of(server)[kind]], "trace=" + ",".join(CALLS),
                f"inject={call}:error={error}:when={when}", *expressions):
        answer = perform(server, request)
    injected = [line for _, _, line in calls_in(log) if f"{error} " in line and "INJECTED" in line]
    if not answer:
        return ["no answer"], "none"
    problems = []
    try:
        seen = assert_knows(server, KEY, before, after)
    except AssertionError as error:
        return [f"{answer.status} and {str(error).splitlines()[0]}"], answer.status
    log_lines = all("write(" in line and "<pipe:" in line for line in injected)   # the access log: fails nobody
    if answer.status in (200, 201):
        if seen != after:
            problems.append(f"{answer.status} and {seen} is there")
        if kind == "task" and syncs(log) < synced:
            problems.append(f"{answer.status} after {syncs(log)} fsyncs of {synced}")
        if injected and not log_lines and call in ("fsync", "write", "rename", "renameat", "mkdirat"):
            problems.append(f"{answer.status} though {call} failed")
    elif answer.status == 409 and "cannot be read" in answer.json["detail"] and error not in FULL:
        pass    # of this model, since the storage answers: no 5xx
    elif answer.status < 500 or set(answer.json) != {"detail"}:
        problems.append(f"{answer.status} {answer.body}")
    elif error in FULL and answer.status != 507:
        problems.append(f"{answer.status} for {error}")
    if half := half_models(server.storage):
        problems.append(f"half a model: {half}")
    if (left := leftovers(server.storage)) and not any(CLEANING.search(line) for line in injected):
        problems.append(f"left in staging: {left}")
    return problems, answer.status


def cases_of(counted, expressions):
    for kind, call, n in points(counted):
        if expressions and (kind != "task" or call == "renameat2"):
            continue
        yield from ((kind, call, str(n), error) for error in ERRORS)
        if call in ("fsync", "write"):    # and a disk that stays broken
            yield from ((kind, call, f"{n}+", error) for error in ("ENOSPC", "EIO"))


@pytest.mark.parametrize(("name", "expressions"), [
    *((name, ()) for name in OPERATIONS),
    ("replace", (NO_EXCHANGE,)),
], ids=[*OPERATIONS, "replace without exchange"])
def test_any_failing_call_is_a_refusal_and_nothing_is_lost(tmp_path, single, some, say, name, expressions):
    before, request, after = OPERATIONS[name]
    log, wrong, statuses = tmp_path / "strace.log", [], []
    server = single(tmp_path / "models")
    reset(server, OLD)
    assert perform(server, put("kept/app/1/m", OLD)).status == 201
    reset(server, before)
    counted = count_calls(server, log, lambda: perform(server, request), CALLS, *expressions)
    synced = syncs(log)
    assert synced >= 4
    cases = some(list(cases_of(counted, expressions)), 60)
    for case in cases:
        problems, status = fail(server, log, request, before, after, synced, *case, *expressions)
        statuses.append(status)
        wrong += [f"{' '.join(case)}: {problem}" for problem in problems]
        assert_knows(server, "kept/app/1/m", OLD)
        if leftovers(server.storage):  # what could not be removed is removed at the next start
            server.stop()
            server = single(tmp_path / "models")
            wrong += [f"{case}: {left} after a restart" for left in staged(server.storage)]
            reset(server, OLD)
    reset(server, OLD)
    assert_knows(server, KEY, OLD)
    say(f"{name}{' without exchange' if expressions else ''}: {len(cases)} failures injected, {len(wrong)} taken "
        f"wrongly, answers {dict(Counter(statuses))}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("act", [put, post])
def test_an_error_from_close_is_a_failed_upload(tmp_path, single, act, error):
    """NFS and quotas tell of a failed write as late as that."""
    server, log = single(tmp_path / "models"), tmp_path / "strace.log"
    reset(server, OLD)
    threads = threads_of(server)
    with strace(log, [threads["task"]], "trace=close"):
        perform(server, put("count/app/1/m", NEW))
    files = [n for n, (_, _, line) in enumerate(calls_in(log), 1) if re.search(r"/(model|metadata\.json)>", line)]
    drafts = [n for n in files if "/.staging/" in calls_in(log)[n - 1][2]]
    assert len(drafts) == 2, "the draft's model and its metadata"
    for n in drafts:
        with strace(log, [threads["task"]], "trace=close", f"inject=close:error={error}:when={n}"):
            answer = perform(server, act(KEY, NEW))
        assert "INJECTED" in log.read_text()
        assert answer.status == (500 if error == "EIO" else 507) and "detail" in answer.json
        assert_knows(server, KEY, OLD)
        assert staged(server.storage) == []


@pytest.mark.parametrize("act", [put, post])
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
def test_a_full_disk_takes_no_upload_until_something_is_deleted(small_disk, act, chunked):
    big, first, second = (Version(bytes([n]) * (5 << 20 if n == 0 else 1 << 20), f"v{n}") for n in range(3))

    def upload(key, version):
        method, target, body = act(key, version)
        return perform(server, (method, target, iter([body[:70_000], body[70_000:]]) if chunked else body))

    with running(small_disk) as server:
        assert upload("p/a/1/first", first).status == 201
        for _ in range(3):
            answer = upload("p/a/1/big", big)
            assert (answer.status == 507 and "full" in answer.json["detail"]) or "fit" in answer.json["detail"]
            assert staged(small_disk) == []
        assert upload("p/a/1/second", second).status == 201
        answer = upload("p/a/1/first", big)
        assert answer.status == 507
        assert_knows(server, "p/a/1/first", first)
        fill(small_disk / "filler")
        assert os.statvfs(small_disk).f_bavail == 0
        assert upload("p/a/1/none", Version(b"x", "tiny")).status == 507
        assert perform(server, patch("p/a/1/first", first._replace(description="x"))).status == 507
        assert_knows(server, "p/a/1/first", first)
        eventually(lambda: send(server, "GET", "/health").status == 503)
        assert perform(server, delete("p/a/1/first")).status == 200
        assert upload("p/a/1/third", first._replace(data=first.data[:-65_536])).status == 201
        assert_knows(server, "p/a/1/second", second)
        assert staged(small_disk) == [] and half_models(small_disk) == []


def test_an_empty_disk_of_no_space_can_still_be_served_and_deleted_from_after_a_restart(small_disk):
    """The start writes too: it must not refuse to serve what is there, or nothing could be deleted."""
    with running(small_disk) as server:
        assert perform(server, put("p/a/1/m", OLD)).status == 201
        server.stop()
    fill(small_disk / "filler")
    with running(small_disk) as server:
        assert_knows(server, "p/a/1/m", OLD)
        assert perform(server, delete("p/a/1/m")).status == 200
        assert perform(server, put("p/a/1/m", Version(b"x", "tiny"))).status == 201


@pytest.mark.parametrize("depth", [1, 4], ids=["a project", "a model"])
@pytest.mark.parametrize("kind", ["another file system", "a part of the same one"])
def test_a_mount_below_the_storage_is_served_and_refused_at_the_head(tmp_path, small_disk, kind, depth):
    source, place = tmp_path / "elsewhere", tmp_path / "models" / "/".join(KEY.split("/")[:depth])
    place.mkdir(parents=True)
    source.mkdir()
    subprocess.run(["mount", "--bind", small_disk if kind.startswith("another") else source, place], check=True)
    try:
        model = tmp_path / "models" / KEY
        model.mkdir(parents=True, exist_ok=True)
        (model / "model").write_bytes(OLD.data)
        with running(tmp_path / "models") as server:
            assert send(server, "GET", f"/models/{KEY}").body == OLD.data
            with server.connect() as wire:
                wire.send(f"PUT /models/{KEY} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
                status, _, body = wire.response()
            assert status == 403 and f"mounted at {place}" in body.decode(), body
            for act in (put(KEY, NEW), post(KEY, NEW), patch(KEY, OLD), delete(KEY)):
                answer = perform(server, act)
                assert answer.status == 403 and f"mounted at {place}" in answer.json["detail"], answer
            assert send(server, "GET", f"/models/{KEY}").body == OLD.data
            assert perform(server, put("other/app/1/m", NEW)).status == 201
            assert staged(server.storage) == []
            assert "Traceback" not in server.log()
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_lower_layer_of_an_overlay_is_served_and_what_is_above_is_changed(tmp_path):
    """As models that are part of an image, which a container without a volume has."""
    for name in (f"lower/{KEY}", "upper", "work", "models"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower" / KEY / "model").write_bytes(OLD.data)
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work,redirect_dir=off"
    if subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", tmp_path / "models"]).returncode:
        pytest.skip("no overlay to be had")
    try:
        with running(tmp_path / "models") as server:
            for act in (put(KEY, NEW), delete(KEY)):
                answer = perform(server, act)
                assert answer.status == 403 and "overlay" in answer.json["detail"], answer
            assert send(server, "GET", f"/models/{KEY}").body == OLD.data
            assert perform(server, patch(KEY, OLD)).status == 200
            new = KEY.replace("/1/", "/2/")
            statuses = [perform(server, act).status for act in (put(new, OLD), put(new, NEW), delete(new))]
            assert statuses == [201, 200, 200]
            assert staged(server.storage) == []
            assert "Traceback" not in server.log()
    finally:
        subprocess.run(["umount", tmp_path / "models"], check=True)


def test_a_staging_directory_on_a_mount_of_its_own_is_refused_at_the_start(tmp_path, small_disk):
    staging = tmp_path / "models/.staging"
    staging.mkdir(parents=True)
    subprocess.run(["mount", "--bind", small_disk, staging], check=True)
    try:
        ended = subprocess.run([sys.executable, ROOT / "model_server.py"], text=True, capture_output=True, timeout=30,
                               env={**os.environ, "MODEL_STORAGE_PATH": str(tmp_path / "models"), "SERVER_PORT": "0"})
        assert ended.returncode == 1 and f"{staging} is a mount of its own" in ended.stderr
    finally:
        subprocess.run(["umount", staging], check=True)


def remount(path, *options):
    return subprocess.run(["mount", "-o", ",".join(("remount", *options)), path], capture_output=True).returncode == 0


@pytest.mark.parametrize("first", ["rw", "ro"], ids=["started writable", "started read-only"])
def test_a_disk_is_mounted_read_only_and_writable_again_under_an_idle_server(small_disk, first):
    with running(small_disk) as server:
        assert perform(server, put(KEY, OLD)).status == 201
        server.stop()
    assert remount(small_disk, first)
    with running(small_disk) as server:
        for now in ("ro", "rw", "ro", "rw"):
            eventually(lambda now=now: remount(small_disk, now))    # while an answer is on its way it is busy
            known = send(server, "GET", "/health").json
            assert (known["status"], known.get("read_only", False)) == ("healthy", now == "ro")
            statuses = [perform(server, act).status for act in (put(KEY, NEW), patch(KEY, OLD), delete(KEY))]
            assert statuses == ([403] * 3 if now == "ro" else [200] * 3)
            if now == "rw":
                assert perform(server, put(KEY, OLD)).status == 201
            assert_knows(server, KEY, OLD)
        assert "Traceback" not in server.log()


def test_a_disk_without_inodes_is_said_to_be_one_and_served(tmp_path):
    path = tmp_path / "inodes"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=40", "inodes", path], check=True)
    try:
        model = path / KEY
        model.mkdir(parents=True)
        (model / "model").write_bytes(OLD.data)
        with running(path) as server:
            server.wait_for_log("no inode left")
            assert "chown" not in server.log() and "Traceback" not in server.log()
            assert send(server, "GET", f"/models/{KEY}").body == OLD.data
            assert "inode" in send(server, "GET", "/health").json["reason"]
            assert perform(server, put("p/a/1/m", OLD)).status == 507
            subprocess.run(["mount", "-o", "remount,nr_inodes=400", path], check=True)
            assert perform(server, put("p/a/1/m", OLD)).status == 201
            eventually(lambda: send(server, "GET", "/health").status == 200)
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_model_that_the_disk_cannot_read_is_corrupt_and_what_cannot_be_written_is_remembered(tmp_path):
    storage, large = tmp_path / "models", OLD._replace(data=bytes(1 << 20))
    with running(storage, MODEL_VERIFY_RATE="1M") as server:
        assert perform(server, put(KEY, large)).status == 201
        assert perform(server, put("kept/app/1/m", OLD)).status == 201
        with strace(tmp_path / "log", [verifying(server)], "trace=pread64,mkdirat",
                    "inject=pread64:error=EIO:when=1", "inject=mkdirat:error=ENOSPC"):
            while (now := send(server, "GET", "/verify").json)["running"]:
                time.sleep(0.01)
        assert (now["done_models"], now["corrupt"], now["error"]) == (2, [KEY], None)
        server.wait_for_log(f"{KEY} is corrupt: it cannot be read: Input/output error")
        server.wait_for_log(f"{KEY}: only this process knows the result")
        assert [x["corrupt"] for x in send(server, "GET", "/models/list").json["models"]] == [True, False]
        assert send(server, "GET", "/health").json["corrupt_models"] == 1
        assert send(server, "GET", f"/models/{KEY}").status == 409
        assert "Traceback" not in server.log()
        assert perform(server, put(KEY, large)).status == 200
        assert send(server, "GET", "/health").json["status"] == "healthy"
        assert send(server, "GET", "/models/kept/app/1/m/info").json["verified_at"]


@pytest.mark.parametrize("error", ["EBUSY", "ENOTEMPTY"])
def test_what_nfs_keeps_of_a_model_that_is_read_is_no_error_and_goes_when_the_server_stops(tmp_path, single, error):
    server = single(tmp_path / "models")
    reset(server, OLD)
    with strace(tmp_path / "log", [threads_of(server)["intake"]], "trace=unlinkat", f"inject=unlinkat:error={error}"):
        assert perform(server, put(KEY, NEW)).status == 200
        server.wait_for_log("somebody still reads ")
    assert staged(server.storage) != []
    assert_knows(server, KEY, NEW)
    assert server.stop() == 0
    assert staged(server.storage) == [] and " ERROR " not in server.log()
