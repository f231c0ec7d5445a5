"""The version is in one constant, and everything that names it agrees."""

import re
import subprocess
import sys

from support.common import ROOT

from server.settings import VERSION

CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
RELEASES = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", CHANGELOG, re.MULTILINE)


def test_the_command_line_prints_it():
    done = subprocess.run([sys.executable, ROOT / "model_server.py", "--version"], capture_output=True, text=True,
                          timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ai-model-repository {VERSION}\n", "")


def test_health_tells_it(app):
    assert app.get("/health").json["version"] == VERSION


def test_the_image_is_labelled_with_it():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG VERSION=(\S+)", dockerfile, re.MULTILINE) == [VERSION]
    assert 'org.opencontainers.image.version="${VERSION}"' in dockerfile


def test_it_is_the_newest_release_in_the_changelog():
    assert RELEASES[0] == VERSION
    numbers = [[int(number) for number in release.split(".")] for release in RELEASES]
    assert numbers == sorted(numbers, reverse=True)


def test_the_changelog_keeps_to_its_form():
    """Keep a Changelog 1.1.0: unreleased changes first, then releases, and changes under six headings only."""
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]" and len(headings) == 1 + len(RELEASES)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)) <= kinds
