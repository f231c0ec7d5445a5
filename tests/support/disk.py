"""File systems of their own in a file, on a loop device."""

import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

MAKE = {    # kind: how to make one, and its options for mount
    "ext4": (("mkfs.ext4", "-q", "-F"), "commit=1"),
    "xfs": (("mkfs.xfs", "-q", "-m", "reflink=1"), "defaults"),
    "xfs without clones": (("mkfs.xfs", "-q", "-m", "reflink=0"), "defaults"),
    "btrfs": (("mkfs.btrfs", "-q"), "defaults"),
}


def run(*command):
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout.strip()


class Disk:
    """A file system in a file, which can lose its power."""

    def __init__(self, path, kind="ext4"):
        self.image, self.mountpoint = path / "image", path / "disk"
        self.kind, (make, self.options) = kind.split()[0], MAKE[kind]
        self.mountpoint.mkdir()
        with self.image.open("wb") as file:
            file.truncate(512 << 20)
        run(*make, self.image)

    @contextmanager
    def mounted(self):
        # a new device each time: another mount namespace may hold the old one, and with it the dead file system
        device = run("losetup", "--find", "--show", self.image)
        try:
            run("mount", "-t", self.kind, "-o", self.options, device, self.mountpoint)
            try:
                yield self.mountpoint / "models"
            finally:
                self.unmount()
        finally:
            run("losetup", "--detach", device)

    def unmount(self):
        for _ in range(100):    # a killed server may still be in the middle of a write
            with suppress(subprocess.CalledProcessError):
                return run("umount", self.mountpoint)
            time.sleep(0.05)
        run("umount", "-l", self.mountpoint)

    def cut_power(self, how):
        run("xfs_io", "-x", "-c", how, self.mountpoint)


def skip_without(disk):
    """Skips where there are no loop devices, or the kernel lacks this file system. Tools are declared by the test."""
    try:
        with disk.mounted():
            pass
    except subprocess.CalledProcessError as error:
        if error.cmd[0] == "losetup":
            pytest.skip(f"no loop device here: {error.stderr}")
        # mount(8) loads the module if there is one
        if disk.kind not in Path("/proc/filesystems").read_text(encoding="ascii").split():
            pytest.skip(f"no {disk.kind} in this kernel: {error.stderr}")
        raise
