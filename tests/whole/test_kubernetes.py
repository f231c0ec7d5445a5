"""deploy/kubernetes.yaml follows the schemas, its parts fit together, and its line that fetches a model works."""

import copy
import hashlib
import json
import os
import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import requests
import yaml
from support.common import ROOT, eventually, sha256

from model_server import ROUTES

DOCUMENTS = list(yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8")))
VERSIONS = ["1.25.0", "1.30.0", kubernetes_validate.latest_version()]


def named(kind, name="ai-model-repository"):
    found, = (it for it in DOCUMENTS if (it["kind"], it["metadata"]["name"]) == (kind, name))
    return found


POD = named("Deployment")["spec"]["template"]["spec"]
SERVER, = POD["containers"]
FETCH, = named("Deployment", "model-user")["spec"]["template"]["spec"]["initContainers"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_follows_the_schema(version):
    for document in DOCUMENTS:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("path", ["spec.replica", "spec.template.spec.securityContext.runAsUsers"])
def test_the_validator_would_see_a_mistake(path):
    document = copy.deepcopy(named("Deployment"))
    *parents, wrong = path.split(".")
    inner = document
    for name in parents:
        inner = inner[name]
    inner[wrong] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_the_parts_fit_together():
    labels = named("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert named("Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert named("Service")["spec"]["selector"].items() <= labels.items()
    assert {port["name"]: port["containerPort"] for port in SERVER["ports"]} == {"http": 8000}
    assert [port["targetPort"] for port in named("Service")["spec"]["ports"]] == ["http"]
    assert {mount["name"] for mount in SERVER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in POD["volumes"] if len(volume) > 1
              and "persistentVolumeClaim" in volume]
    assert claims == [named("PersistentVolumeClaim")["metadata"]["name"]]
    open_to_all = {route.path for route in ROUTES if route.method == "GET" and route.verb is None}
    assert SERVER["readinessProbe"]["httpGet"]["path"] in open_to_all
    port = {"name": "SERVER_PORT", "value": str(SERVER["ports"][0]["containerPort"])}
    assert port in SERVER["env"] and f"/{port['value']};" in SERVER["livenessProbe"]["exec"]["command"][-1]


def test_the_grace_that_a_pod_gets_is_longer_than_that_of_running_requests():
    _, before = SERVER["lifecycle"]["preStop"]["exec"]["command"]
    given = {it["name"]: it["value"] for it in SERVER["env"]}
    assert int(before) + int(given.get("SERVER_GRACE_SECONDS") or 10) < POD["terminationGracePeriodSeconds"]


def test_a_service_of_any_name_changes_no_setting():
    """A Service called `server` would give the pod a SERVER_PORT=tcp://…"""
    assert POD["enableServiceLinks"] is False


def health_check_of_image():
    """As Docker runs it, which is a list of words in JSON."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    return json.loads(re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)[1])


def exit_code(command, **env):
    done = subprocess.run(command, env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True, timeout=30)
    return done.returncode


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "127.0.0.2"])
def test_the_checks_find_the_server_that_asks_for_tokens(start, tokens, host):
    line = f"ann:{'a' * 64}:read:*\n"
    server = start(SERVER_HOST=host, MODEL_TOKENS_FILE=str(tokens(line)))
    env = {"SERVER_PORT": str(server.port), "SERVER_HOST": host}
    assert exit_code(health_check_of_image(), **env) == 0
    liveness = [word.replace("8000", env["SERVER_PORT"]) for word in SERVER["livenessProbe"]["exec"]["command"]]
    if host != "127.0.0.2":     # the manifest sets no SERVER_HOST
        assert exit_code(liveness) == 0
    server.stop()
    assert (exit_code(health_check_of_image(), **env), exit_code(liveness)) == (1, 1)


def test_a_storage_that_cannot_be_written_gets_no_uploads_and_no_restart(start):
    server = start()
    (server.storage / ".staging" / "locks").rename(server.storage / "elsewhere")
    (server.storage / ".staging" / "locks").write_text("")
    eventually(lambda: requests.get(f"{server.url}/health").status_code == 503)
    assert exit_code(health_check_of_image(), SERVER_PORT=str(server.port)) == 1
    liveness = [word.replace("8000", str(server.port)) for word in SERVER["livenessProbe"]["exec"]["command"]]
    assert exit_code(liveness) == 0


@pytest.mark.parametrize("name", ["ai-model-repository", "model-user"])
def test_no_container_has_rights(name):
    pod = named("Deployment", name)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                                "capabilities": {"drop": ["ALL"]}}


def test_the_user_of_the_pod_is_that_of_the_image():
    assert f"user={POD['securityContext']['runAsUser']} " in (ROOT / "docker-entrypoint.sh").read_text()


def test_every_setting_is_one_of_the_servers():
    settings = (ROOT / "server/settings.py").read_text(encoding="utf-8")
    assert all(f'"{variable["name"]}"' in settings for variable in SERVER["env"])


@pytest.fixture(params=[pytest.param("busybox", marks=pytest.mark.needs("busybox")), "GNU"])
def fetch(request, tmp_path):
    """fetch(server, directory) runs the init container's line as it stands, with the address of a server here.

    The image is busybox; people put others there.
    """
    tools = tmp_path / "tools"
    tools.mkdir()
    if request.param == "busybox":
        for tool in ("sh", "wget", "tar", "sha256sum"):
            (tools / tool).symlink_to(shutil.which("busybox"))

    def run(server, directory):
        given = {it["name"]: it["value"].replace("http://ai-model-repository:8000", server.url) for it in FETCH["env"]}
        path = str(tools) if request.param == "busybox" else os.environ["PATH"]
        program, *arguments = FETCH["command"]
        return subprocess.run([shutil.which(program, path=path), *arguments], cwd=directory, capture_output=True,
                              text=True, timeout=60, env={"PATH": path, **given})

    return run


def test_the_line_that_fetches_a_version_works_and_checks_each_digest(fetch, start, tmp_path):
    server = start()
    (tmp_path / "none").mkdir()
    assert fetch(server, tmp_path / "none").returncode != 0
    data = b"a model" * 100_000
    url = f"{server.url}/models/my_project/my_app/1.0.0"
    for name in ("baseline", "tokenizer/vocab.json"):
        assert requests.put(f"{url}/{name}", data=data).status_code == 201
    for number, changed in enumerate((False, True)):
        directory = tmp_path / str(number)
        directory.mkdir()
        stored = server.storage / "my_project/my_app/1.0.0/baseline/model"
        if changed:     # as a disk may do it: the same length, the same time
            times = stored.stat()
            with stored.open("r+b") as file:
                file.write(b"A")
            os.utime(stored, ns=(times.st_atime_ns, times.st_mtime_ns))
        done = fetch(server, directory)
        assert (directory / "tokenizer/vocab.json").read_bytes() == data
        fetched = sha256((directory / "baseline").read_bytes())
        assert (done.returncode == 0) == (not changed) == (fetched == hashlib.sha256(data).hexdigest()), done.stderr
