"""Runs a command that can write to only one directory.

    unshare -m python sandbox.py DIRECTORY COMMAND...       needs root; the mounts disappear with the process
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def mounts(pid="self"):
    """{mount point: whether it is writable} as the process sees it; of several mounts on a point, the last counts."""
    found = {}
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        point = fields[4].encode().decode("unicode_escape")
        writable = "rw" in fields[5].split(",") and "rw" in after.split()[2].split(",")
        found[point] = writable
    return found


def is_inside(pid, directory):
    """Whether the process can write only to `directory`."""
    return [point for point, writable in mounts(pid).items() if writable] == [str(directory)]


def enter(directory):
    for command in (["mount", "--make-rprivate", "/"], ["mount", "--bind", directory, directory]):
        subprocess.run(command, check=True)
    for point in mounts():
        if Path(tempfile.gettempdir()) in Path(point).parents and point != directory:
            # a mount of another test, which could not unmount it while this namespace has a copy
            subprocess.run(["umount", "--lazy", point], check=True)
    for point, writable in mounts().items():
        if writable and point != directory:
            subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
    assert is_inside("self", directory), "not everything could be mounted read-only, so this is not a sandbox"


if __name__ == "__main__":
    enter(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
