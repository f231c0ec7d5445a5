"""original_readme.md is what this server was asked for with: every line of it works as written, with the real tools."""

import os
import random
import re
import signal
import subprocess

import pytest
from support import transcripts
from support.common import ROOT, sha256

TEXT = (ROOT / "tests/docs/original_readme.md").read_text(encoding="utf-8")
BLOCKS = list(transcripts.blocks(TEXT))
COMMANDS = [command for block in BLOCKS if block.language == "bash" for command in block.commands]
PLACEHOLDERS = {"{project_id}": "my_project", "{app_name}": "my_app", "{version}": "1.0.0", "{model_name}": "baseline"}
DATA = random.Random(1).randbytes(9_000_000)     # no two places alike: a range put at the wrong one would show
DIGEST = sha256(DATA)
ARIA2 = pytest.mark.needs("aria2c")

# The lines that are not typed at the running server, and what becomes of them.
RUN_ELSEWHERE = {
    "docker-compose up -d": "by hand: it needs a Docker daemon",
    "docker build -t ai-model-repository .": "by hand: it needs a Docker daemon",
    "docker run -d -p 8000:8000 -v $(pwd)/models:/app/models --name ai-model-repository ai-model-repository":
        "by hand: it needs a Docker daemon",
    "pip install -r requirements.txt": "test_running_locally",
    "python model_server.py": "test_running_locally",
}


@pytest.fixture
def server(start):
    return start()


@pytest.fixture
def shell(tmp_path, server):
    directory = tmp_path / "user"
    directory.mkdir()
    return transcripts.Shell(directory, server)


def test_every_command_word_for_word(shell):
    (shell.directory / "my_model.pt").write_bytes(DATA)
    asked = [command for command in COMMANDS if command not in RUN_ELSEWHERE]
    assert len(asked) == 10 and len(COMMANDS) == len(asked) + len(RUN_ELSEWHERE)
    answers = {}
    for command in asked:
        typed = command
        for placeholder, name in PLACEHOLDERS.items():
            typed = typed.replace(placeholder, name)
        answers[command] = shell.run(typed)
    assert '"status": "healthy"' in answers[asked[0]]
    assert f'"sha256": "{DIGEST}"' in answers[asked[1]]
    for listing in asked[2:6]:
        assert DIGEST in answers[listing], listing
    assert '"description": "My trained model"' in answers[asked[6]]
    # curl -O and then wget: the second one steps aside
    assert sha256((shell.directory / "baseline").read_bytes()) == DIGEST
    assert sha256((shell.directory / "baseline.1").read_bytes()) == DIGEST
    assert '"total_models": 0' in shell.run("curl http://localhost:8000/models/list")


def test_the_whole_python_example_word_for_word(shell):
    (shell.directory / "model.pt").write_bytes(DATA)
    example, = (block.text for block in BLOCKS if block.language == "python")
    printed = shell.python(example).splitlines()
    assert len(printed) == 7 and all(line.startswith("{") for line in printed)
    assert all(DIGEST in line for line in printed)
    assert sha256((shell.directory / "downloaded_model.pt").read_bytes()) == DIGEST
    assert '"total_models": 0' in shell.run("curl http://localhost:8000/models/list")


def test_running_locally(shell, tmp_path):
    shell.directory = ROOT
    shell.run("pip install -r requirements.txt")
    settings = {"SERVER_PORT": "0", "SERVER_HOST": "127.0.0.1", "MODEL_STORAGE_PATH": str(tmp_path / "local"),
                "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(["bash", "-c", "exec python model_server.py"], cwd=ROOT, env={**shell.env, **settings},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process:
        try:
            assert " serving " in process.stdout.readline()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.fixture
def model(shell):
    """A model uploaded from a file whose name is not ASCII; its address, and where it is saved."""
    (shell.directory / "Gewichte ü.pt").write_bytes(DATA)
    shell.run("curl -f -F 'file=@Gewichte ü.pt' 'http://localhost:8000/models/upload?"
              "project_id=p&app_name=a&version=1&model_name=weights'")
    (shell.directory / "Gewichte ü.pt").unlink()
    return "http://localhost:8000/models/p/a/1/weights"


@pytest.mark.parametrize(("command", "saved"), [
    ("curl -O {}",                          "weights"),
    ("curl -OJ {}",                         "Gewichte _.pt"),   # curl ignores filename*
    ("curl -C - -O {}",                     "weights"),
    ("wget {}",                             "weights"),
    ("wget -c {}",                          "weights"),
    ("wget --content-disposition {}",       "Gewichte ü.pt"),
    pytest.param("aria2c -x4 {}",                       "Gewichte ü.pt", marks=ARIA2),
    pytest.param("aria2c -x4 -k 1M {}",                 "Gewichte ü.pt", marks=ARIA2),
])
def test_a_download_arrives_whole_under_its_name(shell, model, command, saved):
    shell.run(command.format(model))
    assert {path.name for path in shell.directory.iterdir() if not path.name.startswith(".")} == {saved}
    assert sha256((shell.directory / saved).read_bytes()) == DIGEST


@pytest.mark.parametrize("have", [1, 4_000_001, len(DATA) - 1])
@pytest.mark.parametrize("command", [
    "curl -C - -O {}",
    "curl -f -C - -O {}",
    "wget -c {}",
    pytest.param("aria2c -x4 -c -o weights {}", marks=ARIA2),
    pytest.param("aria2c -x4 -k 1M -c -o weights {}", marks=ARIA2),
])
def test_a_broken_download_is_continued_and_not_begun_again(shell, model, server, command, have):
    part = shell.directory / "weights"
    part.write_bytes(DATA)
    os.truncate(part, have)
    shell.run(command.format(model))
    assert sha256(part.read_bytes()) == DIGEST
    assert server.stop() == 0
    fields = [line.split() for line in server.lines if " access GET " in line]
    gets = [(int(status), int(sent)) for *_, path, status, sent, _, _, _ in fields if path.endswith("/weights")]
    if not command.startswith("aria2c"):    # which asks for pieces, and drops connections as it likes
        assert gets == [(206, len(DATA) - have)]
    assert (206, len(DATA)) not in gets


@pytest.mark.parametrize("command", ["curl -C - -O {}", "wget -c {}",
                                     pytest.param("aria2c -x4 -c -o weights {}", marks=ARIA2)])
def test_a_complete_download_stays_as_it_is(shell, model, command):
    (shell.directory / "weights").write_bytes(DATA)
    shell.run(command.format(model))
    assert sha256((shell.directory / "weights").read_bytes()) == DIGEST


@ARIA2
def test_aria2_finds_a_part_that_is_of_another_file(shell, model):
    (shell.directory / "weights").write_bytes(b"\0" * 4_000_000)
    done = shell.try_(f"aria2c -x4 -c -o weights {model}")
    assert done.returncode == 32, done.stdout       # its exit status for a checksum that does not fit


@pytest.mark.parametrize(("command", "name"), [
    ("curl -f -T model.pt http://localhost:8000/models/p/a/2/named",                "named"),
    ("curl -f -T model.pt http://localhost:8000/models/p/a/2/",                     "model.pt"),
    ("cat model.pt | curl -f -T - http://localhost:8000/models/p/a/2/piped",        "piped"),
    ("curl -f -X PUT --data-binary @model.pt http://localhost:8000/models/p/a/2/d", "d"),
    ("wget -O - --method=PUT --body-file=model.pt http://localhost:8000/models/p/a/2/w", "w"),
])
def test_an_upload_arrives_whole(shell, command, name):
    (shell.directory / "model.pt").write_bytes(DATA)
    answer = shell.run(command)
    assert f'"sha256": "{DIGEST}"' in answer
    assert re.search(rf'"path": "p/a/2/{re.escape(name)}/model"', answer)
    shell.run(f"curl -f -O http://localhost:8000/models/p/a/2/{name}")
    assert sha256((shell.directory / name).read_bytes()) == DIGEST
