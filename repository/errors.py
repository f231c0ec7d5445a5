"""The store's words for what can be wrong."""

from collections.abc import Sequence


class StoreError(Exception):
    """What the store has to say against a request."""


class InvalidName(StoreError):
    pass


class InvalidMetadata(StoreError):
    pass


class MetadataUnreadable(StoreError):
    """A change would replace what nobody could read."""


class ModelNotFound(StoreError):
    pass


def absent(names: Sequence[str]) -> ModelNotFound:
    """The words for a model that is not there, and the same ones for a model that a caller may not know of."""
    return ModelNotFound(f"there is no model {'/'.join(names)}")


class ModelExists(StoreError):
    pass


class ReadOnly(StoreError):
    pass


class NotEmpty(StoreError):
    """A delete would take more than one model with it."""


class StorageFull(StoreError):
    pass


class ModelCorrupt(StoreError):
    """The bytes of a model are known not to be what was uploaded."""


class StorageFailed(StoreError):
    """The file system under the store failed; the cause is the OSError."""


class ModelUnreadable(StorageFailed):
    """It failed for the files of one model, and the storage answers."""


class StorageLost(StorageFailed):
    """It fails for everything that there is."""


class Obstructed(StorageFailed):
    """Something else stands where the server keeps its own files; the words say what to do."""
