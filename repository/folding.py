"""File systems that take names for the same if they differ only in case: vfat, ext4 and macOS may do that.

There Baseline would replace baseline, and a token for SECRET could read secret. So if the file system folds names, each
name on the way to a model is compared with those that its directory lists. Whether it does is tried once in a while and
not for each request.
"""

import errno
import logging
import os
import time
from contextlib import suppress

log = logging.getLogger("model_server.folding")
KEPT = 60.0             # seconds until it is tried again whether a directory folds: another one may be mounted there
MOST = 10_000           # projects for which the result is kept
LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OtherName(FileNotFoundError):
    """There is nothing of this name, but the file system finds something with another spelling under it."""

    def __init__(self, place: str) -> None:
        super().__init__(errno.ENOENT, f"{place} is there in another spelling, the same name to this file system")


class Folding:
    """Refuses names that exist only in another spelling; `names` lead from the top of a tree down."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, bool]] = {}     # by project, the top as ""
        self._told: set[str] = set()

    def check(self, top: int, names: tuple[str, ...]) -> None:
        """Raises OtherName if what is at these names is spelled differently; `top` may be an O_PATH descriptor."""
        if names and (self._folds(top, "") or self._folds(top, names[0])):
            self._compare(top, names)

    def listed(self, directory: int) -> list[str]:
        """The names in a directory as they are spelled there."""
        return os.listdir(directory)

    def _folds(self, top: int, project: str) -> bool:
        """Whether names are folded in the directory of a project; false if there is none."""
        moment, folds = self._known.get(project, (0.0, False))
        if moment and time.monotonic() - moment < KEPT:
            return folds
        try:
            directory = os.open(project or ".", LISTED, dir_fd=top)
        except OSError:     # the caller will open or create it, and meet the same error
            return False
        try:
            found = self.evidence(directory)
            folds = os.fstat(directory).st_dev != os.stat(top).st_dev if found is None else found
        finally:
            os.close(directory)
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[project] = time.monotonic(), folds
        if folds and project not in self._told:
            self._told.add(project)
            log.warning("the file system of %s takes names that differ only in case for the same: of two such names "
                        "the second is refused", project or "the storage")
        return folds

    def evidence(self, directory: int) -> bool | None:
        """Whether an entry is found under another spelling, too; None if no entry has a letter."""
        names = self.listed(directory)
        other = next((name.swapcase() for name in names if name.swapcase() != name), None)
        if other is None:
            return None
        return other not in names and is_there(directory, other)

    def _is_other(self, directory: int, name: str) -> bool:
        """Whether something is found under a name that the directory does not list; nor has it been made meanwhile."""
        return (name not in self.listed(directory) and is_there(directory, name)
                and name not in self.listed(directory))

    def _compare(self, top: int, names: tuple[str, ...]) -> None:
        directory = os.open(".", LISTED, dir_fd=top)
        try:
            for depth, name in enumerate(names, 1):
                if self._is_other(directory, name):
                    raise OtherName("/".join(names[:depth]))
                try:
                    below = os.open(name, LISTED, dir_fd=directory)
                except OSError:     # nothing is there, or the caller will meet the same error
                    return
                os.close(directory)
                directory = below
        finally:
            os.close(directory)


def is_there(directory: int, name: str) -> bool:
    with suppress(OSError):
        os.lstat(name, dir_fd=directory)
        return True
    return False
