"""A prefix of a command line: runs it where nothing but one directory can be written.

    unshare -m python sandbox.py DIRECTORY COMMAND...       needs root; the mounts are gone with the process
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def mounts(pid="self"):
    """{mount point: whether it can be written} as the process sees it; of several on a point the last one counts."""
    found = {}
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        point = fields[4].encode().decode("unicode_escape")
        writable = "rw" in fields[5].split(",") and "rw" in after.split()[2].split(",")
        found[point] = writable
    return found


def is_inside(pid, directory):
    """Whether the process can write nowhere but to `directory`."""
    return [point for point, writable in mounts(pid).items() if writable] == [str(directory)]


def enter(directory):
    for command in (["mount", "--make-rprivate", "/"], ["mount", "--bind", directory, directory]):
        subprocess.run(command, check=True)
    for point in mounts():
        if Path(tempfile.gettempdir()) in Path(point).parents and point != directory:
            # of other tests, who could not let go of it while we had a copy
            subprocess.run(["umount", "--lazy", point], check=True)
    for point, writable in mounts().items():
        if writable and point != directory:
            subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
    assert is_inside("self", directory), "this is no sandbox: not all could be mounted read-only"


if __name__ == "__main__":
    enter(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
