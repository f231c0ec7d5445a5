"""A live server, started as users start it, and a raw connection to it."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from support.common import ROOT, eventually


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
        self._serving.set()     # the process ended

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def log(self):
        return "".join(self.lines)

    def wait_for_log(self, text):
        """Waits for a text in the log, which arrives through a pipe and a thread."""
        eventually(lambda: text in self.log(), f"{text!r} in the log")

    def line_of(self, request_id):
        """The log line of the request with this id; there has to be one."""
        self.wait_for_log(f" {request_id} ")
        [line] = [line for line in self.lines if line.split()[-2:-1] == [request_id]]
        return line

    def connect(self, timeout=20):
        return Wire(socket.create_connection(("127.0.0.1", self.port), timeout))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def holds(self, path):
        """How many descriptors the server has open on this file of its storage."""
        held, path = 0, (self.storage / path).resolve()
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):   # closed since it was named
                held += descriptor.readlink() == path
        return held

    def stop(self, sign=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sign)
        code = self.process.wait(30)
        self._reader.join(10)
        self.process.stdout.close()
        return code


class Wire:
    """A raw connection: sends any bytes, reads one response at a time."""

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


@contextmanager
def several(number, storage, *prefix):
    """So many servers on one storage directory."""
    with ExitStack() as started:
        yield [started.enter_context(running(storage, *prefix)) for _ in range(number)]
