"""Faults below the helper threads of a live server: each goes on, and the log has all that was acknowledged."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.common import ROOT, eventually
from support.tracing import calls_in, strace
from support.witness import Version, delete, fill, perform, put, send

MODEL = Version(b"x" * 100, "x")


def every_thread(server):
    return [int(path.name) for path in Path(f"/proc/{server.process.pid}/task").iterdir()]


def log_thread(server, trace):
    """The id of the thread that writes to stdout."""
    with strace(trace, every_thread(server), "trace=write"):
        send(server, "GET", "/models/none")
        eventually(lambda: "write(1<" in trace.read_text())
    return next(thread for thread, _, call in calls_in(trace) if "write(1<" in call)


def audited(log):
    return re.findall(r' audit .*"model": "(p/a/1/m\d+)"', log)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EDQUOT", "EPIPE"])
def test_a_stdout_that_fails_for_a_while_loses_no_line(server, tmp_path, error):
    thread = log_thread(server, tmp_path / "trace")
    with strace(tmp_path / "trace", [thread], "trace=write", f"inject=write:error={error}:when=1..2"):
        for number in range(20):
            assert perform(server, put(f"p/a/1/m{number}", MODEL)).status == 201
        eventually(lambda: (tmp_path / "trace").read_text().count("write(") > 2)
    server.wait_for_log("the thread log failed and goes on")
    health = send(server, "GET", "/health").json
    assert (health["status"], health["faults"]) == ("degraded", {"log": 2})
    assert "lost_log_lines" not in health and health["late_audit_lines"] > 0
    server.stop()
    assert audited(server.log()) == [f"p/a/1/m{number}" for number in range(20)]
    assert len(re.findall(r" access PUT /models/p/a/1/m\d+ 201 ", server.log())) == 20
    assert server.log().count("Traceback") == 1


def test_a_log_on_a_full_disk_goes_on_when_there_is_room(small_disk, tmp_path):
    output = small_disk / "log"
    with output.open("ab") as out, subprocess.Popen(
            [sys.executable, str(ROOT / "model_server.py")], stdout=out,
            env={**os.environ, "MODEL_STORAGE_PATH": str(tmp_path / "models"), "SERVER_HOST": "127.0.0.1",
                 "SERVER_PORT": "0"}) as process:
        server = SimpleNamespace(port=int(eventually(lambda: re.search(r" at http.*:(\d+),", output.read_text()))[1]))
        fill(small_disk / "filler")
        output_size = output.stat().st_size
        for number in range(100):       # some of which find room in the last block
            assert perform(server, put(f"p/a/1/m{number}", MODEL)).status == 201
            assert perform(server, delete(f"p/a/1/m{number}")).status == 200
        assert output.stat().st_size < output_size + 4096
        assert send(server, "GET", "/health").json["faults"]["log"] >= 1
        (small_disk / "filler").unlink()
        eventually(lambda: len(audited(output.read_text())) == 200)
        process.terminate()
        assert process.wait(20) == 0
    text = output.read_text()
    assert audited(text) == [f"p/a/1/m{number}" for number in range(100) for _ in range(2)]
    assert len(re.findall(r"(?m)^\S+ INFO access (?:PUT|DELETE) /models/p/a/1/m\d+ 20[01] \S+ \S+ \S+ \S+$",
                          text)) == 200, "each is whole"
    assert text.endswith(" stopped\n")


def test_the_thread_that_looks_at_the_tree_goes_on_after_a_disk_that_failed(server, tmp_path):
    assert perform(server, put("p/a/1/m", MODEL)).status == 201
    assert send(server, "GET", "/models/list").json["total_models"] == 1    # from now on it looks at the tree
    with strace(tmp_path / "trace", every_thread(server), "trace=newfstatat", "inject=newfstatat:error=EIO"):
        server.wait_for_log("the thread index failed and goes on")
        eventually(lambda: (tmp_path / "trace").read_text().count("INJECTED") > 1)
    health = eventually(lambda: (now := send(server, "GET", "/health").json)["status"] == "degraded" and now)
    assert health["faults"]["index"] >= 1 and server.log().count("Traceback") == 1
    place = server.storage / "p/a/2/m"
    place.mkdir(parents=True)
    (place / "model").write_bytes(b"by hand")
    # nobody asks for a list: that thread sees it, or nobody does for a minute
    eventually(lambda: "\nmodel_repository_models 2\n" in send(server, "GET", "/metrics").body.decode())
    assert server.stop() == 0
