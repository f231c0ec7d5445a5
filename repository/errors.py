"""The exceptions of the store."""

from collections.abc import Sequence


class StoreError(Exception):
    """The store cannot do what was asked; the message says why, and what to do."""


class InvalidName(StoreError):
    """A name does not follow the grammar of names; `field` says which of the names it is, if that is known."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class InvalidMetadata(StoreError):
    """Metadata has too many fields, or too long ones, or cannot be written as JSON."""


class MetadataUnreadable(StoreError):
    """A change would replace a metadata.json that cannot be read."""


class ModelNotFound(StoreError):
    """There is no such model, or the caller may not know of it."""


def absent(names: Sequence[str]) -> ModelNotFound:
    """The error for a model that does not exist, and for one that the caller may not know of."""
    return ModelNotFound(f"there is no model {'/'.join(names)}")


class ModelExists(StoreError):
    """The model exists, or something else stands at its path."""


class ReadOnly(StoreError):
    """The storage is mounted read-only, or this part of it cannot be changed."""


class NotEmpty(StoreError):
    """A delete would remove more than one model."""


class StorageFull(StoreError):
    """There is no space or no inode left."""


class ModelCorrupt(StoreError):
    """The bytes of a model are known to differ from those that were uploaded."""


def corrupted(model: object, otherwise: str = "") -> ModelCorrupt:
    """The error for a model that is asked for and is known to be corrupt; `otherwise` is what else would help."""
    return ModelCorrupt(f"{model} is corrupt: its bytes are not those that were uploaded. Upload it again{otherwise}")


class StorageFailed(StoreError):
    """The file system failed; `__cause__` is the OSError."""


class ModelUnreadable(StorageFailed):
    """The files of one model cannot be read; the rest of the storage can."""


class StorageLost(StorageFailed):
    """Nothing in the storage can be read."""


class Obstructed(StorageFailed):
    """Something else stands where the server keeps its own files; the message says what to do."""
