"""README.md and docs/ are true: each page, read alone, runs from its first line to its last and answers what it shows.

A page is read in a checkout of this project by somebody who types every line. Its server is one of its own; a line that
starts the server takes the place of the one before, with the settings in the line.
"""

import re
import sys
from functools import cache

import pytest
from support import transcripts
from support.common import ROOT, staged
from support.live import LiveServer
from support.needs import HOW_TO_GET, LINES, lacking

from folders.room import FOLDERS
from model_server import ROUTES
from server.settings import NAMES

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
SERVE = re.compile(r"((?:[A-Z_]+=\S+ )*)\.venv/bin/python model_server\.py")
LOG_LINE = re.compile(r"\S+ INFO access [A-Z]+ /\S* \d{3} \d+ \d+\.\d \S+ [\d.]+")
SHOWN = re.compile(r"shown this once: (amr_\S+)")
TOOLS = {**{tool: tool for tool in HOW_TO_GET}, "deploy/backup.sh": "rsync"}   # a word of a command: the tool it needs

# The only lines that are not run here, by what they begin with, and where they are run instead.
RUN_ELSEWHERE = {
    "python3 -m venv .venv && ": ".ci/run: takes this line out of the README, runs it in a fresh copy, asks /health",
    ".venv/bin/pip install -r tests/requirements.txt && ": ".ci/run: takes this line out too, and so runs this test",
    "docker-compose up -d": "tests/whole/test_container.py: it needs a Docker engine",
    "docker-compose --profile tls up -d": "tests/whole/test_container.py: it needs a Docker engine",
    "docker build -t ai-model-repository .": "tests/whole/test_container.py: it needs a Docker engine",
    "docker run -d -p 8000:8000 ": "tests/whole/test_container.py: it needs a Docker engine",
    "kubectl apply ": "by hand: it needs a cluster; tests/whole/test_kubernetes.py checks the file",
    ".venv/bin/pip install -r benchmarks/requirements.txt": "by hand: it takes hundreds of MB",
    ".venv/bin/python benchmarks/upload.py": "by hand: it measures for minutes",
    ".venv/bin/python -m pytest -q -k ": "by hand: it would run these tests within themselves",
    ".venv/bin/python -m pytest -q -n 4": "the same",
    ".venv/bin/python -m pytest -q tests/faults": ".ci/run: it takes minutes",
    ".venv/bin/python -m pytest -q tests/load": ".ci/run: it takes minutes",
    ".venv/bin/python -m pytest tests/faults --rounds 300": "by hand: it takes a quarter of an hour",
    ".venv/bin/python benchmarks/download.py --rounds 1": "by hand: it measures for minutes",
    "tar c -C bert . | curl -fsS -T - http://localhost:8000/models/acme/":
        "tests/clients/test_hub.py: it needs a model that transformers can load",
    "hf download ": "tests/clients/test_hub.py: it needs huggingface_hub",
    'python -c "from huggingface_hub ': "tests/clients/test_hub.py",
    'python -c "from transformers ': "tests/clients/test_hub.py: it needs PyTorch, too",
    'python -c "from sentence_transformers ': "the same",
    ".ci/run": "by CI itself",
}


@cache
def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page):
    return list(transcripts.blocks(text_of(page)))


def commands():
    """(page, command) of every line of shell in the documentation."""
    return [(page, command) for page in PAGES for block in blocks_of(page) if block.language == "bash"
            for command in block.commands]


def elsewhere(command):
    return [start for start in RUN_ELSEWHERE if command.startswith(start)]


def tools_of(command):
    return {tool for word, tool in TOOLS.items() if re.search(rf"(?<![\w./-]){re.escape(word)}(?![\w-])", command)}


# ---- each page is run


class Reader:
    """Somebody in a checkout of the project, with the server of the page running."""

    def __init__(self, directory, left_out):
        self.directory, self.left_out, self.log, self.token = directory, left_out, "", ""
        for path in ROOT.iterdir():
            if not path.name.startswith(".") and path.name not in ("models", "tokens"):
                (directory / path.name).symlink_to(path)
        (directory / ".venv/bin").mkdir(parents=True)
        # not a link: through one Python would not find the packages of its virtual environment
        (directory / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (directory / ".venv/bin/python").chmod(0o755)
        self.serve({"MODEL_STORAGE_PATH": "models"})

    def serve(self, settings):
        paths = {name: str(self.directory / value) for name, value in settings.items()
                 if name in ("MODEL_TOKENS_FILE", "MODEL_STORAGE_PATH")}
        environ = {**settings, **paths}
        self.server = LiveServer(environ.pop("MODEL_STORAGE_PATH"), **environ)
        self.shell = transcripts.Shell(self.directory, self.server)

    def stop(self):
        code = self.server.stop()
        self.log += self.server.log()
        return code

    def read(self, block):
        """What the block prints; None where nothing can be said about it."""
        if block.language == "python":
            return self.shell.python(block.text)
        lines = [command for command in block.commands if not elsewhere(command)]
        if len(lines) == 1 and (starts := SERVE.fullmatch(lines[0])):
            assert self.stop() == 0
            self.serve(dict(word.split("=", 1) for word in starts[1].split()))
            return None
        runnable = [line for line in lines if not self.lacks(line)]
        output, errors = self.shell.script("\n".join(runnable), self.token + "\n")
        if shown := SHOWN.search(errors):
            self.token = shown[1]   # which the reader types in where a line reads it
        return output if runnable == block.commands else None

    def lacks(self, command):
        absent = lacking(*tools_of(command))
        for tool in absent:
            self.left_out(LINES, tool)
        return bool(absent)


@pytest.mark.parametrize("page", PAGES)
def test_every_line_of_a_page_runs_and_answers_what_is_shown(page, tmp_path, record_property):
    reader, problems = Reader(tmp_path, record_property), []
    try:
        for block in blocks_of(page):
            if block.language not in ("bash", "python"):
                continue
            try:
                output = reader.read(block)
            except AssertionError as error:
                problems.append(str(error))
                continue
            if None not in (block.answer, output) and not transcripts.same(block.answer, output, block.form):
                problems.append(f"{block.text}\nanswers\n{output}\nand not\n{block.answer}")
        assert reader.stop() == 0
    finally:
        reader.server.stop()
    assert not problems, "\n\n".join(problems)
    assert staged(reader.server.storage) == [] and "Traceback" not in reader.log
    assert not re.search(r"amr_[\w-]{43}", reader.log)      # a token
    assert all(LOG_LINE.fullmatch(line) for line in reader.log.splitlines() if " access " in line)


# ---- what is shown


def test_what_is_run_elsewhere_is_these_lines_and_no_others():
    starts = {start for _, command in commands() for start in elsewhere(command)}
    assert starts == set(RUN_ELSEWHERE)


@pytest.mark.parametrize("page", PAGES)
def test_every_fenced_block_is_run_or_is_the_answer_to_one_that_is(page):
    answers = {block.answer for block in blocks_of(page)}
    alone = [block.text for block in blocks_of(page)
             if block.language not in ("bash", "python") and block.text not in answers]
    assert all(block.startswith(("models/", "model_server.py ")) or " INFO access " in block for block in alone), alone
    # a line of shell that is indented and not fenced would be run by nobody
    assert not re.search(r"(?:^|\n)\n {4}\S", re.sub(transcripts.FENCE, "", text_of(page)))


def test_the_log_line_has_the_form_that_is_shown():
    shown = [line for page in PAGES for line in text_of(page).splitlines() if " INFO access " in line]
    assert shown and all(LOG_LINE.fullmatch(line) for line in shown)


def test_the_json_of_a_model_is_printed_whole_once():
    whole = [(page, block.answer) for page in PAGES for block in blocks_of(page)
             if block.form == "json" and '"uploaded_at"' in block.answer]
    assert [page for page, _ in whole] == ["README.md"]


def test_the_python_example_of_the_original_is_there_word_for_word():
    example, = (block.text for block in blocks_of("tests/docs/original_readme.md") if block.language == "python")
    assert example in [block.text for block in blocks_of("docs/clients.md")]


def test_a_download_to_a_file_never_keeps_an_error_as_the_model():
    lines = [command for _, command in commands() if re.search(r"curl .*-O", command)]
    assert lines and all(re.search(r" -\w*f\w* ", line) for line in lines)


# ---- routes and settings


def rows(page):
    return re.findall(r"^\| `([A-Z]+)` \| `(/\S+)` \|", text_of(page), re.MULTILINE)


def test_the_table_of_routes_is_that_of_the_server():
    assert rows("README.md") == [(route.method, route.path) for route in ROUTES]
    assert rows("docs/folders.md") == [(route.method, route.path) for route in FOLDERS.routes]


@pytest.mark.parametrize(("method", "path"), [*rows("README.md"), *rows("docs/folders.md")])
def test_every_route_has_a_line_that_uses_it(method, path):
    pattern = re.sub(r"\\\{\w+\\\}", r"[\\w.+$-]+", re.escape(path))
    used = [request for _, command in commands() for request in requests_of(command)]
    assert any(method == verb and re.fullmatch(pattern, where) for verb, where in used)


def requests_of(command):
    """(method, path) of the requests in a line of shell."""
    for call in re.split(r"[|;]|&&|\$\(", command):
        for path in re.findall(r"http://localhost:8000(/[^\s?\"')]*)", call):
            given = re.search(r"-X (\w+)|--method=(\w+)", call)
            yield (given[1] or given[2]) if given else "PUT" if re.search(r" -T ", call) else "GET", path


def test_every_setting_is_in_the_table():
    settings = (ROOT / "server/settings.py").read_text(encoding="utf-8")
    read = set(re.findall(r'"((?:SERVER|MODEL|TRUSTED|URL)_[A-Z_]+)"', settings))
    table = text_of("README.md").partition("## Settings")[2]
    assert re.findall(r"^\| `([A-Z_]+)` \|", table, re.MULTILINE) == list(NAMES)
    assert read == {*NAMES}


# ---- the pages as a whole


@pytest.mark.parametrize(("page", "most"), [("README.md", 300), ("CONTRIBUTING.md", 60)])
def test_a_page_that_everybody_reads_stays_short(page, most):
    assert len(text_of(page).splitlines()) <= most


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "deploy/SCALING.md"])
def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text_of(page)):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), f"{target}#{anchor}"


def anchors_of(file):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(transcripts.FENCE, "", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_shows_one_small_picture():
    [picture] = re.findall(r"^!\[.+\]\((\S+)\)$", text_of("README.md"), re.MULTILINE)
    data = (ROOT / picture).read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 150_000     # docs/screenshot.py takes it


def test_the_readme_leads_to_every_page():
    assert [page for page in PAGES[1:] if f"]({page}" not in text_of("README.md")] == []
