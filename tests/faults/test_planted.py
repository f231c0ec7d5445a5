"""Links, files and fifos in place of what the server has below .staging: nothing they lead to is touched."""

import os
import shutil
import signal
import subprocess
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.common import ROOT, eventually, sha256
from support.live import LiveServer
from support.sandbox import is_inside
from support.tars import tar_with
from support.tracing import NO_EXCHANGE, WITHOUT_EXCHANGE
from support.witness import Version, assert_knows, delete, patch, perform, put, send

OLD, NEW = Version(b"old " * 1000, "old"), Version(b"new!" * 1500, "new")
KEPT, KEY, BAD = "kept/app/1/m", "here/app/1/m", "bad/app/1/m"
DEAD = "0123456789abcdef"   # the session of a process that is no more
STRIPE = f"locks/{zlib.crc32(KEY.encode()) % 64:02}"
NO_OPENAT2 = (*WITHOUT_EXCHANGE[:-3], "trace=renameat2,openat2", "-e", NO_EXCHANGE, "-e", "inject=openat2:error=ENOSYS")
PLACES = [".", "locks", STRIPE, "replaced", "replaced/here", f"replaced/{KEY}", "corrupt", "corrupt/bad",
          f"corrupt/{BAD}", "start.lock", "{session}", "{session}.lock", DEAD, f"{DEAD}.lock"]
KINDS = ["link to a directory", "link to a file", "link to nothing", "file", "fifo"]


def wrapper(directory, *prefix):
    return ("unshare", "-m", sys.executable, str(ROOT / "tests/support/sandbox.py"), str(directory), *prefix)


def everything(path):
    """What is below a directory, with what tells whether it was touched."""
    found = {}
    for place, directories, names in os.walk(path):
        for name in (".", *directories, *names):
            status = Path(place, name).lstat()
            found[f"{place}/{name}"] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture
def around(tmp_path):
    """A directory that is like .staging inside, but nobody's business, beside the storage."""
    directory = tmp_path.resolve() / "around"
    for name in ("outside/notes", "outside/start.lock", f"outside/{DEAD}/1/model", f"outside/{DEAD}.lock",
                 *(f"outside/locks/{number:02}" for number in range(64)),
                 *(f"outside/{place}/{key}/{name}" for place in ("replaced", "corrupt") for key in (KEY, BAD)
                   for name in ("model", "metadata.json")),
                 *(f"outside/{key}/{name}" for key in (KEY, BAD) for name in ("model", "metadata.json")),
                 *(f"outside/app/1/m/{name}" for name in ("model", "metadata.json"))):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("{}")
    return directory


@contextmanager
def planted(around, place, kind):
    """Puts something in a place below .staging for a while; what was there is put back."""
    path = Path(os.path.normpath(around / "models/.staging" / place))
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    if had := os.path.lexists(path):
        path.rename(around / "had")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "file":
        path.write_text("{}")
    else:
        target = {"directory": f"outside/{place}" if (around / "outside" / place).is_dir() else "outside",
                  "file": "outside/notes", "nothing": "outside/nothing"}[kind.split()[-1]]
        path.symlink_to(around / target)
    try:
        yield path
    finally:
        with_it = path.is_symlink() or not path.is_dir()
        if with_it:
            path.unlink(missing_ok=True)
        if had and not os.path.lexists(path):
            (around / "had").rename(path)
        elif had:
            shutil.rmtree(around / "had", ignore_errors=True)
        for parent in made:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()


def use(server):
    """Each kind of change, of a model that is there and of one that is not; the answers."""
    yield perform(server, put(KEY, NEW))
    yield perform(server, put(KEY, OLD))
    yield perform(server, patch(KEY, OLD._replace(description="amended")))
    yield perform(server, delete(KEY))
    yield perform(server, put("fresh/app/1/m", NEW))
    yield perform(server, delete("fresh/app/1/m"))
    yield send(server, "POST", f"/verify/{BAD}")
    eventually(lambda: not send(server, "GET", "/verify").json["running"])
    yield send(server, "GET", "/health")
    yield send(server, "GET", "/metrics")


@pytest.mark.parametrize("prefix", [(), NO_OPENAT2], ids=["", "without exchange and openat2"])
def test_nothing_that_is_planted_while_the_server_runs_leads_out(around, prefix):
    server = LiveServer(around / "models", *wrapper(around, *prefix))
    wrong = []
    try:
        assert is_inside(server.process.pid, around), "not in the sandbox: nothing is sent"
        session, = (p.name for p in (around / "models/.staging").iterdir() if len(p.name) == 16)
        for key in (KEPT, KEY, BAD):
            assert perform(server, put(key, OLD)).status == 201
        (around / "models" / BAD / "model").write_bytes(b"bad " * 1000)
        before = everything(around / "outside")
        for place in (place.format(session=session) for place in PLACES):
            for kind in KINDS:
                with planted(around, place, kind) as path:
                    for number, answer in enumerate(use(server)):
                        if answer is None or answer.status > 503:
                            wrong.append((place, kind, number, answer))
                        elif answer.status == 500 and str(path) not in answer.json["detail"]:
                            wrong.append((place, kind, number, answer.json))
                        if everything(around / "outside") != before:
                            pytest.fail(f"{number} touched what {kind} at {place} leads to")
                    assert_knows(server, KEPT, OLD)
                eventually(lambda: send(server, "GET", "/health").status == 200)
                assert perform(server, put(KEY, OLD)).status in (200, 201), (place, kind)
    finally:
        server.stop(signal.SIGKILL)
    assert wrong == []
    assert "Traceback" not in server.log() or "Obstructed" in server.log()


PART = f"/models/half/app/1/m/upload?sha256={sha256(NEW.data)}"
FIRST, SECOND = "0" * 32, f"{1:032}"    # before all others


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_among_unfinished_uploads_hides_neither_their_figures_nor_old_ones(around, kind):
    server = LiveServer(around / "models", *wrapper(around))
    assert send(server, "PUT", PART, NEW.data[:50], Upload_Offset="0", Upload_Complete="?0").status == 204
    server.stop(signal.SIGKILL)
    uploads = around / "models/.staging/uploads"
    record, = uploads.glob("*.lock")
    shutil.copy(record, uploads / f"{SECOND}.lock")
    before = everything(around / "outside")
    with (planted(around, f"uploads/{FIRST}.lock", kind), planted(around, f"uploads/{FIRST}", kind),
          planted(around, f"uploads/{SECOND}", kind)):
        for path in uploads.rglob("*"):
            os.utime(path, (0, 0), follow_symlinks=False)
        server = LiveServer(around / "models", *wrapper(around), MODEL_UPLOAD_AGE="1h")
        try:
            page = send(server, "GET", "/metrics")
            assert page.status == 200 and b"kept_uploads" in page.body
            eventually(lambda: not record.exists())
            health = send(server, "GET", "/health").json
            assert health["status"] == "healthy" and "Traceback" not in server.log(), health
        finally:
            server.stop(signal.SIGKILL)
    assert everything(around / "outside") == before


MOUNTED = "p/app/1/shared disk"


@pytest.fixture
def mounting(around):
    """A server in whose namespace a directory from elsewhere is mounted in a version; what is in that directory."""
    (around / "elsewhere/w").mkdir(parents=True)
    (around / "elsewhere/w/model").write_bytes(b"of others")
    (around / "elsewhere/notes").write_bytes(b"of others")
    for place in (MOUNTED, "p/app/2/m/sub"):
        (around / "models" / place).mkdir(parents=True)
    for place in ("p/app/1/m/model", "p/app/2/m/model"):
        (around / "models" / place).parent.mkdir(exist_ok=True)
        (around / "models" / place).write_bytes(b"x")
    mounts = " && ".join(f"mount --bind '{around}/elsewhere' '{around}/models/{place}'"
                         for place in (MOUNTED, "p/app/2/m/sub"))
    server = LiveServer(around / "models", *wrapper(around), "sh", "-c", f'{mounts} && exec "$@"', "sh")
    yield server, lambda: everything(around / "elsewhere")
    server.stop(signal.SIGKILL)


def test_what_is_mounted_in_a_version_is_not_removed_with_it(mounting):
    server, elsewhere = mounting
    before, tar = elsewhere(), tar_with({"n": b"new"})
    answer = send(server, "PUT", "/models/p/app/1", tar)
    assert answer.status == 403 and MOUNTED in answer.json["detail"] and "unmount it" in answer.json["detail"]
    assert send(server, "GET", "/models/p/app/1").json["total_models"] == 1
    assert send(server, "PUT", "/models/p/app/3", tar).status == 201, "beside it, all is as ever"
    assert send(server, "PUT", "/models/p/app/3", tar).status == 200
    assert send(server, "PUT", "/models/p/app/2/m", b"new").status == 200
    server.wait_for_log("sub first")
    assert send(server, "DELETE", "/models/p/app/1/m").status == 200
    assert elsewhere() == before


NEEDED = (".", "locks", STRIPE, "start.lock", "{session}.lock")     # at every start


@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_is_planted_before_the_start_leads_out(around, some, place):
    """Where the server would have to go through it, it does not start, and says why in one line."""
    server = LiveServer(around / "models", *wrapper(around))
    for key in (KEPT, KEY):
        assert perform(server, put(key, OLD)).status == 201
    session, = (p.name for p in (around / "models/.staging").iterdir() if len(p.name) == 16)
    server.stop(signal.SIGKILL)     # which leaves its session
    before = everything(around / "outside")
    for kind in some(KINDS, 3, always=lambda kind: "directory" in kind):
        with planted(around, place.format(session=session), kind) as path:
            serves, said = started(around)
            assert everything(around / "outside") == before, (place, kind, said)
            assert "Traceback" not in said
            if not serves:
                assert said.count("\n") == 1 and f"{path} is a" in said and "remove it" in said, said
                assert "chown" not in said
            lock_file = kind == "file" and "lock" in place and place != "locks"     # any file will do
            assert not serves or place not in NEEDED or lock_file, (place, kind)
    assert started(around)[0]


def started(around):
    """Whether a server on it serves; what it said. It has ended when this returns."""
    env = {**os.environ, "MODEL_STORAGE_PATH": str(around / "models"), "SERVER_HOST": "127.0.0.1", "SERVER_PORT": "0"}
    with subprocess.Popen([*wrapper(around), sys.executable, "-u", str(ROOT / "model_server.py")], env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        said = ""
        for line in server.stdout:
            said += line
            if " serving " in line:
                server.terminate()
        server.wait(30)
    return " serving " in said, said


# the entrypoint's chown, by a user who may write to the storage while it runs
SWAPPING = """#!/bin/sh
if ! [ -L {models}/p ]; then mv {models}/p {models}/.gone && ln -s {outside} {models}/p; fi
exec {chown} "$@"
"""
USER = 10001


@pytest.mark.parametrize("swaps", [False, True], ids=["", "while it runs"])
def test_the_entrypoint_gives_away_nothing_that_a_link_leads_to(around, tmp_path, swaps):
    models, outside = around / "real", around / "outside"
    (models / "p/app/1/m").mkdir(parents=True)
    (models / "other/app/1/m").mkdir(parents=True)
    (models / ".staging").symlink_to(outside)
    (models / "linked").symlink_to(outside)
    (around / "models").symlink_to(models)
    path = os.environ["PATH"]
    if swaps:
        (around / "bin").mkdir()
        script = SWAPPING.format(models=models, outside=outside, chown=shutil.which("chown"))
        (around / "bin/chown").write_text(script)
        (around / "bin/chown").chmod(0o755)
        path = f"{around}/bin:{path}"
    done = subprocess.run([*wrapper(around), "sh", ROOT / "docker-entrypoint.sh", "true"], text=True, timeout=30,
                          env={**os.environ, "PATH": path, "MODEL_STORAGE_PATH": str(around / "models")},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert f"giving {around}/models to user {USER}" in done.stdout
    assert {path.lstat().st_uid for path in (outside, *outside.rglob("*"))} == {0}
    assert (around / "models").lstat().st_uid == 0
    assert {path.stat().st_uid for path in ((models / "other"), *(models / "other").rglob("*"))} == {USER}
    assert models.stat().st_uid == USER or swaps
