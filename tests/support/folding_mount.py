"""A file system that folds case, in user space: a directory is seen through it as macOS or vfat would show it.

    python folding_mount.py DIRECTORY MOUNTPOINT        in the foreground, until it is unmounted; needs libfuse 2
"""

import errno
import os
import sys
from pathlib import Path

from fuse import FUSE, FuseOSError, Operations


class Folded(Operations):
    """What is there keeps the spelling it was made with, and is found in every other one."""

    use_ns = True

    def __init__(self, top):
        self.top = top

    def real(self, path):
        """The path of an entry as it is on disk; the last name as given where there is none."""
        found = Path(self.top)
        for name in path.strip("/").split("/") if path != "/" else ():
            try:
                names = os.listdir(found)
            except OSError:
                names = []
            found /= next((other for other in names if other.lower() == name.lower()), name)
        return str(found)

    def getattr(self, path, fh=None):
        try:
            status = os.lstat(self.real(path))
        except OSError as error:
            raise FuseOSError(error.errno) from error
        return {name: getattr(status, name) for name in (
            "st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_blocks")} | {
            f"st_{kind}time": getattr(status, f"st_{kind}time_ns") for kind in "amc"}

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self.real(path))]

    def mkdir(self, path, mode):
        os.mkdir(self.real(path), mode)

    def rmdir(self, path):
        os.rmdir(self.real(path))

    def unlink(self, path):
        os.unlink(self.real(path))

    def rename(self, old, new):
        if os.path.lexists(self.real(new)) and os.path.isdir(self.real(new)) and os.listdir(self.real(new)):
            raise FuseOSError(errno.ENOTEMPTY)
        os.rename(self.real(old), self.real(new))

    def open(self, path, flags):
        return os.open(self.real(path), flags & ~os.O_DIRECT & ~os.O_NOFOLLOW)

    def create(self, path, mode, fi=None):
        return os.open(self.real(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self.real(path), length)

    def fsync(self, path, datasync, fh):
        os.fsync(fh)

    def release(self, path, fh):
        os.close(fh)

    def chmod(self, path, mode):
        os.chmod(self.real(path), mode)

    def chown(self, path, uid, gid):
        os.chown(self.real(path), uid, gid)

    def statfs(self, path):
        disk = os.statvfs(self.top)
        return {name: getattr(disk, name) for name in ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_frsize",
                                                       "f_files", "f_ffree", "f_favail", "f_namemax")}


if __name__ == "__main__":
    FUSE(Folded(sys.argv[1]), sys.argv[2], foreground=True, nothreads=True, default_permissions=True)
