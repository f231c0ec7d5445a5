"""README.md is true: every shell line and every Python example runs, and every answer shown is the answer given."""

import re

import pytest
import transcripts
from conftest import ROOT, running

from model_server import ROUTES

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = list(transcripts.blocks(README))
SHELL = [block for block in BLOCKS if block.language == "bash"]
PYTHON = [block for block in BLOCKS if block.language == "python"]

# The only shell lines that are not run here, by what they begin with, and who runs them.
RUN_ELSEWHERE = {
    "python3 -m venv .venv && ": ".ci/run: takes this line out of the README, runs it in a fresh copy, asks /health",
    ".venv/bin/pip install -r tests/requirements.txt && ": ".ci/run: takes this line out too, and so runs this test",
    "docker-compose up -d": "tests/test_container.py: it needs a Docker engine",
    "docker-compose --profile tls up -d": "tests/test_container.py: it needs a Docker engine",
    "docker build -t ai-model-repository .": "tests/test_container.py: it needs a Docker engine",
    "docker run -d -p 8000:8000 ": "tests/test_container.py: it needs a Docker engine",
}


def elsewhere(command):
    return [start for start in RUN_ELSEWHERE if command.startswith(start)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The README read from top to bottom by somebody who types every line: (problems, access log)."""
    problems, directory = [], tmp_path_factory.mktemp("reader")
    with running(tmp_path_factory.mktemp("readme") / "models") as server:
        shell = transcripts.Shell(directory, server)
        for block in BLOCKS:
            try:
                if block.language == "python":
                    (directory / "model.pt").write_bytes(b"a model" * 1000)
                    output = shell.python(block.text)
                elif block.language == "bash":
                    output = "".join(shell.run(command) for command in block.commands if not elsewhere(command))
                else:
                    continue
                if block.answer is not None and not transcripts.same(block.answer, output, block.form):
                    problems.append(f"{block.text}\nanswers\n{output}\nand not\n{block.answer}")
            except AssertionError as error:
                problems.append(str(error))
        code = server.stop()
        assert code == 0
        return problems, server.log()


def test_every_line_runs_and_answers_what_is_shown(run):
    problems, _ = run
    assert not problems, "\n\n".join(problems)


def test_what_is_run_elsewhere_is_these_lines_and_no_others():
    lines = [command for block in SHELL for command in block.commands if elsewhere(command)]
    assert sorted(start for line in lines for start in elsewhere(line)) == sorted(RUN_ELSEWHERE)


def test_every_fenced_block_is_of_a_kind_that_is_checked_or_is_an_answer():
    answers = {block.answer for block in BLOCKS}
    alone = [block for block in BLOCKS if block.language not in ("bash", "python") and block.text not in answers]
    # the tree of files and the line of the log, the latter checked below
    assert [block.language for block in alone] == ["text", "text"]


def test_the_table_of_routes_is_that_of_the_server():
    table = set(re.findall(r"^\| `([A-Z]+)` \| `(/\S+)` \|", README, re.MULTILINE))
    assert table == {(route.method, route.path) for route in ROUTES}


def test_every_route_has_a_line_that_uses_it(run):
    _, log = run
    used = [line.split()[3:5] for line in log.splitlines() if " access " in line]
    for method, path in re.findall(r"^\| `([A-Z]+)` \| `(/\S+)` \|", README, re.MULTILINE):
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))
        assert any(method == m and re.fullmatch(pattern, p) for m, p in used), f"{method} {path} is never used"


def test_the_log_line_has_the_form_that_is_shown(run):
    _, log = run
    shape = re.compile(r"\S+ INFO access [A-Z]+ /\S* \d{3} \d+ \d+\.\d \S+ [\d.]+")
    shown = [line for block in BLOCKS for line in block.text.splitlines() if " INFO access " in line]
    written = [line for line in log.splitlines() if " access " in line]
    assert shown and written
    assert all(shape.fullmatch(line) for line in [*shown, *written])


def test_the_python_example_of_the_original_is_there_word_for_word():
    original = (ROOT / "tests" / "original_readme.md").read_text(encoding="utf-8")
    example, = (block.text for block in transcripts.blocks(original) if block.language == "python")
    assert example in [block.text for block in PYTHON]


def test_every_setting_is_in_the_table():
    settings = (ROOT / "settings.py").read_text(encoding="utf-8")
    read = set(re.findall(r'"((?:SERVER|MODEL|TRUSTED|URL)_[A-Z_]+)"', settings))
    assert read == set(re.findall(r"^\| `((?:SERVER|MODEL|TRUSTED|URL)_[A-Z_]+)` \|", README, re.MULTILINE))


def test_a_download_to_a_file_never_keeps_an_error_as_the_model():
    lines = [command for block in SHELL for command in block.commands if re.search(r"curl .*-O", command)]
    assert lines and all(re.search(r" -\w*f\w* ", line) for line in lines)
