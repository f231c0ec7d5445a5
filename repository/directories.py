"""Directories by descriptor. No link below the top of a tree is followed, so a planted link cannot lead out of it."""

import ctypes
import errno
import fcntl
import functools
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from repository import filesystem
from repository.errors import InvalidName
from repository.folding import Folding, OtherName
from repository.model import MAX_DEPTH, NAME, RESERVED_PROJECTS, VERSION_DEPTH, ModelKey, Names

log = logging.getLogger("model_server.directories")
T = TypeVar("T")
TOP = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC   # the top itself can be a link: the operator chose it
LISTED = TOP | os.O_NOFOLLOW
# O_PATH: a network file system need not be asked to open it
REACHED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
AT_FDCWD = -100         # fcntl.h
OPENAT2 = 437           # the same number on all architectures; neither Python nor glibc has a function for it
BENEATH, NO_SYMLINKS = 0x08, 0x04   # openat2(2): RESOLVE_…
NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
NO_LOCK = (errno.ELOOP, errno.EISDIR, errno.ENXIO)      # a link, a directory or a socket in place of a lock file
TRIES = 50              # attempts to create directories that other processes prune at the same time
DIRECTORY = "a directory"
KEPT = 1.0              # seconds for which readers use the same descriptor of the top
KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFREG: "a file", stat.S_IFDIR: DIRECTORY}


class Directory:
    """An open directory. `way` are the descriptors on the way to it, its own last; `place` is only for messages."""

    def __init__(self, place: str, *way: int) -> None:
        self.place = place
        self.descriptor = way[-1]
        self._way = [*way]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._way:
            os.close(self._way.pop())

    __del__ = close     # for the descriptor of the top that Tree keeps, which has no `with`

    def descend(self, name: str, create: bool) -> None:
        """Moves on to a directory in this one, which is created if `create` says so; raises OSError."""
        try:
            below = os.open(name, LISTED, dir_fd=self.descriptor)
        except FileNotFoundError:
            if not create:
                raise
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.descriptor)
            below = os.open(name, LISTED, dir_fd=self.descriptor)
        self._way.append(below)
        self.descriptor = below
        self.place += f"/{name}"

    def open(self, name: str) -> "Directory":
        """A directory in this one; raises OSError."""
        return Directory(f"{self.place}/{name}", os.open(name, LISTED, dir_fd=self.descriptor))

    def mount(self) -> tuple[int, str]:
        """The device and the id of the mount; files can be renamed only between places where both are equal."""
        # one file system can be mounted twice, and one mount can hold two subvolumes; without /proc, only the device
        with suppress(FileNotFoundError), open(f"/proc/self/fdinfo/{self.descriptor}", encoding="ascii") as file:
            mount = re.search(r"^mnt_id:\s*(\d+)", file.read(), re.MULTILINE)
            return os.fstat(self.descriptor).st_dev, mount[1] if mount else ""
        return os.fstat(self.descriptor).st_dev, ""

    def group(self) -> int | None:
        """The group that new entries inherit from this directory (setgid); None if they get that of the process."""
        status = os.fstat(self.descriptor)
        return status.st_gid if status.st_mode & stat.S_ISGID else None

    def sync(self) -> None:
        """Syncs every directory up to the top: one that another process created may not have been synced yet."""
        for descriptor in reversed(self._way):
            os.fsync(descriptor)

    def names(self) -> list[str]:
        return os.listdir(self.descriptor)

    def kind(self, name: str) -> str | None:
        """What an entry is, in words; None if it does not exist."""
        try:
            mode = os.lstat(name, dir_fd=self.descriptor).st_mode
        except FileNotFoundError:
            return None
        return KINDS.get(stat.S_IFMT(mode), "a special file")

    def mkdir(self, name: str) -> None:
        os.mkdir(name, dir_fd=self.descriptor)

    def create(self, name: str) -> int:
        """The descriptor of a new file, open for reading and writing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o666, dir_fd=self.descriptor)

    def unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def rename(self, name: str, target: "Directory", new_name: str) -> None:
        try:
            os.rename(name, new_name, src_dir_fd=self.descriptor, dst_dir_fd=target.descriptor)
        except OSError as error:
            if error.errno == errno.ESTALE:     # as on one machine, where that is ENOENT
                raise FileNotFoundError(errno.ENOENT, "removed through another mount", name) from error
            raise

    def rename_new(self, name: str, target: "Directory", new_name: str) -> bool:
        """Renames a directory unless something is at the new name; returns whether it did."""
        try:
            # rename(2) replaces only empty directories, so one of two writers wins even without working locks
            self.rename(name, target, new_name)
        except OSError as error:
            if error.errno in (*filesystem.OCCUPIED, errno.ENOTDIR):
                return False
            raise
        return True

    def exchange(self, name: str, target: "Directory", other: str) -> bool:
        """Exchanges two entries: renameat2(2), RENAME_EXCHANGE. Returns False if the file system or libc cannot."""
        exchange = 2
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if renameat2 is None:
            return False
        if renameat2(self.descriptor, os.fsencode(name), target.descriptor, os.fsencode(other), exchange):
            code = ctypes.get_errno()
            if code not in NO_EXCHANGE:
                raise OSError(code, os.strerror(code))
            return False
        return True

    def open_lock(self, name: str, access: int = os.O_RDONLY) -> int:
        """The descriptor of a lock file, created if missing; raises InTheWay if it is not a regular file."""
        descriptor = self._open_any(name, access)
        try:
            self._check_lock(name, descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _open_any(self, name: str, access: int) -> int:
        try:
            # NONBLOCK: opening a planted fifo must not block
            flags = access | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return os.open(name, flags, 0o666, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in NO_LOCK:
                raise filesystem.InTheWay(f"{self.place}/{name}", self.kind(name)) from error
            raise

    def _check_lock(self, name: str, descriptor: int) -> None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise filesystem.InTheWay(f"{self.place}/{name}", self.kind(name))

    def lock(self, name: str, how: int = fcntl.LOCK_EX, access: int = os.O_RDONLY) -> int:
        """A descriptor that holds the lock of this name until it is closed; BlockingIOError if `how` has LOCK_NB.

        `access` is O_RDWR for a lock file with contents. A file open for writing prevents `mount -o remount,ro`.
        """
        while True:
            descriptor = self._open_any(name, access)
            try:
                self._check_lock(name, descriptor)
                fcntl.flock(descriptor, how)
                if self.has(name, descriptor):
                    return descriptor   # otherwise it was removed while we waited, and others lock a new one
            except OSError as error:
                # NFS turns flock into a byte-range lock, which needs a descriptor open for writing
                if error.errno == errno.EBADF and access != os.O_RDWR:
                    access = os.O_RDWR
                elif error.errno != errno.ESTALE:   # which is that it was removed through another mount
                    os.close(descriptor)
                    raise
            os.close(descriptor)

    def has(self, name: str, descriptor: int) -> bool:
        """Whether this name still refers to the file that is open."""
        try:
            return os.path.samestat(os.lstat(name, dir_fd=self.descriptor), os.fstat(descriptor))
        except OSError as error:
            if error.errno not in filesystem.GONE:
                raise
            return False

    def remove(self, name: str) -> None:
        """Removes an entry and its contents, models first, as readers expect; logs what could not be removed."""
        try:
            if self.kind(name) == DIRECTORY:
                with self.open(name) as inside:
                    if mounted := mounts_below(inside):     # another file system, which is not ours to empty
                        log.error("cannot remove %s/%s: unmount %s first", self.place, name, ", ".join(mounted))
                        return
                for _, _, files, below in os.fwalk(name, dir_fd=self.descriptor):
                    if filesystem.MODEL in files:
                        with suppress(FileNotFoundError):
                            os.unlink(filesystem.MODEL, dir_fd=below)
                shutil.rmtree(name, dir_fd=self.descriptor)     # follows no link either
            else:
                self.unlink(name)
        except (OSError, RecursionError) as error:      # RecursionError: a thousand nested directories
            number = getattr(error, "errno", None)
            if number in (errno.EBUSY, *filesystem.OCCUPIED):   # NFS keeps a file that is open, under another name
                log.info("somebody still reads %s/%s, which is removed when this server stops: %s", self.place, name,
                         error)
            elif number not in filesystem.GONE:
                log.error("cannot remove %s/%s: %s", self.place, name, error)


class Tree:
    """The directories below `top`, each found by its names from the top down; names contain no slash."""

    def __init__(self, top: Path) -> None:
        self.top = os.fspath(top)
        # called for directories below the top that are skipped because they cannot be read, or are links
        self.unreadable: Callable[[Names, OSError], None] = lambda names, error: None
        self.linked: Callable[[Names], None] = lambda names: None
        self.folding = Folding()
        self._kept: Directory | None = None     # the top; closed with its last reference
        self._kept_until = 0.0

    def reach(self, *names: str, flags: int = REACHED) -> Directory:
        """Opens a directory to read it, with as few system calls as possible; raises OSError, ABSENT included."""
        if not names:
            return self._open_top(flags & ~os.O_NOFOLLOW)
        top = self.kept_top()
        try:
            found = Directory(self.top, open_beneath(top.descriptor, names, flags))
            self.folding.check(top.descriptor, names)
            return found
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise FileNotFoundError(errno.ENOENT, "removed through another mount") from error
            raise

    def _open_top(self, flags: int) -> Directory:
        try:
            return Directory(self.top, os.open(self.top, flags))
        except OSError as error:
            if error.errno not in (*filesystem.ABSENT, *filesystem.OF_ONE):
                raise
            # callers would take these for a missing or unreadable directory, as if all models had been deleted
            raise filesystem.failed(error) from error

    def kept_top(self) -> Directory:
        """The top, open and shared by readers for a moment: it closes with the last reference to it."""
        top, now = self._kept, time.monotonic()
        if top is None or now > self._kept_until:
            top = self._kept = self.reach()
            self._kept_until = now + KEPT
        return top

    def check_names(self, *names: str) -> None:
        """Raises OtherName if what is found at these names, as far as they lead, is spelled differently."""
        with self.reach() as top:
            self.folding.check(top.descriptor, names)

    def nearest(self, *names: str) -> Directory:
        """The innermost of these nested directories that exists."""
        for depth in range(len(names), 0, -1):
            try:
                return self.reach(*names[:depth])
            except OSError as error:
                if error.errno not in filesystem.ABSENT:
                    raise
        return self.reach()

    def of_nearest(self, names: Names, tell: Callable[[Directory], T]) -> T:
        """What `tell` returns for nearest(), even if another mount removes that at this moment."""
        for _ in range(TRIES):
            try:
                with self.nearest(*names) as place:
                    return tell(place)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
        raise FileNotFoundError(errno.ENOENT, "it is removed as fast as it is created", "/".join(names))

    def walk(self, *names: str, create: bool = False) -> Directory:
        """Opens a directory to change it, with those on the way; raises InTheWay for what is not a directory."""
        self._kept_until = 0.0      # if the top is a link that was changed, later reads follow it too
        tries = TRIES if create else 1
        while True:
            tries -= 1
            directory = self._open_top(TOP)
            try:
                top = directory.descriptor
                for name in names:
                    directory.descend(name, create)
                self.folding.check(top, names)
                return directory
            except OtherName:
                directory.close()
                raise
            except OSError as error:
                with directory:
                    if error.errno in filesystem.IN_THE_WAY:
                        raise filesystem.InTheWay(f"{directory.place}/{name}", directory.kind(name)) from error
                if error.errno not in filesystem.GONE:
                    raise
                if not tries:   # until then, another process may have pruned what was just created
                    raise FileNotFoundError(errno.ENOENT, f"{directory.place}/{name} is gone") from error

    def has(self, files: Collection[str], names: Names) -> bool:
        """Whether the directory of these names has one of these regular files."""
        try:
            with self.reach(*names) as directory:
                return any(filesystem.stamp(file, directory.descriptor) for file in files)
        except OSError as error:
            if error.errno not in filesystem.ABSENT:
                raise
            return False

    def subdirectories(self, *names: str) -> list[str]:
        """The subdirectories whose names follow the grammar, in order; [] if this is not a directory."""
        try:
            with self.reach(*names, flags=LISTED) as directory, os.scandir(directory.descriptor) as entries:
                named = [entry for entry in entries if NAME.fullmatch(entry.name)]
                children = [entry.name for entry in named if entry.is_dir(follow_symlinks=False)]
                for entry in named:
                    if entry.is_symlink():
                        self.linked((*names, entry.name))
        except OSError as error:
            if isinstance(error, PermissionError) and names:    # such as lost+found, if the top is that of a disk
                self.unreadable(names, error)
            elif error.errno not in filesystem.ABSENT:
                raise
            return []
        return sorted(children)

    def scan(self, base: Names, is_model: Callable[[Names], bool], names: Names = ()) -> Iterator[ModelKey]:
        """The models at these names and below them, in a tree at `base`, in order; none is inside another one."""
        if len(names) > VERSION_DEPTH and is_model((*base, *names)):
            with suppress(InvalidName):     # put there by hand, under a name that is a route
                yield ModelKey.at(names)
        elif len(names) < MAX_DEPTH:
            for name in self.subdirectories(*base, *names):
                if names or name not in RESERVED_PROJECTS:
                    yield from self.scan(base, is_model, (*names, name))

    def prune(self, *names: str) -> None:
        """Removes the innermost of these nested directories, and then each one around it, as long as they are empty."""
        for depth in range(len(names), 0, -1):
            try:
                with self.reach(*names[: depth - 1]) as above:
                    os.rmdir(names[depth - 1], dir_fd=above.descriptor)
            except OSError as error:
                if error.errno in filesystem.OCCUPIED:
                    return
                if error.errno not in filesystem.ABSENT:
                    log.warning("cannot remove the empty directory of %s: %s", "/".join(names[:depth]), error)
                    return

    def clear(self, *names: str, levels: int = MAX_DEPTH) -> None:
        """Removes the empty directories in up to `levels` levels below one, and then itself if it is empty."""
        for name in self.subdirectories(*names) if levels else ():
            self.clear(*names, name, levels=levels - 1)
        with suppress(OSError), self.reach(*names[:-1]) as above:    # not empty: another process is using it
            os.rmdir(names[-1], dir_fd=above.descriptor)


def open_beneath(top: int, names: Names, flags: int) -> int:
    """The descriptor of a directory below `top`, by one system call if openat2(2) is available (Linux 5.6)."""
    if call := openat2():
        return call(top, "/".join(names).encode(), flags)
    with Directory("", os.dup(top)) as way:
        for name in names[:-1]:
            way.descend(name, create=False)
        return os.open(names[-1], flags, dir_fd=way.descriptor)


def mounted_at(mount: str) -> str:
    """Describes the mount with this id: its type, device and directory; see proc_pid_mountinfo(5)."""
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            if (fields := before.split())[0] == mount:
                return f"{' '.join(after.split()[:2])}, mounted at {fields[4]}"
    return "another file system"


def mounts_below(directory: Directory) -> list[str]:
    """Where something is mounted below an open directory; [] without /proc. See proc_pid_mountinfo(5)."""
    with suppress(FileNotFoundError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        top = Path(f"/proc/self/fd/{directory.descriptor}").readlink()
        points = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines)
        return [point for point in points if point.startswith(f"{top}/")]
    return []


class OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


@functools.cache
def openat2() -> Callable[[int, bytes, int], int] | None:
    """openat2(2) without following links, as a function of (descriptor, path, flags); None if it is unavailable."""
    syscall = getattr(ctypes.CDLL(None, use_errno=True), "syscall", None)
    if syscall is None:
        return None
    syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    syscall.restype = ctypes.c_long
    hows = {flags: OpenHow(flags, 0, BENEATH | NO_SYMLINKS) for flags in (REACHED, LISTED)}
    places, size = {flags: ctypes.addressof(how) for flags, how in hows.items()}, ctypes.sizeof(OpenHow)

    def call(directory: int, path: bytes, flags: int, _keep: object = hows) -> int:
        descriptor: int = syscall(OPENAT2, directory, path, places[flags], size)
        if descriptor < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fsdecode(path))
        return descriptor

    try:
        os.close(call(AT_FDCWD, b".", REACHED))
    except OSError:
        return None
    return call
