"""For the tests of the documentation: the fenced blocks of a Markdown text, and a shell that runs them."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "localhost:8000"

# What differs from run to run. The rest of an answer is compared literally.
VARYING = (
    (re.compile(r"\b20\d\d-\d\d-\d\dT[\d:.]+(Z|[+-]\d{4})"), "TIME"),
    (re.compile(r"\b\w{3}, \d\d \w{3} 20\d\d \d\d:\d\d:\d\d GMT"), "DATE"),
    (re.compile(r"(X-Request-Id: )\S+"), r"\1ID"),
    (re.compile(r'("free_bytes": )\d+'), r"\g<1>0"),
    (re.compile(r'("storage_path": )"[^"]*"'), r'\1"PATH"'),
    (re.compile(r'"info-[0-9a-f]+"'), '"info-ID"'),
)


@dataclass(frozen=True)
class Block:
    """A fenced block; `answer` is the block that follows directly, and `form` is the language of that."""

    language: str
    text: str
    answer: str | None = None
    form: str = ""

    @property
    def commands(self):
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def blocks(markdown):
    found = list(FENCE.finditer(markdown))
    for block, following in zip(found, [*found[1:], None], strict=True):
        answers = following and not markdown[block.end():following.start()].strip() and following[1] in ("json", "text")
        yield Block(block[1], block[2], *((following[2], following[1]) if answers else ()))


class Shell:
    """bash in its own directory, with the server's address in place of the documented one."""

    def __init__(self, directory, server):
        self.directory = Path(directory)
        self.server = server
        # no user's .curlrc or .wgetrc, no proxy, and this virtual environment's python first
        self.env = {**os.environ, "HOME": str(directory), "LC_ALL": "C.UTF-8", "no_proxy": "*", "NO_PROXY": "*",
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    @property
    def address(self):
        return self.server.url.removeprefix("http://")

    def try_(self, command, typed=""):
        command = command.replace(ADDRESS, self.address).replace("machine localhost", "machine 127.0.0.1")
        return subprocess.run(["bash", "-euo", "pipefail", "-c", command], input=typed,
                              cwd=self.directory, env=self.env, capture_output=True, text=True, timeout=120)

    def script(self, text, typed=""):
        """Runs a block of lines; returns (stdout, stderr). The next block has what it exports, as in a terminal."""
        kept = self.directory / ".exported"
        done = self.try_(f"[ ! -e {kept} ] || . {kept}\ntrap 'export -p > {kept}' EXIT\n"
                         f"trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n{text}", typed)
        assert done.returncode == 0, f"{text}\nended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout.replace(self.address, ADDRESS), done.stderr

    def run(self, command):
        """Runs a command, which has to succeed; returns what it writes to stdout."""
        done = self.try_(command)
        said = done.stdout[-2000:] + done.stderr[-2000:]
        assert done.returncode == 0, f"{command}\nended with {done.returncode}\n{said}"
        return done.stdout.replace(self.address, ADDRESS)

    def python(self, text):
        done = subprocess.run([sys.executable, "-c", text.replace(ADDRESS, self.address)],
                              cwd=self.directory, env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{text}\nended with {done.returncode}\n{done.stderr}"
        return done.stdout.replace(self.address, ADDRESS)


def steady(text):
    for pattern, replacement in VARYING:
        text = pattern.sub(replacement, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def same(documented, answer, form):
    """Whether an answer matches the documented one, in which … stands for any text unless it is JSON."""
    if form == "json":
        return json.loads(steady(documented)) == json.loads(steady(answer))
    pattern = ".*".join(map(re.escape, steady(documented).split("…")))
    return re.fullmatch(pattern, steady(answer), re.DOTALL) is not None
