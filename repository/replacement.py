"""Putting a finished draft in the place of a model: by one rename, one exchange, or three renames.

Not every file system has an atomic exchange (RENAME_EXCHANGE): GlusterFS has none. There the old version is renamed
first to a place below the staging directory that is named after its key. Readers look for it there, and the next start,
or the next change of this model, brings it back after a crash. Then the new version takes its place, and the old one
goes the way of what is removed.
"""

from collections.abc import Iterator
from contextlib import suppress

from repository.directories import Directory, Tree
from repository.errors import ModelExists, StorageFailed
from repository.model import ModelKey
from repository.staging import REPLACED, STAGING, Staging

TRIES = 50      # how often parents are made again that deletes prune at the same time


class Replacement:
    """Places drafts in a tree. Every method is to be called with the lock of the model held."""

    def __init__(self, tree: Tree, staging: Staging) -> None:
        self._tree, self._staging = tree, staging

    def place(self, draft: str, key: ModelKey, replacing: bool) -> None:
        """Puts a finished draft in place; what it replaces stands at `draft` afterwards.

        Raises ModelExists where something is there and `replacing` is false.
        """
        aside, name = False, key.model_name
        with self._staging.session() as session:
            for _ in range(TRIES):
                # a delete may prune the parents between our making them and our rename
                with suppress(FileNotFoundError), self._tree.walk(*key.names[:-1], create=True) as parent:
                    if not session.rename_new(draft, parent, name):
                        if not replacing:
                            raise ModelExists(f"{key} is taken by something that appeared just now or is no model")
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
        raise StorageFailed(f"the directories of {key} vanish as fast as they are made")

    def _set_aside(self, parent: Directory, key: ModelKey) -> None:
        with self._staging.at(REPLACED, *key.names[:-1], create=True) as replaced:
            parent.rename(key.model_name, replaced, key.model_name)
            replaced.sync()

    def restore(self, key: ModelKey) -> None:
        """Brings back the old version that a replacement left aside, in a crash or by a fault."""
        try:
            self._staging.at(REPLACED, *key.names).close()
        except FileNotFoundError:
            return
        place = key.names[:-1]
        with self._staging.at(REPLACED, *place) as replaced, self._tree.walk(*place, create=True) as parent:
            if not replaced.rename_new(key.model_name, parent, key.model_name):
                replaced.remove(key.model_name)     # the new version had arrived
            parent.sync()
        self._tree.prune(STAGING, REPLACED, *place)

    def left_aside(self) -> Iterator[ModelKey]:
        """The models of which a replacement left an old version aside."""
        yield from [ModelKey(*names) for names in self._tree.scan((STAGING, REPLACED))]

    def clear(self) -> None:
        """Removes what is left empty of the places set aside."""
        self._tree.clear(STAGING, REPLACED)
