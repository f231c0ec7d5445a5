"""metadata.json: the bytes that are written, reading them back, and what was read lately."""

import logging
import re
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO

from repository import filesystem
from repository.model import InvalidMetadata, Model, ModelKey, as_text, parse_json

log = logging.getLogger("model_server.metadata")

# Bytes of a document, read and written, without indents. What users give is 0.6 MiB at most, what inspection adds less
# than 2, and what users gave an earlier version came to 6.3: the result of a verification always has room.
MAX_METADATA = 8 << 20
MAX_INDENTED = 64 << 20     # bytes with indents, which that version wrote at each level: some 50 MiB at the most
BLOCK = 64 * 1024           # bytes of one read; most files have one or two thousand
RECENT_BYTES = 64 << 20     # of memory for models read lately: some 3,000 ordinary ones by the worst case below
RECENT_LARGEST = 16 * 1024  # bytes of a file that is kept: a few large ones would push out all others
EXPANSION = 32              # bytes of memory for one of the file, at worst: {"": {"": {"": …
OVERHEAD = 1024             # bytes of memory that a model takes without what its file says
INDENT = re.compile(rb"\n +")


def encoded(document: Mapping[str, Any]) -> bytes:
    """The bytes of a metadata.json; raises InvalidMetadata for what decoded() would refuse.

    One line for each field, which is how people and deploy/backup.sh read it. An indent at each level would turn a
    field of 8 KiB into hundreds.
    """
    try:
        fields = ",\n".join(f"  {as_text(name)}: {as_text(value)}" for name, value in document.items())
        text = f"{{\n{fields}\n}}\n".encode()
        decoded(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMetadata(f"this metadata could not be read back: {error}") from error
    return text


def decoded(text: bytes) -> dict[str, Any]:
    """The document of a metadata.json; raises ValueError for one that is too long, too deep, or no JSON object."""
    if len(text) > MAX_METADATA:
        raise ValueError(f"it is longer than {MAX_METADATA} bytes")
    document = parse_json(text)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def read(directory: int, key: ModelKey) -> dict[str, Any] | None:
    """What is in the directory of a model: {} where there is none, None where it cannot be read. Raises OSError."""
    try:
        with filesystem.open_regular(filesystem.METADATA, directory) as file:
            return decoded(unindented(file))
    except (filesystem.NotRegular, ValueError) as error:
        log.warning("%s/%s is broken: %s", key, filesystem.METADATA, error)
        return None
    except FileNotFoundError:
        return {}


def unindented(file: BinaryIO) -> bytes:
    """The text of a file without the white space that lines begin with; raises ValueError for one that is too long."""
    blocks, length, indented = list[bytes](), 0, 0
    while block := file.read(BLOCK):
        indented += len(block)
        blocks.append(INDENT.sub(b"\n", block))    # no string in JSON holds a line feed as it is
        length += len(blocks[-1])
        if length > MAX_METADATA or indented > MAX_INDENTED:
            raise ValueError(f"it is longer than {MAX_METADATA} bytes")
    return b"".join(blocks)


State = tuple[Any, ...]     # of what a model was made of: equal means that it would be made the same


class Recent:
    """Models that were read lately, so that an info a second time reads no file. Within RECENT_BYTES."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[ModelKey, tuple[State, Model]] = {}
        self._bytes = 0

    def get(self, key: ModelKey) -> tuple[State, Model] | None:
        return self._kept.get(key)

    def keep(self, key: ModelKey, state: State, model: Model, size: int) -> None:
        """Keeps it in place of what there was; `size` is the bytes of its metadata.json."""
        with self._lock:
            if self._bytes > RECENT_BYTES:
                self._kept.clear()
                self._bytes = 0
            self._kept.pop(key, None)   # its bytes stay counted: that is on the safe side
            if size <= RECENT_LARGEST:
                self._bytes += OVERHEAD + EXPANSION * size
                self._kept[key] = state, model
