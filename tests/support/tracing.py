"""Uses strace to kill a server at the n-th system call of one of its threads, or to let that call fail."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from support.live import LiveServer
from support.witness import Version, perform, put, send

CALLS = ("openat", "openat2", "write", "pwrite64", "fsync", "rename", "renameat", "renameat2", "linkat", "unlink",
         "unlinkat", "mkdir", "mkdirat", "rmdir")
NO_EXCHANGE = "inject=renameat2:error=EINVAL"      # the error of file systems without RENAME_EXCHANGE
WITHOUT_EXCHANGE = ("strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null",   # -D: our child is the server
                    "-e", "trace=renameat2", "-e", NO_EXCHANGE)


def start_single(storage, *prefix, **env):
    """A server with one thread of each kind that an upload needs."""
    launcher = (sys.executable, "-u", str(Path(__file__).with_name("one_worker.py")))
    return LiveServer(storage, *prefix, *launcher, SERVER_THREADS="1", **env)


def upload(server):
    assert perform(server, put("warm/app/1/m", Version(os.urandom(100), "warm"))).status in (200, 201)


def threads_of(server):
    """{network, task, intake: thread id} of a server from start_single(), found by what each does for an upload."""
    if not hasattr(server, "threads"):
        log = server.storage.with_suffix(".threads")
        upload(server)      # which starts the worker
        every = [int(path.name) for path in Path(f"/proc/{server.process.pid}/task").iterdir()]
        with strace(log, every, "trace=mkdirat,fsync,recvfrom"):
            upload(server)
        did = {call: thread for thread, call, _ in calls_in(log)}
        server.threads = {"network": did["recvfrom"], "task": did["fsync"], "intake": did["mkdirat"]}
    return server.threads


def verifying(server):
    """Starts a verification, which has to be slow; returns the id of its thread while it reads the first model."""
    def tasks():
        return {int(path.name) for path in Path(f"/proc/{server.process.pid}/task").iterdir()}

    before = tasks()
    assert send(server, "POST", "/verify").status == 202
    while not send(server, "GET", "/verify").json["done_bytes"]:
        pass
    thread, = tasks() - before
    return thread


@contextmanager
def strace(log, threads, *expressions):
    """Traces these threads with these -e expressions during the `with`; the calls are written to the file `log`."""
    command = ["strace", "-y", "-o", str(log), *(f"--attach={thread}" for thread in threads)]
    for expression in expressions:
        command += ["-e", expression]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for _ in threads:
            line = tracer.stderr.readline()
            assert "attached" in line, f"strace cannot attach: {line}"
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()


def calls_in(log):
    """(thread id or None, call, whole line) of each call in a log of strace."""
    found = []
    for line in Path(log).read_text(errors="replace").splitlines():
        if call := re.match(r"(?:(\d+) +)?(\w+)\(", line):
            found.append((int(call[1]) if call[1] else None, call[2], line))
    return found


def count_calls(server, log, act, calls=CALLS, *expressions):
    """How often each (kind of thread, call) occurs while `act()` runs."""
    threads = threads_of(server)
    kinds = {thread: kind for kind, thread in threads.items()}
    with strace(log, threads.values(), "trace=" + ",".join(calls), *expressions):
        act()
    return Counter((kinds[thread], call) for thread, call, _ in calls_in(log))


def points(counted):
    """Every (kind of thread, call, n) in the result of count_calls()."""
    return [(kind, call, n) for (kind, call), most in sorted(counted.items()) for n in range(1, most + 1)]
