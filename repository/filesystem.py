"""What the store asks of files: writing past the page cache, opening without hanging, telling states of one apart."""

import errno
import fcntl
import mmap
import os
import queue
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from repository.errors import ModelExists, ReadOnly, StorageFailed, StorageFull
from repository.folding import OtherName
from repository.model import Stamp

METADATA = "metadata.json"
MODEL = "model"         # the file that goes first when a directory is removed
FULL = (errno.ENOSPC, errno.EDQUOT)
GONE = (errno.ENOENT, errno.ESTALE)     # ESTALE: removed through another mount, where the file system has several
ABSENT = (*GONE, errno.ENOTDIR, errno.ELOOP)    # ELOOP: a symbolic link, which is never followed
READ_ONLY = "the storage is mounted read-only: this server serves models and takes none"
NO_MOVE = ("it cannot be moved, as it is in a lower layer of an overlay or on another file system: it is served and "
           "not changed. Give the storage a volume of its own")
IN_THE_WAY = (errno.ENOTDIR, errno.ELOOP)
OF_ONE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EUCLEAN, errno.EBADMSG)   # what one file or directory may say
OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
ALIGNMENT = 4096        # bytes: direct I/O takes multiples of a disk's block, of which none is larger
BUFFER = 2 << 20        # bytes of one direct write; twice as much is no faster
BUFFERS = 4             # writes at once; one alone keeps a disk nearly busy


class InTheWay(NotADirectoryError):
    """What stands where a directory, or a lock file of ours, should be, and is none; `kind` is what it is, in words."""

    def __init__(self, path: str, kind: str | None) -> None:
        super().__init__(errno.ENOTDIR, f"{path} is {kind or 'gone'}")


@contextmanager
def own_words() -> Iterator[None]:
    """Turns an OSError from below into the store's own words."""
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
        raise StorageFailed(f"the storage failed: {error.strerror}; see the server's log") from error


class Buffers:
    """Memory at addresses that direct I/O takes; as many writes are under way at once as there are buffers."""

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(mmap.mmap(-1, BUFFER))

    @contextmanager
    def one(self) -> Iterator[memoryview]:
        buffer = self._free.get()
        try:
            yield memoryview(buffer)
        finally:
            self._free.put(buffer)


class NewFile:
    """A file that is written once, from its beginning to its end, by one thread at a time.

    It goes past the page cache where the file system can do that: to copy a model there and wait until it has left
    again takes longer than the disk does, and pushes out the models that are being read.
    """

    def __init__(self, descriptor: int, buffers: Buffers) -> None:
        self.size = 0
        self._buffers = buffers
        self._rest = b""    # less than ALIGNMENT, which is left for the end
        self.descriptor = descriptor
        with suppress(OSError):     # EINVAL: not on this file system
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, os.O_DIRECT)

    def write(self, blocks: Iterable[bytes | memoryview]) -> None:
        with self._buffers.one() as buffer:
            filled = len(self._rest)
            buffer[:filled] = self._rest
            for data in blocks:
                block = memoryview(data)
                self.size += len(block)
                while block:
                    part = block[: BUFFER - filled]
                    buffer[filled : filled + len(part)] = part
                    filled, block = filled + len(part), block[len(part) :]
                    if filled == BUFFER:
                        self._put(buffer)
                        filled = 0
            whole = filled - filled % ALIGNMENT
            self._put(buffer[:whole])
            self._rest = bytes(buffer[whole:filled])

    def _put(self, data: bytes | memoryview) -> None:
        while data:     # a disk that fills up takes a part and refuses with the next call
            data = data[os.write(self.descriptor, data) :]

    def written(self) -> BinaryIO:
        """All of it, open for reading until this is closed; nothing is written after that."""
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, 0)
        self._put(self._rest)
        self._rest = b""
        return open(self.descriptor, "rb", buffering=0, closefd=False)

    def finish(self) -> os.stat_result:
        """Puts all of it on disk; says what the file is then."""
        self.written()
        os.fsync(self.descriptor)
        return os.fstat(self.descriptor)


def write_new(descriptor: int, data: bytes) -> None:
    """Writes these bytes to a new file, which is closed and on disk when this returns."""
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def give(group: int | None, *descriptors: int) -> None:
    """Gives files, and directories with the setgid bit, to a group, as the kernel does for what is made in place."""
    if group is None:
        return
    for descriptor in descriptors:
        with suppress(PermissionError):     # of a group that this process is not in; it was tried
            os.fchown(descriptor, -1, group)
            if stat.S_ISDIR(mode := os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, stat.S_IMODE(mode) | stat.S_ISGID)


class NotRegular(FileNotFoundError):
    """Something is there, and no regular file."""


def open_regular(name: str, directory: int) -> BinaryIO:
    """Opens a regular file in a directory, no link followed; raises FileNotFoundError for all that is none."""
    try:
        # NONBLOCK: a planted fifo must not hang us
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):   # a link, a socket
            raise NotRegular(error.errno, f"{name} is no regular file") from error
        if error.errno in GONE:
            raise FileNotFoundError(errno.ENOENT, f"{name} is gone") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(errno.EISDIR, f"{name} is no regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def stamp(name: str, directory: int) -> Stamp | None:
    """None where there is no regular file, nor behind a link. Raises what is not an answer."""
    try:
        status = os.lstat(name, dir_fd=directory)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise   # EIO, of which os.path.isfile would make a no
    return stamp_of(status) if stat.S_ISREG(status.st_mode) else None


def stamp_of(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns
