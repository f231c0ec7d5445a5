"""What the tests share: the application under WebTest, a live server as its users run it, a raw connection."""

import re
import signal
from functools import partial

import pytest
import requests
from hypothesis import settings

from storage import Storage

pytest.register_assert_rewrite("support")   # before the first of them is imported, so that a failure shows its values
from support.common import app_of  # noqa: E402
from support.live import LiveServer, running  # noqa: E402

settings.register_profile("noisy machine", deadline=None)   # an example that takes longer there is no fault
settings.load_profile("noisy machine")
pytest_plugins = ["support.needs", "support.proxy", "support.site"]


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
    """make_app(**settings) gives the application under WebTest."""
    return partial(app_of, store)


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
