"""The document at /openapi.json, as programs use it: schemathesis tries all of it, a client is generated from it."""

import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from support.common import sha256
from support.credentials import ALL, bearer, line
from support.tars import tar_with

HERE = Path(__file__).parent / "schemathesis"
SECONDS = 35        # of a run, in which it sends some 2,500 requests
FILES = ("weights.bin", "config.json", "onnx/model.onnx")   # of what schemathesis.toml names
DATA = bytes(range(256)) * 4000


@pytest.fixture
def guarded(start, tokens):
    """A server with tokens, one of which may do everything."""
    return start(MODEL_TOKENS_FILE=str(tokens(line("tester", ALL, "*"))), MODEL_ALLOWED_ORIGINS="https://ml.example.org")


@pytest.mark.parametrize("fixture", ["live_server", "guarded"])
def test_schemathesis_finds_nothing_to_complain_of(fixture, request, tmp_path):
    server = request.getfixturevalue(fixture)
    for name in FILES:
        url = f"{server.url}/models/acme/bert/1.0.0/{name}"
        requests.put(url, data=DATA, headers=bearer("tester")).raise_for_status()
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "--config-file", HERE / "schemathesis.toml", "run",
         f"{server.url}/openapi.json", "--checks", "all", "--max-time", str(SECONDS), "--seed", "1", "--no-color",
         *(("--header", f"Authorization: {bearer('tester')['Authorization']}") if fixture == "guarded" else ())],
        cwd=tmp_path, env={**os.environ, "SCHEMATHESIS_HOOKS": str(HERE / "hooks.py")}, capture_output=True, text=True,
        timeout=4 * SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(map(len, requests.get(f"{server.url}/openapi.json").json()["paths"].values()))
    tested = int(re.search(r"Tested: (\d+)", done.stdout)[1])
    assert tested >= count - 1, done.stdout     # it leaves GET of the document itself out
    assert "Traceback" not in server.log()


def test_a_generated_client_uploads_lists_and_downloads(guarded, tmp_path, monkeypatch):
    """openapi-python-client writes a package, whose modules are named as the document names operations."""
    subprocess.run([sys.executable, "-m", "openapi_python_client", "generate", "--url", f"{guarded.url}/openapi.json",
                    "--output-path", tmp_path / "generated", "--meta", "none"],
                   check=True, capture_output=True, timeout=60)
    monkeypatch.syspath_prepend(tmp_path)

    def module(name):
        return importlib.import_module(f"generated.{name}")

    def call(operation, *arguments, **named):
        return module(f"api.models.{operation}").sync_detailed(*arguments, client=client, **named)

    client = module("client").AuthenticatedClient(base_url=guarded.url, token="token-of-tester")
    with client:    # its connections are closed in the end
        file = module("types").File
        names = {"project_id": "acme", "app_name": "bert", "version": "1.0.0"}
        sent = call("upload", *names.values(), "weights.bin", body=file(io.BytesIO(DATA)), framework="pytorch",
                    if_none_match="*")
        assert (sent.status_code, sent.parsed.sha256, sent.parsed.framework) == (201, sha256(DATA), "pytorch")
        form = module("models.upload_form").UploadForm(file=file(io.BytesIO(b"{}"), "config.json", "application/json"))
        form["stage"] = "prod"
        sent = call("upload_form", **names, model_name="config.json", body=form)
        assert (sent.status_code, sent.parsed.metadata.to_dict()) == (201, {"stage": "prod"})
        listed = call("list_version", *names.values()).parsed.models
        assert [(model.model_name, model.size) for model in listed] == [("config.json", 2), ("weights.bin", len(DATA))]
        assert call("download", *names.values(), "weights.bin").parsed.payload.read() == DATA
        assert call("download", *names.values(), "weights.bin", range_="bytes=-2").parsed.payload.read() == DATA[-2:]
        assert call("get_info", *names.values(), "none").parsed.detail == "there is no model acme/bert/1.0.0/none"
        tar = file(io.BytesIO(tar_with({"onnx/model.onnx": b"onnx", "config.json": b"{}"})))
        sent = call("upload_version", "acme", "bert", "2.0.0", body=tar)
        assert (sent.status_code, sent.parsed.total_models) == (201, 2)
        call("delete_project", "acme", recursive=module("models.delete_project_recursive").DeleteProjectRecursive.TRUE)
        assert call("list_models").parsed.total_models == 0
