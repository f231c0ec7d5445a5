"""Uploads through a line that breaks: shell, requests, tus-js-client and tuspy get there, and send little twice."""

import os
import re
import signal
import subprocess
import sys

import pytest
import requests
from support.breaking import breaking
from support.common import ROOT, eventually, sha256, staged
from support.live import LiveServer, running
from support.proxy import free_ports

MIB = 1 << 20
LINE = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("while :; do o="))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "my_model.pt"
    path.write_bytes(os.urandom(300 * MIB))
    return path


@pytest.fixture(scope="module")
def digest(model):
    return sha256(model.read_bytes())


def shell(model, url, pause="0.25"):
    return subprocess.Popen(["bash", "-c", LINE.replace("sleep 5", f"sleep {pause}")], cwd=model.parent,
                            env={**os.environ, "U": url, "no_proxy": "*"}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_the_line_of_shell_gets_there_through_20_breaks(tmp_path, model, digest, say):
    with running(tmp_path / "models") as server, breaking(server, 20, 300 * MIB // 20) as proxy:
        line = shell(model, f"{proxy.url}/models/p/a/1/m/upload?sha256={digest}")
        output, errors = line.communicate(timeout=300)
        assert line.returncode == 0, errors
        ratio = proxy.sent / model.stat().st_size
        say(f"{proxy.broken} breaks, {ratio:.3f} times the bytes")
        assert "Model uploaded successfully" in output and digest in output, errors
        assert proxy.broken == 20 and ratio <= 1.05
        assert sha256((server.storage / "p/a/1/m/model").read_bytes()) == digest
        assert eventually(lambda: staged(server.storage) == [])
        assert "Traceback" not in server.log() and " ERROR " not in server.log(), server.log()[-3000:]
        assert "again, to continue its digest" not in server.log(), "this process knows how far it was"


def test_the_line_survives_kills_of_the_server(tmp_path, model, digest):
    """With one port, as a server that is started again has."""
    port, = free_ports(1)
    settings = {"SERVER_PORT": str(port)}
    server = LiveServer(tmp_path / "models", **settings)
    line = shell(model, f"{server.url}/models/p/a/1/m/upload?sha256={digest}&framework=pytorch")
    try:
        for number in range(1, 4):
            eventually(lambda least=number * 60 * MIB: kept(tmp_path / "models") > least)
            server.stop(signal.SIGKILL)
            server = LiveServer(tmp_path / "models", **settings)
        output, errors = line.communicate(timeout=300)
        assert '"framework": "pytorch"' in output and digest in output, errors
        assert (server.storage / "p/a/1/m/model").read_bytes() == model.read_bytes()
        assert "again, to continue its digest" in server.log() and "Traceback" not in server.log()
        assert eventually(lambda: staged(server.storage) == [])
    finally:
        line.kill()
        server.stop(signal.SIGKILL)


def kept(storage):
    """Bytes of the one upload that is kept."""
    return max((path.stat().st_size for path in (storage / ".staging").glob("uploads/*/model")), default=0)


@pytest.mark.parametrize("settings", [{}, {"MODEL_OVERWRITE": "deny"}], ids=["another digest", "refused"])
def test_the_line_ends_when_it_is_refused(tmp_path, model, digest, settings):
    with running(tmp_path / "models", **settings) as server:
        assert requests.put(f"{server.url}/models/p/a/1/m", data=b"old").status_code == 201
        claimed = digest if settings else digest[::-1]
        line = shell(model, f"{server.url}/models/p/a/1/m/upload?sha256={claimed}", pause="60")
        _, errors = line.communicate(timeout=60)
        assert "curl: (22)" in errors
        assert staged(server.storage) == []


def python(model, url, pause="0.25"):
    """Runs the lines of Python in the documentation."""
    page = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
    snippet, = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Upload-Offset" in code)
    code = snippet.replace("http://localhost:8000", url).replace("sleep(5)", f"sleep({pause})")
    return subprocess.run([sys.executable, "-c", code], cwd=model.parent, capture_output=True, text=True, timeout=300)


def test_the_lines_of_python_end_when_they_are_refused(tmp_path, model):
    with running(tmp_path / "models", MODEL_ANONYMOUS="read") as server:
        done = python(model, server.url, pause="600")
        assert done.returncode == 0 and "a token is needed" in done.stdout, done.stderr


def test_the_lines_of_python_get_there_too(tmp_path, model, digest):
    with running(tmp_path / "models") as server, breaking(server, 6, 300 * MIB // 7) as proxy:
        done = python(model, proxy.url)
        assert done.returncode == 0 and digest in done.stdout, done.stderr
        assert proxy.broken == 6 and proxy.sent / model.stat().st_size <= 1.05


TUS_JS = """
const [url, file, protocol, options] = process.argv.slice(1);
const tus = require("tus-js-client"), fs = require("fs");
const upload = new tus.Upload(fs.createReadStream(file), {
  endpoint: url, protocol, chunkSize: 100 * 1024 * 1024,
  ...(options ? JSON.parse(options) : {uploadSize: fs.statSync(file).size}),
  retryDelays: Array(40).fill(250),
  metadata: {filename: "größer.pt", filetype: "application/zip", framework: "pytorch", stage: "prod"},
  onError: error => { console.error(String(error)); process.exit(1); },
  onSuccess: () => console.log(upload.url),
});
upload.start();
"""
TUSPY = """
import sys
from tusclient import client
url, file = sys.argv[1:]
client.TusClient(url).uploader(file, chunk_size=20 << 20, retries=40, retry_delay=0.25, metadata={
    "filename": "größer.pt", "framework": "pytorch", "stage": "prod"}).upload()
"""


@pytest.fixture(scope="session")
def tus_js(tmp_path_factory):
    """A directory in which node finds tus-js-client."""
    place = tmp_path_factory.mktemp("node")
    subprocess.run(["npm", "install", "--no-fund", "--no-audit", "--silent", "tus-js-client@4.3.1"], cwd=place,
                   check=True, capture_output=True, timeout=300)
    return place


@pytest.mark.parametrize("protocol", [
    *(pytest.param(name, marks=pytest.mark.needs("node")) for name in ("tus-v1", "ietf-draft-05", "ietf-draft-03")),
    "tuspy"])
def test_clients_of_tus_get_there_unmodified(tmp_path, model, digest, request, protocol, say):
    with running(tmp_path / "models") as server, breaking(server, 6, 300 * MIB // 7) as proxy:
        url = f"{proxy.url}/models/p/a/1/m/upload"
        if protocol == "tuspy":
            command, place = [sys.executable, "-c", TUSPY, url, model], tmp_path
        else:
            command, place = ["node", "-e", TUS_JS, url, model, protocol], request.getfixturevalue("tus_js")
        done = subprocess.run(list(map(str, command)), cwd=place, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (done.stderr, server.log()[-3000:])
        info = requests.get(f"{server.url}/models/p/a/1/m/info").json()
        assert (info["sha256"], info["filename"], info["framework"]) == (digest, "größer.pt", "pytorch")
        assert info["metadata"] == {"stage": "prod"}
        say(f"{protocol}: {proxy.broken} breaks, {proxy.sent / model.stat().st_size:.3f} times the bytes")
        assert proxy.broken == 6 and "Traceback" not in server.log()


@pytest.mark.needs("node")
@pytest.mark.parametrize(("options", "stores"), [
    ('{"parallelUploads": 2}', False), ('{"overridePatchMethod": true}', True)])
def test_tus_js_client_stores_the_whole_or_fails_with_further_options(tmp_path, tus_js, options, stores):
    (tmp_path / "small").write_bytes(os.urandom(MIB))
    with running(tmp_path / "models") as server:
        url = f"{server.url}/models/p/a/1/m"
        done = subprocess.run(["node", "-e", TUS_JS, f"{url}/upload", tmp_path / "small", "tus-v1", options],
                              cwd=tus_js, capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0, "response code: 400" in done.stderr) == (stores, not stores), done.stderr
        assert stores == (requests.get(url).content == (tmp_path / "small").read_bytes())


@pytest.mark.needs("node")
@pytest.mark.parametrize("protocol", ["tus-v1", "ietf-draft-05", "ietf-draft-03"])
def test_tus_js_client_takes_a_refusal_for_what_it_is(tmp_path, tus_js, protocol):
    (tmp_path / "small").write_bytes(os.urandom(MIB))
    with running(tmp_path / "models", MODEL_OVERWRITE="deny") as server:
        url = f"{server.url}/models/p/a/1/m"
        assert requests.put(url, data=b"old").status_code == 201
        done = subprocess.run(["node", "-e", TUS_JS, f"{url}/upload", tmp_path / "small", protocol], cwd=tus_js,
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "response code: 403" in done.stderr, done.stderr
        assert eventually(lambda: " access POST " in server.log()) and staged(server.storage) == []
