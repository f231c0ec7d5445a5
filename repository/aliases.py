"""Aliases of versions, `@production`: symbolic links beside the versions of an application, read and never followed.

    {root}/{project_id}/{app_name}/@production -> 1.2.0

Programs that mount the tree can follow them. An alias is moved by one rename: it points at the old or the new version.
"""

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from repository import filesystem
from repository.directories import LISTED, Directory, Tree
from repository.errors import ModelExists, NotEmpty
from repository.model import NAME, Names
from repository.staging import Staging

log = logging.getLogger("model_server.storage")
MARK = "@"          # before its name: no version can begin with it
ALIAS = re.compile(MARK + NAME.pattern)
Check = Callable[[str | None], None]
MAX_TOLD = 100      # foreign entries that are logged; more would only fill the log


class Aliases:
    """The aliases in a tree, read from the disk each time: what another process has moved shows at once."""

    def __init__(self, tree: Tree, staging: Staging) -> None:
        self._tree, self._staging = tree, staging
        self._told: set[str] = set()
        self._last: tuple[Names, int, dict[str, str]] = ((), 0, {})     # an application, a state, its aliases then

    def version(self, project_id: str, app_name: str, alias: str) -> str | None:
        """The version that `alias` points at, whether anything is there or not; None if there is no such alias."""
        with filesystem.as_store_errors():
            try:
                self._tree.check_names(project_id, app_name, alias)
                with self._tree.reach(project_id, app_name) as directory:
                    return self._target(directory, alias, (project_id, app_name))
            except OSError as error:
                if error.errno not in filesystem.ABSENT:
                    raise
                return None

    def below(self, *names: str) -> Iterator[Names]:
        """The aliases of these names, as project, application, alias and version: with three, those of one version."""
        with filesystem.as_store_errors():
            if len(names) < 2:
                for name in self._tree.subdirectories(*names):
                    yield from self.below(*names, name)
                return
            for alias, version in self._listed(names[:2]).items():
                if names[2:3] in ((), (version,)):
                    yield (*names[:2], alias, version)

    def point(self, project_id: str, app_name: str, alias: str, version: str, check: Check) -> None:
        """Makes an alias or moves it; it is on disk when this returns. `check`, given where it points, may raise."""
        scratch = f"{self._staging.new_name()}.link"
        with filesystem.as_store_errors(), self._staging.locked_aliases() as lock, self._staging.session() as session:
            check(self.version(project_id, app_name, alias))
            filesystem.lengthen(lock)   # which tells that aliases may have changed
            with self._tree.walk(project_id, app_name) as parent:
                os.symlink(version, scratch, dir_fd=session.descriptor)
                try:
                    session.rename(scratch, parent, alias)
                except IsADirectoryError as error:
                    raise ModelExists(f"a directory stands where the alias {alias} should be: remove it") from error
                finally:
                    session.unlink(scratch)
                parent.sync()

    def remove(self, project_id: str, app_name: str, alias: str, check: Check) -> None:
        """Takes an alias away; what it points at stays. `check` as for point(), which raises if there is none."""
        with filesystem.as_store_errors(), self._staging.locked_aliases():
            check(self.version(project_id, app_name, alias))
            with self._tree.walk(project_id, app_name) as parent:
                parent.unlink(alias)
                parent.sync()
        self._tree.prune(project_id, app_name)

    @contextmanager
    def followed(self, version: Names, is_last: Callable[[], bool]) -> Iterator[None]:
        """While something of a version is removed: no alias is made then, and none is left that points at nothing.

        Raises NotEmpty if an alias points at the version, and `is_last` tells that nothing would be left of it.
        """
        with self._staging.locked_aliases() as lock:
            state, application = os.fstat(lock).st_size, version[:-1]
            if self._last[:2] != (application, state):  # or each of thousands of deletes would read the directory
                self._last = application, state, self._listed(application)
            for alias, name in self._last[2].items():
                if name == version[-1] and self.version(version[0], version[1], alias) == name and is_last():
                    raise NotEmpty(points_at(alias, version))
            yield

    def _listed(self, names: Names) -> dict[str, str]:
        try:
            with self._tree.reach(*names, flags=LISTED) as directory:
                found = {name: self._target(directory, name, names) for name in sorted(directory.names())
                         if ALIAS.fullmatch(name)}
        except OSError as error:
            if error.errno not in filesystem.ABSENT and not isinstance(error, PermissionError):
                raise
            return {}   # lists tell of a directory that cannot be read
        return {alias: version for alias, version in found.items() if version}

    def _target(self, directory: Directory, alias: str, names: Names) -> str | None:
        """The version in the text of a link; None, and once a line in the log, for anything else that stands there."""
        try:
            text = os.readlink(alias, dir_fd=directory.descriptor)
        except OSError as error:
            if error.errno in filesystem.ABSENT:
                return None
            if error.errno != errno.EINVAL:     # EINVAL: it is not a link
                raise
            text = ""
        if NAME.fullmatch(text):
            return text
        where = "/".join((*names, alias))
        if where not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(where)
            log.warning("%s is not a link to the name of a version beside it, so it is no alias: remove it", where)
        return None


def points_at(alias: str, version: Names) -> str:
    """Why a version is not deleted."""
    return (f"the alias {alias} of {'/'.join(version[:-1])} points at {version[-1]}: move it to another version first, "
            "or add ?recursive=true&aliases=true to remove it, too")
