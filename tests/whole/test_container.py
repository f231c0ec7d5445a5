"""The image and the compose file, built and run in every way people run them. Wants a Docker engine.

These tests carry the marker `container`, which a plain run leaves out and says so ("deselected"); `pytest -m container`
runs them, and without an engine they fail then: none is ever skipped.
"""

import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from support import transcripts
from support.common import ROOT
from support.live import Wire

from server.settings import VERSION

pytestmark = pytest.mark.container

BASE = "python:3.13-slim"
RUN = secrets.token_hex(4)      # in the name of everything that is made here, so that nothing else is touched
IMAGE = f"amr-test-{RUN}"
PACKAGES = ("repository", "server", "server/waitress_adapter", "inspection", "folders", "hub", "page", "resumption",
            "openapi")
SOURCES = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in ROOT.glob(f"{package}/*.py")),
           *(path for path in (ROOT / "page").iterdir() if path.suffix in (".html", ".css", ".js"))]
USER = 10001
DATA = b"of a model\n" * 100_000
MODEL = "/models/p/app/1.0.0/m"
PIECES = ("CapPrm", "CapEff", "CapInh", "CapAmb")


def sh(*command, check=True, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done


def docker(*arguments, check=True):
    return sh("docker", *arguments, check=check).stdout.strip()


@pytest.fixture(scope="module")
def engine():
    if shutil.which("docker") is None or sh("docker", "version", check=False).returncode:
        pytest.fail("no Docker engine answers: start one, or leave these tests out with -m 'not container'")


@pytest.fixture(scope="module")
def image(engine):
    docker("build", "-q", "-t", IMAGE, str(ROOT))
    yield IMAGE
    docker("image", "rm", "-f", IMAGE)


class Container:
    """A container of the image with options of the test's choice, its port on a free one of the loopback."""

    def __init__(self, *options, command=()):
        self.id = docker("create", "-p", "127.0.0.1::8000", *options, IMAGE, *command)

    def start(self):
        docker("start", self.id)
        return self.wait()

    def wait(self):
        deadline = time.monotonic() + 60
        while " serving " not in self.log():
            assert self.inspect("State.Running") == "true", self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)
        self.url = "http://" + docker("port", self.id, "8000/tcp").splitlines()[0]
        return self

    def log(self):
        done = sh("docker", "logs", self.id)
        return done.stdout + done.stderr

    def inspect(self, what):
        return docker("inspect", "-f", "{{json ." + what + "}}", self.id)

    def run(self, *command, user="0"):
        return docker("exec", "-u", user, self.id, *command)

    def server(self):
        """What the kernel says of the container's first process."""
        rows = (line.split(":", 1) for line in self.run("cat", "/proc/1/status").splitlines())
        return {name: value.split() for name, value in rows}

    def connect(self):
        host, port = self.url.removeprefix("http://").split(":")
        return Wire(socket.create_connection((host, int(port)), 20))

    def health(self, wanted, seconds=40):
        deadline = time.monotonic() + seconds
        while (found := json.loads(self.inspect("State.Health.Status"))) != wanted:
            assert time.monotonic() < deadline, f"{found}: {self.inspect('State.Health')}\n{self.log()}"
            time.sleep(0.2)


@contextmanager
def container(*options, **settings):
    it = Container(*options, **settings)
    try:
        yield it
    finally:
        docker("rm", "-f", "-v", it.id)


def use(url):
    """Everything that writes or reads, once; leaves one model behind."""
    assert requests.get(f"{url}/health").json()["status"] == "healthy"
    for name in "m", "other":
        assert requests.put(f"{url}/models/p/app/1.0.0/{name}", data=b"the first").status_code == 201
    assert requests.put(url + MODEL, data=DATA).status_code == 200
    assert requests.patch(f"{url}{MODEL}/info", json={"description": "x"}).status_code == 200
    assert requests.get(url + MODEL).content == DATA
    assert requests.delete(f"{url}/models/p/app/1.0.0/other").status_code == 200
    assert requests.get(f"{url}/models/list").json()["total_models"] == 1


def owners(directory):
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in [directory, *directory.rglob("*")]}


def directory_of(path, uid, gid):
    path.mkdir()
    os.chown(path, uid, gid)
    return path


# ---- the image


def test_the_image_holds_the_server_and_waitress_and_nothing_else(image):
    files = docker("run", "--rm", "--network", "none", "--entrypoint", "find", image, "/app").split()
    assert sorted(files) == sorted(["/app", "/app/models", "/app/requirements.txt", "/app/docker-entrypoint.sh",
                                    *(f"/app/{package}" for package in PACKAGES),
                                    *(f"/app/{path.relative_to(ROOT)}" for path in SOURCES)])
    script = "import importlib.metadata as m; print(*sorted(d.name for d in m.distributions()))"
    assert docker("run", "--rm", "--network", "none", image, "python", "-c", script) == "pip waitress"
    left = docker("run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c",
                  "ls -A /root/.cache /tmp /var/tmp 2>/dev/null | grep -v : ; true")
    assert left == ""


def test_the_image_is_under_2_mb_more_than_its_base(image):
    layers = [json.loads(docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", name)) for name in (BASE, image)]
    assert layers[1][:len(layers[0])] == layers[0]
    sizes = [int(docker("image", "inspect", "-f", "{{.Size}}", name)) for name in (BASE, image)]
    print(f"{sizes[1] - sizes[0]} bytes over the base of {sizes[0]}")
    assert 0 < sizes[1] - sizes[0] < 2_000_000


def test_the_image_says_what_it_is(image):
    config = json.loads(docker("image", "inspect", "-f", "{{json .Config}}", image))
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels.keys() >= {"title", "description", "licenses", "version", "revision"}
    assert labels["version"] == VERSION
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Volumes"] == {"/app/models": {}}
    for user in "0", "1234":
        said = docker("run", "--rm", "--user", user, image, "--version")
        assert said == f"ai-model-repository {VERSION}"
        assert docker("run", "--rm", "--user", user, image, "token", "ann", "read", "p").endswith(":read:p")


def test_what_was_checked_out_with_a_narrow_umask_runs_too(image, tmp_path):
    for path in [*SOURCES, *(ROOT / name for name in ("Dockerfile", ".dockerignore", "requirements.txt"))]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        copy.chmod(0o600)
    shutil.copyfile(ROOT / "docker-entrypoint.sh", tmp_path / "docker-entrypoint.sh")
    docker("build", "-q", "-t", f"{IMAGE}:narrow", str(tmp_path))
    try:
        assert "1234" in docker("run", "--rm", "--network", "none", "--user", "1234:1234", f"{IMAGE}:narrow",
                                "python", "-c", "import model_server, os; print(os.getuid())")
    finally:
        docker("image", "rm", "-f", f"{IMAGE}:narrow")


# ---- the ways to run it


def fresh(tmp_path):
    return ("-v", f"{tmp_path}/models:/app/models"), USER, USER    # Docker makes it, as root


def named_volume(tmp_path):
    return ("-v", f"amr-{RUN}-{secrets.token_hex(4)}:/app/models"), USER, USER


def no_volume(tmp_path):
    return (), USER, USER


def user_with_a_directory(tmp_path):
    return ("--user", "1234:1234", "-v", f"{directory_of(tmp_path / 'models', 1234, 1234)}:/app/models"), 1234, 1234


def somebodys_directory(tmp_path):
    return ("-v", f"{directory_of(tmp_path / 'models', 1000, 1001)}:/app/models"), 1000, 1001


def directory_of_the_group_root(tmp_path):
    return ("-v", f"{directory_of(tmp_path / 'models', 1000, 0)}:/app/models"), 1000, 10001


def read_only_root(tmp_path):
    return ("--read-only", *fresh(tmp_path)[0]), USER, USER


def no_capabilities(tmp_path):
    options, uid, gid = user_with_a_directory(tmp_path)
    return ("--cap-drop", "ALL", *options), uid, gid


def all_of_it_at_once(tmp_path):
    options, uid, gid = no_capabilities(tmp_path)
    return ("--read-only", "--security-opt", "no-new-privileges", *options), uid, gid


def few_capabilities(tmp_path):
    adds = [word for name in ("CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID") for word in ("--cap-add", name)]
    return ("--read-only", "--cap-drop", "ALL", *adds, "--security-opt", "no-new-privileges", *fresh(tmp_path)[0]), \
        USER, USER


def another_place(tmp_path):
    return ("-e", "MODEL_STORAGE_PATH=/data/models", "-v", f"{tmp_path}/models:/data/models"), USER, USER


WAYS = (fresh, named_volume, no_volume, user_with_a_directory, somebodys_directory, directory_of_the_group_root,
        read_only_root, no_capabilities, all_of_it_at_once, few_capabilities, another_place)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_it_runs_without_rights_however_it_is_started(image, tmp_path, way):
    options, uid, gid = way(tmp_path)
    volume = next((text.split(":")[0] for text in options if text.startswith("amr-")), None)
    try:
        with container(*options) as it:
            it.start()
            use(it.url)
            server = it.server()
            assert server["Name"] == ["python"] and server["Pid"] == ["1"]
            assert (set(server["Uid"]), set(server["Gid"]), server["Groups"]) in (
                ({str(uid)}, {str(gid)}, []), ({str(uid)}, {str(gid)}, [str(gid)]))
            assert {int(server[name][0], 16) for name in PIECES} == {0}
            assert "Traceback" not in it.log()
            if (tmp_path / "models").exists():
                assert {owner for owner, _ in owners(tmp_path / "models")} == {uid}
                assert (tmp_path / "models/p/app/1.0.0/m/model").read_bytes() == DATA
    finally:
        if volume:
            docker("volume", "rm", "-f", volume)


def test_a_volume_of_a_server_that_ran_as_root_is_taken_over_once(image, tmp_path):
    models = tmp_path / "models"
    volume = ("-v", f"{models}:/app/models")
    with container("--entrypoint", "python", "--user", "0", *volume, command=("model_server.py",)) as old:
        use(old.start().url)
        docker("kill", old.id)      # which leaves its session in .staging
    model = models / "p/app/1.0.0/m"
    (model / "deep/deeper").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (models / "p/link").symlink_to(elsewhere)
    (tmp_path / "secret").write_text("of root")
    (models / ".staging/hard").hardlink_to(tmp_path / "secret")
    assert {owner for owner, _ in owners(models)} == {0}

    with container(*volume) as it:
        it.start()
        assert it.log().count("giving /app/models to user 10001") == 1
        assert (models.stat().st_uid, model.stat().st_uid, (models / ".staging/locks/00").stat().st_uid) == (USER,) * 3
        for other in (model / "deep", model / "deep/deeper", elsewhere, tmp_path / "secret", model / "model"):
            assert other.stat().st_uid == 0, other
        url = it.url
        assert requests.get(url + MODEL).content == DATA
        assert requests.patch(f"{url}{MODEL}/info", json={"description": "y"}).status_code == 200
        assert requests.put(url + MODEL, data=b"new").status_code == 200
        assert requests.delete(url + MODEL).status_code == 200
        later = directory_of(models / "later", 0, 0)
        docker("restart", it.id)
        it.wait()
        assert it.log().count("giving ") == 1
        assert later.stat().st_uid == 0     # the tree was not walked again


def test_a_read_only_mount_is_served_and_refuses_writes(image, tmp_path):
    volume = f"{tmp_path}/models:/app/models"
    with container("-v", volume) as it:
        use(it.start().url)
    nothing = ("--read-only", "--cap-drop", "ALL", "--user", "7:7")
    for options in ((), ("--read-only",), ("--user", "1234:1234"), nothing):
        with container("-v", f"{volume}:ro", "--health-interval", "1s", *options) as it:
            url = it.start().url
            assert "read-only" in it.log()
            health = requests.get(f"{url}/health")
            assert (health.status_code, health.json()["status"], health.json()["read_only"]) == (200, "healthy", True)
            it.health("healthy")
            assert requests.get(url + MODEL).content == DATA
            assert requests.get(f"{url}/models/list").json()["total_models"] == 1
            for answer in (requests.put(url + MODEL, data=b"x"), requests.delete(url + MODEL),
                           requests.patch(f"{url}{MODEL}/info", json={"description": "x"}),
                           requests.post(f"{url}/models/upload", files={"file": b"x"},
                                         params=dict(zip(("project_id", "app_name", "version", "model_name"),
                                                         "pavm", strict=True)))):
                assert answer.status_code == 403 and "read-only" in answer.json()["detail"], answer.text
            stopped = time.monotonic()
            docker("stop", it.id)
            assert time.monotonic() - stopped < 2
            assert it.inspect("State.ExitCode") == "0"


@pytest.mark.parametrize(("options", "said"), [
    (("--cap-drop", "ALL"), "cannot become user 10001 here. With --cap-drop ALL start it with --user 10001:10001"),
    (("--user", "1234:1234"), "chown -R 1234:1234 /app/models"),
    (("-e", "MODEL_MAX_SIZE=much"), "MODEL_MAX_SIZE is 'much'"),
], ids=["root without capabilities", "a user without a directory", "a bad setting"])
def test_what_cannot_work_ends_with_a_line_that_mends_it(image, tmp_path, options, said):
    with container("-v", f"{directory_of(tmp_path / 'models', 0, 0)}:/app/models", *options) as it:
        docker("start", it.id)
        assert docker("wait", it.id) == "1"
        assert said in it.log() and "Traceback" not in it.log()


def test_a_list_that_waits_for_a_slow_reader_finds_a_place_though_the_root_is_read_only(image, tmp_path):
    """waitress puts more than 1 MiB that it could not send yet into a temporary file; a list pauses before that."""
    models = tmp_path / "models"
    for number in range(8000):
        model = models / f"p/app/{number}/m"
        model.mkdir(parents=True)
        (model / "model").touch()
        (model / "metadata.json").write_text(json.dumps({"description": "x" * 1000}))
    with container("--read-only", "-v", f"{models}:/app/models") as it:
        it.start()
        with it.connect() as wire:
            wire.send("GET /models/list HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            time.sleep(3)
            use_other = requests.get(f"{it.url}/models/p/app/7/m/info")
            assert use_other.status_code == 200
            status, headers = wire.head()
            assert status == 200
            body = wire.file.read()
        if headers.get("transfer-encoding") == "chunked":
            assert body.endswith(b"\r\n0\r\n\r\n")
        assert body.count(b'"model_name"') == 8000
        assert "Traceback" not in it.log() and " ERROR " not in it.log(), it.log()[-3000:]


# ---- health and the end


def test_the_health_check_tells_when_the_storage_cannot_be_written(image, tmp_path):
    models = directory_of(tmp_path / "models", USER, USER)
    with container("-v", f"{models}:/app/models", "--health-interval", "1s", "--health-retries", "2") as it:
        it.start()
        it.health("healthy")
        session, = (path for path in (models / ".staging").iterdir() if len(path.name) == 16)
        os.chown(session, 0, 0)
        it.health("unhealthy")
        os.chown(session, USER, USER)
        it.health("healthy")


@pytest.mark.parametrize("port", ["8000", "9000", ""])
def test_the_health_check_finds_the_port_that_was_set(image, port):
    with container("-e", f"SERVER_PORT={port}", "--health-interval", "1s") as it:
        docker("start", it.id)
        it.health("healthy")


def test_an_idle_container_stops_in_under_2_seconds(image):
    with container() as it:
        it.start()
        with it.connect() as idle, requests.Session() as session:
            session.get(f"{it.url}/health")     # both stay open
            begun = time.monotonic()
            docker("stop", it.id)
            seconds = time.monotonic() - begun
            assert idle.at_end()
        print(f"docker stop took {seconds:.2f} s")
        assert seconds < 2
        assert it.inspect("State.ExitCode") == "0"
        assert it.log().rstrip().endswith("stopped")


def test_docker_stop_lets_an_upload_in_flight_finish(image, tmp_path):
    with container("-v", f"{tmp_path}/models:/app/models") as it:
        it.start()
        with it.connect() as wire:
            wire.send(f"PUT {MODEL} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(DATA)}\r\n\r\n", DATA[:1000])
            time.sleep(0.3)
            stopping = threading.Thread(target=docker, args=("stop", it.id))
            stopping.start()
            time.sleep(2)
            with pytest.raises(OSError):
                requests.get(f"{it.url}/health", timeout=1)     # nothing new is taken
            wire.send(DATA[1000:])
            status, _, body = wire.response()
            assert status == 201 and json.loads(body)["sha256"] == hashlib.sha256(DATA).hexdigest()
        stopping.join(30)
        assert it.inspect("State.ExitCode") == "0"
    assert (tmp_path / "models/p/app/1.0.0/m/model").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "models/.staging").iterdir() if len(path.name) > 15] == []


def test_an_image_that_docker_saved_goes_up_as_a_version_and_docker_loads_what_comes_down(image, tmp_path):
    with container() as it:
        it.start()
        version = f"{it.url}/models/images/{image}/1.0.0"
        sh("bash", "-o", "pipefail", "-c", f"docker save {image} | curl -fsS -o {tmp_path}/answer -T - {version}")
        names = [model["model_name"] for model in json.loads((tmp_path / "answer").read_text())["models"]]
        assert "manifest.json" in names
        before = docker("image", "inspect", "-f", "{{.Id}}", image)
        loaded = sh("bash", "-o", "pipefail", "-c", f"curl -fsS '{version}?format=tar' | docker load").stdout
        assert image in loaded and docker("image", "inspect", "-f", "{{.Id}}", image) == before
        # its files are those of a system, with links and devices
        refused = sh("bash", "-c", f"docker export {it.id} | curl -sS -T - {it.url}/models/images/exported/1").stdout
        assert "'.dockerenv' in the tar is not a name" in json.loads(refused)["detail"]


# ---- the README's lines and compose


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


def copy_of_the_project(tmp_path):
    """As somebody has it who cloned it: what compose names is here, and nothing else is needed."""
    project = tmp_path / f"amr-{RUN}"
    project.mkdir()
    for name in ("Dockerfile", ".dockerignore", "docker-compose.yml", "requirements.txt", "docker-entrypoint.sh"):
        shutil.copy(ROOT / name, project)
    for path in SOURCES:
        (project / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, project / path.relative_to(ROOT))
    shutil.copytree(ROOT / "deploy", project / "deploy")
    return project


def test_the_lines_of_the_readme_build_and_run_it(image, tmp_path):
    project, port = copy_of_the_project(tmp_path), free_port()
    blocks = transcripts.blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    lines = [line for block in blocks if block.language == "bash" for line in block.commands
             if line.startswith(("docker build", "docker run"))]
    assert len(lines) == 2
    for line in lines:
        line = line.replace("-p 8000:8000", f"-p 127.0.0.1:{port}:8000").replace("ai-model-repository", f"{IMAGE}-r")
        sh("bash", "-c", line, cwd=project)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url)
        use(url)
        assert (project / "models/p/app/1.0.0/m/model").read_bytes() == DATA
    finally:
        docker("rm", "-f", "-v", f"{IMAGE}-r")
        docker("image", "rm", "-f", f"{IMAGE}-r")


def wait_for(url, seconds=60, **options):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return requests.get(f"{url}/health", timeout=5, **options)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def compose_commands():
    """Both spellings; the second is the plugin's own file where no docker-compose is installed."""
    plugins = [Path(place, "cli-plugins/docker-compose") for place in
               ("/usr/local/lib/docker", "/usr/local/libexec/docker", "/usr/lib/docker", "/usr/libexec/docker")]
    alone = shutil.which("docker-compose") or next((str(path) for path in plugins if path.exists()), "docker-compose")
    return {"docker compose": ("docker", "compose"), "docker-compose": (alone,)}


@pytest.fixture
def compose(tmp_path, image):
    """compose(command, ...) in a copy of the project whose .env says other ports; everything is gone afterwards."""
    project, port = copy_of_the_project(tmp_path), free_port()
    settings = {"PUBLISH": f"127.0.0.1:{port}", "MODEL_MAX_SIZE": "2M", "COMPOSE_PROJECT_NAME": f"amr-{RUN}"}
    file = project / "docker-compose.yml"
    file.write_text(file.read_text().replace("image: ai-model-repository", f"image: {IMAGE}-c"))

    def run(*command):
        (project / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        environ = {name: value for name, value in os.environ.items() if name not in settings}
        return sh(*command, cwd=project, env=environ)

    run.project, run.url, run.settings = project, f"http://127.0.0.1:{port}", settings
    yield run
    run("docker", "compose", "--profile", "tls", "down", "-v", "--rmi", "local", "-t", "1")
    docker("image", "rm", "-f", f"{IMAGE}-c", "amr-test-nginx", check=False)


@pytest.mark.parametrize("spelling", ["docker compose", "docker-compose"])
def test_compose_up_starts_it(compose, spelling):
    command = compose_commands()[spelling]
    compose(*command, "up", "-d")
    wait_for(compose.url)
    use(compose.url)
    refused = requests.put(compose.url + MODEL, data=b"x" * (2 << 20) + b"x")
    assert refused.status_code == 413 and str(2 << 20) in refused.json()["detail"]     # .env is passed through
    assert (compose.project / "models/p/app/1.0.0/m/model").read_bytes() == DATA
    name = compose(*command, "ps", "-q").stdout.strip()
    state = json.loads(docker("inspect", name))[0]
    assert state["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert state["HostConfig"]["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "5", "max-size": "10m"}}
    assert state["Config"]["Healthcheck"]["Test"][0] == "CMD"

    os.kill(state["State"]["Pid"], signal.SIGKILL)      # of the one server process; the engine starts it again
    deadline = time.monotonic() + 30
    while json.loads(docker("inspect", name))[0]["RestartCount"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    wait_for(compose.url)
    assert requests.get(compose.url + MODEL).content == DATA

    source = compose.project / "server/logs.py"    # a newer version of the server
    source.write_text(source.read_text() + "\n")
    compose(*command, "up", "-d", "--build")
    wait_for(compose.url)
    assert compose(*command, "ps", "-q").stdout.strip() != name
    assert requests.get(compose.url + MODEL).content == DATA
    begun = time.monotonic()
    compose(*command, "stop")
    assert time.monotonic() - begun < 3


def test_compose_hands_the_tokens_over_as_a_secret(compose):
    def token(*options):
        """A new one, made as the README says; its line goes where the server has them."""
        made = sh("docker", "run", "--rm", "--network", "none", *options, IMAGE, "python", "model_server.py",
                  "token", "ci", "create", "p/app")
        with (compose.project / "tokens").open("a") as file:
            file.write(made.stdout)
        return "any", made.stderr.split()[-1]

    first = token("--read-only")
    (compose.project / "tokens").chmod(0o644)
    compose.settings["TOKENS_FILE"] = "./tokens"
    compose("docker", "compose", "up", "-d")
    wait_for(compose.url)
    assert requests.put(compose.url + MODEL, data=DATA).status_code == 401
    assert requests.put(compose.url + MODEL, data=DATA, auth=first).status_code == 201
    second = token()
    for attempt, status in ((first, 403), (second, 403), (("any", "x"), 401)):
        assert requests.put(compose.url + MODEL, data=DATA, auth=attempt).status_code == status
    log = compose("docker", "compose", "logs").stdout
    assert "anonymous none, ci create p/app" in log
    assert '{"who": "ci", "verb": "create", "model": "p/app/1.0.0/m"' in log
    told = log + docker("inspect", compose("docker", "compose", "ps", "-q").stdout.strip())
    assert first[1] not in told and second[1] not in told


NGINX = f"""FROM {BASE}
RUN apt-get update -q && apt-get install -q -y --no-install-recommends nginx-light && rm -rf /var/lib/apt/lists/* && \
    ln -sf /dev/stdout /var/log/nginx/access.log && ln -sf /dev/stderr /var/log/nginx/error.log
CMD ["nginx", "-g", "daemon off;"]
"""


def test_the_profile_tls_puts_nginx_in_front(compose, tmp_path):
    """With Debian's nginx in place of the official image, which takes its configuration at the same path."""
    (tmp_path / "nginx").mkdir()
    (tmp_path / "nginx/Dockerfile").write_text(NGINX)
    docker("build", "-q", "-t", "amr-test-nginx", str(tmp_path / "nginx"))
    tls = compose.project / "deploy/tls"
    tls.mkdir()
    sh("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
       "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(tls / "privkey.pem"),
       "-out", str(tls / "fullchain.pem"))
    http, https = free_port(), free_port()
    compose.settings.update(NGINX_IMAGE="amr-test-nginx", PUBLISH_HTTP=f"127.0.0.1:{http}",
                            PUBLISH_HTTPS=f"127.0.0.1:{https}")
    compose("docker", "compose", "--profile", "tls", "up", "-d", "--wait")
    url, trust = f"https://localhost:{https}", {"verify": str(tls / "fullchain.pem")}
    wait_for(url, **trust)
    created = requests.put(url + MODEL, data=DATA, **trust)
    assert created.status_code == 201
    assert created.json()["url"] == created.headers["Location"] == url + MODEL
    assert requests.get(url + MODEL, **trust).content == DATA
    plain = requests.get(f"http://127.0.0.1:{http}{MODEL}", allow_redirects=False)
    assert (plain.status_code, plain.headers["Location"]) == (308, f"https://127.0.0.1{MODEL}")
    lines = [line for line in compose("docker", "compose", "logs", "--no-log-prefix", "ai-model-repository").stdout
             .splitlines() if f"PUT {MODEL}" in line]
    # nginx saw the host, which comes to a port of its loopback as the network's gateway; nginx itself is 10.213.77.2
    assert lines[0].split()[-1] in ("10.213.77.1", "10.213.77.8")
    spoofed = requests.put(f"{compose.url}/models/p/app/1.0.0/direct", data=b"x",
                           headers={"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"})
    assert spoofed.json()["url"] == f"{compose.url}/models/p/app/1.0.0/direct"  # this one did not come from nginx
