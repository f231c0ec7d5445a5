"""What the tests share: the application under WebTest, a live server as its users run it, a raw connection."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from model_server import create_app
from server.settings import Settings
from storage import Storage

with warnings.catch_warnings():     # WebOb imports cgi, which Python 3.11 calls deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from webtest import TestApp

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["needs"]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def staged(root):
    """What is left of drafts below .staging: everything but the locks and the sessions' own (empty) directories."""
    found = []
    for place, directories, names in os.walk(Path(root) / ".staging"):     # which takes what vanishes meanwhile
        inside = [str((Path(place) / name).relative_to(Path(root) / ".staging")) for name in directories + names]
        found += [path for path in inside if "/" in path and not path.startswith("locks/")]
    return found


def eventually(condition):
    """Waits until the condition holds, and gives what it gave; so many seconds mean never."""
    deadline = time.monotonic() + 30
    while not (given := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.003)
    return given


class LiveServer:
    """`python model_server.py` in a process of its own, on a free port."""

    def __init__(self, storage, *prefix, **env):
        self.storage = Path(storage)
        self.lines = []
        self._serving = threading.Event()
        settings = {"MODEL_STORAGE_PATH": str(storage), "SERVER_HOST": "127.0.0.1", "SERVER_PORT": "0", **env}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-u", str(ROOT / "model_server.py")], env={**os.environ, **settings},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not (self._serving.wait(30) and self.port):
            self.stop(signal.SIGKILL)
            pytest.fail("the server did not start:\n" + self.log())

    port = 0

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r" serving .* at http://[^ ]*:(\d+)", line):
                self.port = int(found[1])
                self._serving.set()
        self._serving.set()     # it ended

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def log(self):
        return "".join(self.lines)

    def wait_for_log(self, text, seconds=15):
        """The log comes through a pipe and a thread: what was written is not here yet."""
        deadline = time.monotonic() + seconds
        while text not in self.log():
            assert time.monotonic() < deadline, f"{text!r} is not in the log"
            time.sleep(0.003)

    def connect(self, timeout=20):
        return Wire(socket.create_connection(("127.0.0.1", self.port), timeout))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self, sign=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sign)
        code = self.process.wait(30)
        self._reader.join(10)
        self.process.stdout.close()
        return code


class Wire:
    """A raw connection: send what you like, read one response at a time."""

    def __init__(self, sock):
        self.sock = sock
        self.file = sock.makefile("rb")

    def send(self, *parts):
        self.sock.sendall(b"".join(p if isinstance(p, bytes) else p.encode() for p in parts))

    def head(self):
        """(status, headers in lower case) of the next response, 100 Continue included; None at the end."""
        line = self.file.readline()
        if not line:
            return None
        headers = {}
        while (row := self.file.readline().strip()):
            name, _, value = row.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers

    def response(self):
        """(status, headers, body) of the next final response that is not to a HEAD."""
        status, headers = self.head()
        while status == 100:
            status, headers = self.head()
        return status, headers, self.file.read(int(headers.get("content-length", 0)))

    def at_end(self):
        return self.file.read(1) == b""

    def close(self):
        self.file.close()
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextmanager
def running(storage, *prefix, **env):
    server = LiveServer(storage, *prefix, **env)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


@pytest.fixture
def start(tmp_path):
    """Starts live servers with settings of the test's choice: start(MODEL_MAX_SIZE="1M"); on one storage by default."""
    servers = []

    def starter(*prefix, storage=tmp_path / "models", **env):
        servers.append(LiveServer(storage, *prefix, **env))
        return servers[-1]

    yield starter
    for server in servers:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def live_server(tmp_path_factory):
    """One live server with the settings as they come, for all tests of a worker: use names of your own in it."""
    with running(tmp_path_factory.mktemp("live") / "models") as server:
        yield server


@pytest.fixture
def project(request):
    """A project name no other test uses."""
    return re.sub(r"[^A-Za-z0-9_]", "_", request.node.name)[:100]


@pytest.fixture
def say(request):
    """Prints a line of figures past pytest's capturing."""
    def out(text):
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n    {text}", end="", flush=True)

    return out


@pytest.fixture
def http():
    with requests.Session() as session:
        yield session


@pytest.fixture
def store(tmp_path):
    with Storage(tmp_path / "models") as storage:
        yield storage


@pytest.fixture
def make_app(store):
    """The application under WebTest, with settings of the test's choice."""
    def maker(**settings):
        return TestApp(create_app(store, Settings(**settings)), lint=False)
    return maker


@pytest.fixture
def app(make_app):
    return make_app()


@pytest.fixture
def tokens(tmp_path):
    """tokens(line, ...) writes the file of tokens and gives its path."""
    def writer(*lines):
        path = tmp_path / "tokens"
        path.write_text("".join(lines))
        return path
    return writer
