"""Moving a finished draft to the path of its model: by one rename, one exchange, or three renames.

Some file systems, such as GlusterFS, have no atomic exchange (RENAME_EXCHANGE). There, the old version is first set
aside: it is renamed to a directory below `.staging` with the same names, where readers look for it. Then the new
version is renamed into place, and the old one is removed. After a crash in between, the next start or the next change
of this model, or of one that it excludes, restores the old version.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from repository import filesystem
from repository.directories import Directory, Tree
from repository.errors import ModelExists, StorageFailed
from repository.model import VERSION_DEPTH, ModelKey, Names
from repository.staging import REPLACED, STAGING, Staging

TRIES = 50      # attempts to create parents that deletes prune at the same time


class Replacement:
    """Moves drafts into a tree. The caller of each method holds the lock of the model."""

    def __init__(self, tree: Tree, staging: Staging) -> None:
        self._tree, self._staging = tree, staging

    def place(self, draft: str, key: ModelKey, replacing: bool) -> None:
        """Moves a finished draft into place, on disk when this returns; the version it replaces is then at `draft`.

        Raises ModelExists if something is in the way and `replacing` is false.
        """
        aside, name = False, key.name
        with self._staging.session() as session:
            for attempt in range(TRIES):
                # a delete can prune the parents after they are created and before the rename
                with suppress(FileNotFoundError), self._tree.walk(*key.names[:-1], create=True) as parent:
                    if not session.rename_new(draft, parent, name):
                        if not replacing and not attempt:
                            self._tree.clear(*key.names)    # directories of an upload into it that was cut off
                            continue
                        if not replacing:
                            raise ModelExists(f"{key} is taken by something that is no model or was just created")
                        if not session.exchange(draft, parent, name):
                            self._set_aside(parent, key)
                            aside = True
                            continue
                    parent.sync()
                    if aside:
                        with self._staging.at(REPLACED, *key.names[:-1]) as replaced:
                            replaced.rename(name, session, draft)
                        self._tree.prune(STAGING, REPLACED, *key.names[:-1])
                    return
        raise StorageFailed(f"the directories of {key} are removed as fast as they are created")

    def _set_aside(self, parent: Directory, key: ModelKey) -> None:
        with self._staging.at(REPLACED, *key.names[:-1], create=True) as replaced:
            parent.rename(key.name, replaced, key.name)
            replaced.sync()

    def restore(self, key: ModelKey) -> None:
        """Moves back old versions that a crash or an error left set aside: of this model, or of those it excludes."""
        first = key.names[: VERSION_DEPTH + 1]      # all below it have the same lock
        try:
            self._staging.at(REPLACED, *first).close()
        except FileNotFoundError:
            return
        for aside in list(self._aside(first)):
            *place, name = aside.names
            with self._staging.at(REPLACED, *place) as replaced, self._tree.walk(*place, create=True) as parent:
                if not replaced.rename_new(name, parent, name):
                    replaced.remove(name)   # the new version is in place
                parent.sync()
            self._tree.prune(STAGING, REPLACED, *place)

    def left_aside(self) -> Iterator[ModelKey]:
        """The models whose old version is set aside."""
        yield from list(self._aside(()))

    def _aside(self, names: Names) -> Iterator[ModelKey]:
        # the metadata alone is left of one whose removal was cut off
        is_model = partial(self._tree.has, (filesystem.MODEL, filesystem.METADATA))
        return self._tree.scan((STAGING, REPLACED), is_model, names)

    def clear(self) -> None:
        """Removes the empty directories of versions that were set aside."""
        self._tree.clear(STAGING, REPLACED)
