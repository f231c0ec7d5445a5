"""The order of versions as people write them: SemVer, PEP 440 and dates in one sequence. No I/O."""

import re
from typing import NamedTuple

NUMBERED = re.compile("[vV]?(?=[0-9])")     # a leading v is not part of a version's precedence
# Numbers with dots; or, as dates are written, a hyphen before the second or third one. Behind three numbers a hyphen
# begins a pre-release (semver.org, 9), also before a digit.
RELEASE = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:-[0-9]+(?![0-9A-SU-Za-z]))+(?![.][0-9])|[0-9]+(?:\.[0-9]+)*")
RUNS = re.compile("[0-9]+|[A-Za-z]+")
SYNONYMS = {"a": "alpha", "b": "beta", "c": "rc", "pre": "rc", "preview": "rc", "r": "post", "rev": "post"}   # PEP 440
EARLY = frozenset({"alpha", "beta", "rc", "dev"})

Run = tuple[int, int, str]      # its rank among all runs that may stand at one place, its number, its word
DEV, END, NUMBER, WORD, POST = range(5)     # semver.org, 11.4: a number is below a word, and fewer below more
NO_NUMBER, NAME, PRE_RELEASE, RELEASED = range(4)


class Precedence(NamedTuple):
    """Sorts versions. Equal but for the last two are those that differ in how they are written, or in their build."""

    kind: int
    release: tuple[int, ...]    # without zeros at its end: missing parts are zero
    rest: tuple[Run, ...]
    build: tuple[Run, ...]
    text: str


def precedence(version: str) -> Precedence:
    """The rank of a version: docs/api.md, "The latest version", has the rule and a table.

    Sources: semver.org, 11; PEP 440, "Summary of permitted suffixes and relative ordering".
    """
    public, _, build = version.partition("+")
    if not (begun := NUMBERED.match(public)):
        kind = NAME if re.search("[0-9]", public) else NO_NUMBER
        return Precedence(kind, (), runs(public), runs(build), version)
    found = RELEASE.match(public, begun.end())
    assert found    # a digit is there
    numbers = [int(number) for number in re.split("[.-]", found[0])]
    while numbers and not numbers[-1]:
        numbers.pop()
    suffix = public[found.end():]
    kind = PRE_RELEASE if is_early(suffix) else RELEASED
    return Precedence(kind, tuple(numbers), runs(suffix), runs(build), version)


def runs(text: str) -> tuple[Run, ...]:
    """The runs of digits and of letters, with a mark of the end, which is above dev and below all else."""
    found: list[Run] = []
    for run in words(text):
        if run.isdigit():
            found.append((NUMBER, int(run), ""))
        else:
            found.append({"dev": (DEV, 0, ""), "post": (POST, 0, "")}.get(run, (WORD, 0, run)))
    return (*found, (END, 0, ""))


def words(text: str) -> list[str]:
    return [SYNONYMS.get(run.lower(), run.lower()) for run in RUNS.findall(text)]


def is_early(suffix: str) -> bool:
    """Whether what stands behind the numbers makes it a pre-release."""
    if not (found := words(suffix)):
        return False
    if found[0] == "post":
        return "dev" in found   # PEP 440: a development release of a post-release
    return suffix.startswith("-") or found[0] in EARLY or "dev" in found
