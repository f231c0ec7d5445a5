"""Moving a finished draft to the path of its model: by one rename, one exchange, or three renames.

A whole version, with all models in it, is moved in the same way.

Some file systems, such as GlusterFS, have no atomic exchange (RENAME_EXCHANGE). There, what is replaced is first set
aside: it is renamed to a directory below `.staging` with the same names, where readers look for it. Then the new one is
renamed into place, and the old one is removed. After a crash in between, the next start or the next change of this
model or version, or of a model that it excludes, restores the old one.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from repository import filesystem
from repository.directories import Directory, Tree
from repository.errors import ModelExists, StorageFailed
from repository.model import VERSION_DEPTH, ModelKey, Names
from repository.staging import REPLACED, REPLACED_VERSIONS, STAGING, Staging

TRIES = 50      # attempts to create parents that deletes prune at the same time


class Replacement:
    """Moves drafts into a tree. The caller of each method holds the lock of the model, or of the whole version."""

    def __init__(self, tree: Tree, staging: Staging) -> None:
        self._tree, self._staging = tree, staging

    def place(self, drafts: Directory, draft: str, names: Names, replacing: bool) -> None:
        """Moves a finished draft into place, on disk when this returns; what it replaces then has the draft's name.

        `names` are those of a model or of a version; the draft is the directory called `draft` in `drafts`. Raises
        ModelExists if something is in the way and `replacing` is false.
        """
        *place, name = names
        aside, base = False, base_of(names)
        for attempt in range(TRIES):
            # a delete can prune the parents after they are created and before the rename
            with suppress(FileNotFoundError), self._tree.walk(*place, create=True) as parent:
                if not drafts.rename_new(draft, parent, name):
                    if not replacing and not attempt:
                        self._tree.clear(*names)    # directories of an upload into it that was cut off
                        continue
                    if not replacing:
                        raise ModelExists(f"{'/'.join(names)} is taken by something that is not a model, which has to "
                                          "be removed on disk, or it was just created: then send the model again")
                    if not drafts.exchange(draft, parent, name):
                        self._set_aside(parent, names)
                        aside = True
                        continue
                parent.sync()
                if aside:
                    with self._staging.at(base, *place) as replaced:
                        replaced.rename(name, drafts, draft)
                    self._tree.prune(STAGING, base, *place)
                return
        raise StorageFailed(f"the directories of {'/'.join(names)} are removed as fast as they are created")

    def _set_aside(self, parent: Directory, names: Names) -> None:
        *place, name = names
        with self._staging.at(base_of(names), *place, create=True) as replaced:
            parent.rename(name, replaced, name)
            replaced.sync()

    def restore(self, names: Names) -> None:
        """Moves back what a crash or an error left set aside: the version, this model, and those that it excludes.

        With the names of a version, all models in it.
        """
        self._move_back(names[:VERSION_DEPTH])
        first = names[: VERSION_DEPTH + 1]      # all below it have the same lock
        try:
            self._staging.at(REPLACED, *first).close()
        except FileNotFoundError:
            return
        for aside in list(self._aside(first)):
            self._move_back(aside.names)

    def _move_back(self, names: Names) -> None:
        *place, name = names
        base = base_of(names)
        # FileNotFoundError: it is not set aside, or another thread that shares the version's lock has moved it back
        with suppress(FileNotFoundError), self._staging.at(base, *names), self._staging.at(base, *place) as replaced:
            with self._tree.walk(*place, create=True) as parent:
                if not replaced.rename_new(name, parent, name):
                    replaced.remove(name)   # the new version is in place
                parent.sync()
            self._tree.prune(STAGING, base, *place)

    def left_aside(self) -> Iterator[Names]:
        """The models and versions that are set aside."""
        yield from list(self._versions_aside())
        yield from [key.names for key in self._aside(())]

    def _aside(self, names: Names) -> Iterator[ModelKey]:
        # only the metadata is left of one whose removal was cut off
        is_model = partial(self._tree.has, (filesystem.MODEL, filesystem.METADATA))
        return self._tree.scan((STAGING, REPLACED), is_model, names)

    def _versions_aside(self, *names: str) -> Iterator[Names]:
        if len(names) == VERSION_DEPTH:
            yield names
        else:
            for name in self._tree.subdirectories(STAGING, REPLACED_VERSIONS, *names):
                yield from self._versions_aside(*names, name)

    def clear(self) -> None:
        """Removes the empty directories of what was set aside."""
        for base in (REPLACED, REPLACED_VERSIONS):
            self._tree.clear(STAGING, base)


def base_of(names: Names) -> str:
    """Where a model or a version is set aside. A model that is set aside belongs to the version that is in place."""
    return REPLACED if len(names) > VERSION_DEPTH else REPLACED_VERSIONS
