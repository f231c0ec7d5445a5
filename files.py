"""What the store asks of the file system: locks, an atomic exchange, sync, writing and removal to the end."""

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import queue
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from models import ModelExists, ReadOnly, Stamp, StorageFailed, StorageFull

log = logging.getLogger("model_server.files")

MODEL = "model"         # the file that goes first when a directory is removed
FULL = (errno.ENOSPC, errno.EDQUOT)
GONE = (errno.ENOENT, errno.ESTALE)     # ESTALE: removed through another mount, where the file system has several
ABSENT = (*GONE, errno.ENOTDIR, errno.ELOOP)    # ELOOP: a symbolic link, which is never followed
READ_ONLY = "the storage is mounted read-only: this server serves models and takes none"
IN_THE_WAY = (errno.ENOTDIR, errno.ELOOP)
OF_ONE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EUCLEAN, errno.EBADMSG)   # what one file or directory may say
OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ALIGNMENT = 4096        # bytes: direct I/O takes multiples of a disk's block, of which none is larger
BUFFER = 2 << 20        # bytes of one direct write; twice as much is no faster
BUFFERS = 4             # writes at once; one alone keeps a disk nearly busy


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
        if error.errno in IN_THE_WAY:
            raise ModelExists("a file or a link stands where a directory should be: remove it") from error
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

    def __init__(self, path: Path, buffers: Buffers) -> None:
        self.size = 0
        self._buffers = buffers
        self._rest = b""    # less than ALIGNMENT, which is left for the end
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
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


def write_new(path: Path, data: bytes) -> None:
    """Makes a file of these bytes that is on disk when this returns."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def rename_new(source: Path, parent: int, name: str) -> bool:
    """Renames to where nothing is; False when something is there."""
    try:
        # rename(2) replaces an empty directory only, so of two writers one wins even where no lock works
        os.rename(source, name, dst_dir_fd=parent)
    except OSError as error:
        if error.errno in (*OCCUPIED, errno.ENOTDIR):
            return False
        raise
    return True


def sync(descriptors: Sequence[int]) -> None:
    """All of the way up, not the newly made alone: the one who made an ancestor may not have synced it yet."""
    for descriptor in reversed(descriptors):
        os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes what stands at `path`, its model first, as readers rely on; what stays is left to the next start."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            (path / MODEL).unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        if error.errno not in GONE:
            log.error("cannot remove %s: %s", path, error)


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


def stamp(path: str, directory: int | None = None) -> Stamp | None:
    """None where there is no regular file, nor behind a link. Raises what is not an answer."""
    try:
        status = os.lstat(path, dir_fd=directory)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise   # EIO, of which os.path.isfile would make a no
    return stamp_of(status) if stat.S_ISREG(status.st_mode) else None


def stamp_of(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def flock(path: Path, flags: int = 0) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)


def rename_exchange(source: Path, parent: int, name: str) -> bool:
    """renameat2(2) with RENAME_EXCHANGE, which Python lacks; False where the file system or the C library lacks it."""
    at_cwd, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(at_cwd, os.fsencode(source), parent, os.fsencode(name), exchange):
        code = ctypes.get_errno()
        if code not in NO_EXCHANGE:
            raise OSError(code, os.strerror(code))
        return False
    return True
