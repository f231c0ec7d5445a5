"""What becomes of the log when stdout fails, stalls or is gone: nobody waits long, nothing is lost without a word."""

import fcntl
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest
import requests
from support.common import ROOT, eventually
from support.credentials import bearer, line
from support.live import running
from support.proxy import free_ports

from repository.model import NAME_FIELDS
from server.logs import AUDIT_WAIT, MAX_AUDIT, MAX_WAITING, Log
from server.metrics import Metrics

LINE = "x" * 1000


class Reader:
    """A log that writes to a descriptor of the test's choice."""

    def __init__(self, descriptor):
        self.metrics = Metrics()
        self.handler = Log(descriptor, self.metrics)
        self.handler.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def log(self, name, text):
        self.handler.handle(logging.LogRecord(name, logging.INFO, "", 0, text, (), None))

    @property
    def lost(self):
        return self.metrics.troubles().get("lost_log_lines", {})


@pytest.fixture
def pipe():
    """Its other end stays open: the thread of a log has no end, and must not write to what gets the number next."""
    ends = os.pipe()
    yield ends
    os.close(ends[0])


def lines_until(descriptor, complete):
    """The lines that come out of a pipe until they are complete."""
    text = b""
    while not (text.endswith(b"\n") and complete(text.decode().splitlines())):
        assert select.select([descriptor], [], [], 30)[0], "it never came"
        text += os.read(descriptor, 1 << 20)
    return text.decode().splitlines()


def ended(lines):
    return lines[-1].endswith(" end")


def overflow(log):
    """Logs more than may wait: how many lines of each kind."""
    other, audit = 2 * MAX_WAITING // len(LINE), MAX_AUDIT // len(LINE)
    for number in range(other):
        log.log("access", f"{number} {LINE}")
    for number in range(audit):
        log.log("audit", f"{number} {LINE}")
    assert log.handler.waiting() <= MAX_AUDIT
    return other, audit


def told(lines):
    """How many lines the log says are lost: all of them, and those of the audit."""
    found = [re.match(r"model_server.logs lines lost because .*: (\d+), of the audit: (\d+)", it) for it in lines]
    return [sum(int(it[number]) for it in found if it) for number in (1, 2)]


def assert_all_but_the_lost(lines, other, audit, lost):
    """Of each kind all are there but the lost ones, in order and each once."""
    for kind, number in (("access", other), ("audit", audit)):
        found = [int(it.split()[1]) for it in lines if it.startswith(kind)]
        assert found == sorted(set(found)) and set(found) <= set(range(number))
        assert number - len(found) == lost["other" if kind == "access" else kind] > 0
        assert len(found) * len(LINE) > MAX_WAITING * 0.9, "half of the room is for the audit"
    assert lines[-1].startswith("model_server.logs")


def test_of_a_pipe_that_nobody_reads_what_had_no_room_is_counted_and_told(pipe):
    log = Reader(pipe[1])
    began = time.monotonic()
    other, audit = overflow(log)
    assert time.monotonic() - began < 10 * AUDIT_WAIT, "one line of the audit waits for the pipe, not each"
    lost = log.lost
    lines = lines_until(pipe[0], lambda lines: told(lines) == [sum(lost.values()), lost["audit"]])
    assert_all_but_the_lost(lines, other, audit, lost)
    log.log("audit", "end")
    assert lines_until(pipe[0], ended) == ["audit end"]
    assert log.handler.waiting() == 0 and log.lost == lost


def test_of_a_full_disk_too(tmp_path):
    descriptor = os.open("/dev/full", os.O_WRONLY)
    log = Reader(descriptor)
    log.log("audit", f"0 {LINE}")       # which finds out
    eventually(lambda: log.metrics.troubles() == {"faults": {"log": 1}, "late_audit_lines": 1})
    other, audit = overflow(log)
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), descriptor)      # there is room again
    lost = log.lost
    eventually(lambda: told((tmp_path / "log").read_text().splitlines()) == [sum(lost.values()), lost["audit"]])
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines.pop(0) == f"audit 0 {LINE}"
    assert_all_but_the_lost(lines, other, audit, lost)


def test_a_stdout_that_another_process_made_non_blocking_is_waited_for(pipe):
    fcntl.fcntl(pipe[1], fcntl.F_SETFL, os.O_NONBLOCK)
    log = Reader(pipe[1])
    for number in range(1000):      # ten pipes full
        log.log("access", f"{number} {LINE}")
    log.log("access", "end")
    assert [it.split()[1] for it in lines_until(pipe[0], ended)] == [*map(str, range(1000)), "end"]
    assert log.metrics.troubles() == {}


def test_a_line_that_cannot_be_encoded_or_formatted_fails_nobody(pipe, capsys):
    log = Reader(pipe[1])
    log.log("access", "a lone \ud800")
    log.handler.handle(logging.LogRecord("access", logging.INFO, "", 0, "%d", ("no number",), None))
    log.log("access", "end")
    assert lines_until(pipe[0], ended) == [r"access a lone \ud800", "access end"]
    assert "no number" in capsys.readouterr().err   # where logging tells its own faults


# ---- a live server


class Quiet:
    """A server whose stdout is a pipe that the test reads when it wants to."""

    def __init__(self, storage, **env):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "model_server.py")], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "MODEL_STORAGE_PATH": str(storage), "SERVER_HOST": "127.0.0.1", "SERVER_PORT": "0",
                 **env})
        self.url = re.search(r"http://127\S+:\d+", self.process.stdout.readline())[0]


@pytest.fixture
def quiet(tmp_path):
    server = Quiet(tmp_path / "models")
    yield server
    server.process.kill()
    server.process.wait(10)
    server.process.stdout.close()


def audits_in(text):
    return [json.loads(it.partition(" audit ")[2]) for it in text.splitlines() if " audit {" in it]


CHANGES = {     # name: (before, the change, the verb of its audit line)
    "put": (None, lambda url: requests.put(url, data=b"x"), "create"),
    "replace": (b"x", lambda url: requests.put(url, data=b"y"), "update"),
    "same again": (b"x", lambda url: requests.put(url, data=b"x"), "update"),
    "form": (None, lambda url: requests.post(url.partition("/models/")[0] + "/models/upload", files={"file": b"x"},
                                             data=dict(zip(NAME_FIELDS, url.split("/")[-4:], strict=True))), "create"),
    "amend": (b"x", lambda url: requests.patch(url + "/info", data=b'{"description": "x"}'), "update"),
    "delete": (b"x", lambda url: requests.delete(url), "delete"),
    "delete all": (b"x", lambda url: requests.delete(url[:url.index("/a/1/m")] + "?recursive=true"), "delete"),
    "refused": (None, lambda url: requests.put(url, data=b"x", headers=bearer("reader")), "create"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_server_killed_right_after_its_answer_has_written_the_line_of_the_audit(tmp_path, tokens, change):
    before, act, verb = CHANGES[change]
    env = {"MODEL_TOKENS_FILE": str(tokens(line("reader", "read", "*"))), "MODEL_ANONYMOUS": "all"}
    if change == "refused":
        env["MODEL_ANONYMOUS"] = "read"
    with running(tmp_path / "models", **env) as server:
        url = f"{server.url}/models/p/a/1/m"
        if before:
            requests.put(url, data=before)
        request_id = act(url).headers["X-Request-Id"]
        server.process.send_signal(signal.SIGKILL)
        server.stop()
    last = audits_in(server.log())[-1]
    assert (last["request"], last["verb"], last["model"]) == (request_id, verb, "p/a/1/m")


def fill_the_pipe(server, http):
    """Makes lines until stdout takes no more: what waits then, in bytes."""
    def waiting():
        page = http.get(f"{server.url}/metrics").text
        return int(re.search(r"(?m)^model_repository_log_waiting_bytes (\d+)", page)[1])

    while waiting() < 20_000:
        for _ in range(50):
            http.get(f"{server.url}/models/p/a/1/none")
    return waiting()


def test_a_stdout_that_nobody_reads_delays_one_change_and_loses_nothing(quiet, http):
    fill_the_pipe(quiet, http)
    seconds = []
    for number in range(10):
        began = time.monotonic()
        assert http.put(f"{quiet.url}/models/p/a/1/m{number}", data=b"x").status_code == 201
        seconds.append(time.monotonic() - began)
        assert http.get(f"{quiet.url}/models/p/a/1/m{number}").content == b"x"
    assert seconds[0] >= AUDIT_WAIT > max(seconds[1:])
    health = http.get(f"{quiet.url}/health").json()
    assert (health["status"], health["late_audit_lines"]) == ("degraded", 10)
    assert not {"faults", "lost_log_lines"} & health.keys()
    assert "\nmodel_repository_audit_lines_late_total 10\n" in http.get(f"{quiet.url}/metrics").text
    text = ""
    while text.count(" audit {") < 10:      # somebody reads it again
        text += os.read(quiet.process.stdout.fileno(), 1 << 16).decode()
    assert [it["model"] for it in audits_in(text)] == [f"p/a/1/m{number}" for number in range(10)]
    quiet.process.terminate()
    assert "model_server stopped\n" in quiet.process.stdout.read()
    assert quiet.process.wait(20) == 0


def test_a_server_whose_stdout_nobody_reads_still_ends(quiet, http):
    fill_the_pipe(quiet, http)
    quiet.process.terminate()
    assert quiet.process.wait(20) == 0


def test_a_server_whose_stdout_was_closed_goes_on_and_says_so(quiet, http):
    quiet.process.stdout.close()
    for number in range(3):
        assert http.put(f"{quiet.url}/models/p/a/1/m{number}", data=b"x").status_code == 201
    eventually(lambda: http.get(f"{quiet.url}/health").json().get("faults", {}).get("log", 0) > 1)
    health = http.get(f"{quiet.url}/health").json()
    assert (health["status"], health["late_audit_lines"]) == ("degraded", 3)
    assert 'model_repository_thread_faults_total{thread="log"}' in http.get(f"{quiet.url}/metrics").text
    quiet.process.terminate()
    assert quiet.process.wait(20) == 0


def test_a_server_that_is_started_without_a_stdout_writes_its_log_into_no_other_file(tmp_path, http):
    port, = free_ports(1)
    with subprocess.Popen(["sh", "-c", 'exec "$0" "$1" <&- >&-', sys.executable, ROOT / "model_server.py"],
                          env={**os.environ, "MODEL_STORAGE_PATH": str(tmp_path / "models"),
                               "SERVER_HOST": "127.0.0.1", "SERVER_PORT": str(port)}) as server:
        def up():
            try:
                return http.get(f"http://127.0.0.1:{port}/health").ok
            except requests.ConnectionError:
                return False

        eventually(up)
        for number in range(5):
            assert http.put(f"http://127.0.0.1:{port}/models/p/a/1/m{number}", data=b"x" * 10).status_code == 201
        assert http.get(f"http://127.0.0.1:{port}/health").json()["status"] == "healthy"
        server.terminate()
        assert server.wait(20) == 0
    written = [path for path in (tmp_path / "models").rglob("*") if path.is_file() and b" audit " in path.read_bytes()]
    assert written == []


@pytest.mark.parametrize(("body", "name", "received"), [
    (b"", "m", 0), (b"model", "m", 5), (b"", ".bad", 0), (b"model", ".bad", 5),
])
def test_an_upload_is_logged_with_the_bytes_that_came(live_server, http, project, body, name, received):
    url, length = f"{live_server.url}/models/{project}/a/1/{name}", {"Content-Length": str(len(body))}
    request_id = http.put(url, data=body, headers=length).headers["X-Request-Id"]
    live_server.wait_for_log(f" {request_id} ")
    line, = (line for line in live_server.lines if f" {request_id} " in line and " access " in line)
    assert line.split()[6] == str(received)
