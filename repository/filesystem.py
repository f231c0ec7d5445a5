"""Files as the store needs them: writing past the page cache, opening without blocking, identifying their state."""

import errno
import fcntl
import mmap
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from repository.errors import ModelExists, ReadOnly, StorageFailed, StorageFull
from repository.folding import OtherName
from repository.model import Stamp

METADATA = "metadata.json"
MODEL = "model"         # when a directory is removed, this file is removed first
FULL = (errno.ENOSPC, errno.EDQUOT)
GONE = (errno.ENOENT, errno.ESTALE)     # ESTALE: on a network file system, removed through another mount
ABSENT = (*GONE, errno.ENOTDIR, errno.ELOOP)    # ELOOP: a symbolic link, which is never followed
READ_ONLY = "the storage is mounted read-only: this server serves models but accepts no changes"
NO_MOVE = ("it cannot be moved, because it is in a lower layer of an overlay or on another file system: it is served "
           "but cannot be changed. Give the storage a volume of its own")
IN_THE_WAY = (errno.ENOTDIR, errno.ELOOP)
# errors that can concern a single file or directory while the rest of the storage works
OF_ONE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EUCLEAN, errno.EBADMSG)
OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
GETVERSION = 0x80087601     # FS_IOC_GETVERSION in linux/fs.h
ALIGNMENT = 4096        # bytes: direct I/O needs multiples of the disk's block size, which is at most this


class InTheWay(NotADirectoryError):
    """Something else stands where a directory or a lock file should be; `kind` says what, in words."""

    def __init__(self, path: str, kind: str | None) -> None:
        super().__init__(errno.ENOTDIR, f"{path} is {kind or 'gone'}")


@contextmanager
def as_store_errors() -> Iterator[None]:
    """Turns an OSError into the StoreError that says the same to a user."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull(f"the storage is full ({error.strerror}): delete models or free some space") from error
        if error.errno == errno.EROFS:
            raise ReadOnly(READ_ONLY) from error
        if error.errno == errno.EXDEV:
            raise ReadOnly(NO_MOVE) from error
        if isinstance(error, OtherName):
            raise ModelExists(f"{error.strerror}: use that one, or another name") from error
        if error.errno in IN_THE_WAY:
            what = error.strerror if isinstance(error, InTheWay) else "a file or a link stands"
            raise ModelExists(f"{what} where a directory should be: remove it") from error
        raise failed(error) from error


def failed(error: OSError) -> StorageFailed:
    """The StorageFailed that says the same as an OSError, with a hint where permissions are missing."""
    hint = ": the server's user must own the directories there" if isinstance(error, PermissionError) else ""
    return StorageFailed(f"the storage failed: {error.strerror}{hint}; see the server's log")


class NewFile:
    """A file that is written once, from beginning to end, by one thread at a time. If it is not empty, it is continued.

    If the file system supports it, the writes bypass the page cache: copying a model into the cache and flushing it
    takes longer than writing it to the disk, and evicts the models that are being read. This is possible for whole
    pages of a mmap that become whole pages of the file; all other bytes go through the cache.
    """

    def __init__(self, descriptor: int) -> None:
        self.size = os.lseek(descriptor, 0, os.SEEK_END)
        self.descriptor = descriptor
        self._direct = False
        self._can_be_direct = True
        self._cached = bool(self.size)  # whether bytes may be in the page cache alone

    def write(self, blocks: Iterable[bytes | memoryview]) -> None:
        """Appends blocks of any size; raises OSError."""
        for data in blocks:
            block = memoryview(data)
            while block:    # when the disk fills up, one call writes a part and the next one fails
                written = self._put(*self._next_part(block))
                self.size += written
                block = block[written:]

    def _next_part(self, block: memoryview) -> tuple[memoryview, bool]:
        """The part of a block to be written next, and whether it consists of whole pages of a mmap."""
        if not isinstance(block.obj, mmap.mmap):
            return block, False
        if ahead := -self.size % ALIGNMENT:
            return block[:ahead], False
        whole = len(block) - len(block) % ALIGNMENT
        return (block[:whole], True) if whole else (block, False)

    def _put(self, data: memoryview, direct: bool) -> int:
        self._set_direct(direct and self._can_be_direct)
        if self._direct and self._cached:
            os.fdatasync(self.descriptor)   # otherwise a power cut could leave a hole before what follows
        self._cached = not self._direct
        try:
            return os.write(self.descriptor, data)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._can_be_direct = False     # this file system wants larger blocks
            return self._put(data, direct)

    def _set_direct(self, direct: bool) -> None:
        if direct != self._direct:
            try:
                fcntl.fcntl(self.descriptor, fcntl.F_SETFL, os.O_DIRECT if direct else 0)
                self._direct = direct
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._can_be_direct = False     # this file system does not support it

    def written(self) -> BinaryIO:
        """The file, open for reading until its descriptor is closed; nothing can be written after this call."""
        self._set_direct(False)
        return open(self.descriptor, "rb", buffering=0, closefd=False)

    def finish(self) -> os.stat_result:
        """Syncs the file to the disk; returns its final status."""
        self._set_direct(False)
        os.fsync(self.descriptor)
        return os.fstat(self.descriptor)


def write_new(descriptor: int, data: bytes) -> None:
    """Writes a new file, syncs it to the disk and closes it."""
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of this to a file; raises OSError."""
    while data:     # when the disk fills up, one call writes a part and the next one fails
        data = data[os.write(descriptor, data) :]


def lengthen(descriptor: int) -> None:
    """Makes a file one byte longer, whose length stands for a state.

    On network file systems, other machines see a new length at once, but may read old contents from a cache.
    """
    os.ftruncate(descriptor, os.fstat(descriptor).st_size + 1)


def begin_sync(descriptor: int) -> None:
    """Makes the kernel begin to write a file to the disk, without waiting.

    After this was done for many files, the first fsync commits all of them to the journal, and the others are quick.
    """
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # posix_fadvise(2); what is being written stays cached


def give(group: int | None, *descriptors: int) -> None:
    """Gives files and directories to a group, directories with the setgid bit; nothing if `group` is None.

    The kernel does this for files created in a setgid directory, but not for those that are moved there.
    """
    if group is None:
        return
    for descriptor in descriptors:
        with suppress(PermissionError):     # this process is not a member of the group
            os.fchown(descriptor, -1, group)
            if stat.S_ISDIR(mode := os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, stat.S_IMODE(mode) | stat.S_ISGID)


class NotRegular(FileNotFoundError):
    """Something of this name exists, but it is not a regular file."""


def open_regular(name: str, directory: int) -> BinaryIO:
    """Opens a regular file in a directory without following links; raises FileNotFoundError, NotRegular included."""
    return os.fdopen(descriptor_of(name, directory)[0], "rb", buffering=0)


def descriptor_of(name: str, directory: int) -> tuple[int, os.stat_result]:
    """A descriptor of what open_regular() opens, to be closed, and the status of the file."""
    try:
        # NONBLOCK: opening a planted fifo must not block
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):   # a link, a socket
            raise NotRegular(error.errno, f"{name} is not a regular file") from error
        if error.errno in GONE:
            raise FileNotFoundError(errno.ENOENT, f"{name} is gone") from error
        raise
    if not stat.S_ISREG((status := os.fstat(descriptor)).st_mode):
        os.close(descriptor)
        raise NotRegular(errno.EISDIR, f"{name} is not a regular file")
    return descriptor, status


def stamp(name: str, directory: int) -> Stamp | None:
    """The state of a regular file in a directory; None if there is none or only a link. Raises other OSErrors."""
    try:
        status = os.lstat(name, dir_fd=directory)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise   # such as EIO, for which os.path.isfile would return False
    return stamp_of(status) if stat.S_ISREG(status.st_mode) else None


def stamp_of(status: os.stat_result) -> Stamp:
    """The part of a file's status that changes when the file does."""
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def generation(directory: int) -> int:
    """The generation of a directory's inode, which an earlier one with this inode did not have; 0 if there is none."""
    number = bytearray(8)
    with suppress(OSError):     # which is reported when the directory is read
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)    # it may be O_PATH
        try:
            fcntl.ioctl(descriptor, GETVERSION, number)
        finally:
            os.close(descriptor)
    return int.from_bytes(number[:4], sys.byteorder)
