"""Options and markers of the fault suite, and what its tests share: how much to do, where to find a server."""

import signal
import subprocess

import pytest
from support.live import running
from support.tracing import start_single

LONG = 300      # the --rounds of the long version, from which every other count follows


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=0, metavar="N",
                     help=f"the long version of the fault suite, N={LONG}; without it the short one that CI runs")


def pytest_configure(config):
    config.addinivalue_line("markers", "power: cuts the power of a loop device; skipped where there is none")
    config.addinivalue_line("markers", "long: runs with --rounds alone")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--rounds"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="part of the long version: --rounds N"))


@pytest.fixture
def count(request):
    """How often to do something: count(short=25, long=300), the long one in proportion to --rounds."""
    rounds = request.config.getoption("--rounds")
    return lambda short, long: max(1, long * rounds // LONG) if rounds else short


@pytest.fixture
def some(request):
    """All of a list in the long version, else about `short` of them: evenly chosen, those that `always` says first."""
    def choose(cases, short, always=lambda case: False):
        if request.config.getoption("--rounds"):
            return cases
        first = [case for case in cases if always(case)]
        rest = [case for case in cases if not always(case)]
        wanted = max(short - len(first), 1)
        step = max(len(rest) // wanted, 1)
        return first + rest[step // 2 :: step][:wanted]

    return choose


@pytest.fixture
def single():
    """Starts servers with one thread of each kind: single(storage, *prefix, **env)."""
    servers = []

    def starter(storage, *prefix, **env):
        servers.append(start_single(storage, *prefix, **env))
        return servers[-1]

    yield starter
    for server in servers:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def server(tmp_path):
    with running(tmp_path / "models") as live:
        yield live
