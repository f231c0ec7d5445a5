"""metadata.json: the bytes that are written, reading them back, and what was read lately."""

import json
import logging
import re
import threading
from collections.abc import Mapping
from itertools import chain
from typing import Any, BinaryIO

from repository import filesystem
from repository.errors import InvalidMetadata
from repository.model import NAME_FIELDS, Details, Inspection, Model, ModelKey, Stamp, as_text

log = logging.getLogger("model_server.models")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_CUSTOM = 64         # custom metadata fields, as the contract says
MAX_DEPTH = 64          # levels of a JSON document; somebody sends thousands to make us recurse
MAX_FIELD = 8 * 1024    # bytes of any field as it is written, as the contract says
Verdict = tuple[Stamp, str, bool]   # of a verification: the file that was read, when, whether it is corrupt
MAX_CUSTOM_TEXT = MAX_CUSTOM * MAX_FIELD    # bytes of all custom fields in one JSON object
KNOWN_FIELDS = (*NAME_FIELDS, "description", "framework", "sha256", "metadata")


def described(key: ModelKey, document: Mapping[str, Any], stamp: Stamp, verdict: Verdict | None) -> Model:
    """The model of this file with what its metadata.json tells, of which nothing is trusted to be there.

    `document` is {} where there is no metadata.json.
    """
    known = {name: value for name, value in document.items() if isinstance(value, str)}
    sha256, custom, promised = known.get("sha256"), document.get("metadata"), dict[str, Any]()
    if sha256 is not None and (not SHA256.fullmatch(sha256) or document.get("size") != stamp[1]):
        log.warning("%s/metadata.json is broken: it tells of another file than the model beside it", key)
        if SHA256.fullmatch(sha256) and type(document.get("size")) is int:
            promised = {"size": document["size"], "sha256": sha256}
        sha256 = None
    verified_at, corrupt = known.get("verified_at"), document.get("corrupt") is True
    if verdict and verdict[0] == stamp:
        _, verified_at, corrupt = verdict
    kind, told = known.get("format"), document.get("details")
    return Model(
        key, stamp[1], sha256,
        Details(known.get("filename"), known.get("description"), known.get("framework"),
                custom if isinstance(custom, dict) else {}),
        known.get("uploaded_at"), known.get("updated_at"), mtime_ns=stamp[2], inode=stamp[0],
        inspection=Inspection(kind, told) if sha256 and kind and isinstance(told, dict) else None,
        verified_at=verified_at, corrupt=corrupt, promised=promised)


def details_of(fields: Mapping[str, str], filename: str | None) -> Details:
    """What the fields of an upload say beside the names; raises InvalidMetadata for too many or too long ones.

    The field `metadata` is a JSON object of custom fields, which keep their types.
    """
    custom: dict[str, Any] = {name: value for name, value in fields.items() if name not in KNOWN_FIELDS}
    if "metadata" in fields:
        given = object_of(fields["metadata"])
        for name in sorted(given.keys() & custom.keys()):
            if type(given[name]) is not str or given[name] != custom[name]:
                raise InvalidMetadata(f"{name[:100]!r} is given twice, as a field and in the field metadata, with "
                                      "different values: give it once")
        custom = merge(custom, given)
    details = Details(filename, fields.get("description"), fields.get("framework"), custom)
    check_details(details)
    return details


def object_of(text: str) -> dict[str, Any]:
    """The JSON object in the field metadata; raises InvalidMetadata for anything else."""
    try:
        if len(written := text.encode()) > MAX_CUSTOM_TEXT:
            raise ValueError(f"it is longer than {MAX_CUSTOM_TEXT} bytes")
        document = parse_json(written)
        if not isinstance(document, dict):
            raise ValueError("it is something else")
    except ValueError as error:
        raise InvalidMetadata('the field metadata must be a JSON object, like {"stage": "prod", "accuracy": 0.93}: '
                              f"{error}") from error
    return document


def check_details(details: Details) -> None:
    """Raises InvalidMetadata for too many fields, for too long ones, and for what JSON in UTF-8 cannot hold."""
    if len(details.metadata) > MAX_CUSTOM:
        raise InvalidMetadata(f"{len(details.metadata)} custom metadata fields: at most {MAX_CUSTOM} are kept")
    ours = {"filename": details.filename, "description": details.description, "framework": details.framework}
    sizes = [*((name, written_size(value)) for name, value in ours.items()),
             *((name, written_size(name) + written_size(value)) for name, value in details.metadata.items())]
    for name, size in sizes:
        if size > MAX_FIELD:
            raise InvalidMetadata(f"metadata field {name[:100]!r} is longer than {MAX_FIELD} bytes: it takes {size} "
                                  "as JSON in UTF-8, the name of a custom field included")


def written_size(value: Any) -> int:
    """Bytes of a value in metadata.json, of a string those between the quotes; raises InvalidMetadata."""
    try:
        return len(as_text(value).encode()) - 2 * isinstance(value, str)
    except (ValueError, RecursionError) as error:
        raise InvalidMetadata(f"{repr(value)[:100]} cannot be written as JSON in UTF-8: {error}") from error


def patched(details: Details, patch: Any) -> Details:
    """The details after a JSON merge patch (RFC 7396); raises InvalidMetadata, for computed fields too."""
    if not isinstance(patch, dict):
        raise InvalidMetadata('send a JSON object, like {"description": "…", "metadata": {"stage": "prod"}}')
    for name, value in patch.items():
        if name not in ("description", "framework", "metadata"):
            raise InvalidMetadata(f"{name[:100]!r} cannot be changed: only description, framework and metadata can")
        if value is not None and not isinstance(value, dict if name == "metadata" else str):
            raise InvalidMetadata(f"{name} must be {'an object' if name == 'metadata' else 'a string'} or null")
    said = {"description": details.description, "framework": details.framework, "metadata": details.metadata}
    after = merge(said, patch)
    result = Details(details.filename, after.get("description"), after.get("framework"), after.get("metadata") or {})
    check_details(result)
    return result


def parse_json(text: bytes) -> Any:
    """A JSON document that can be written again as one, not nested too deep; raises ValueError.

    json.loads takes NaN, 1e999 and half a surrogate pair, and what it can nest json.dumps cannot.
    """
    try:
        document = json.loads(text)
        levels = text.count(b"{") + text.count(b"[")    # at the most: to look is a quarter of what a list has to do
        if levels > MAX_DEPTH and not is_shallow(document, MAX_DEPTH):
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        as_text(document).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return document


def is_shallow(value: Any, levels: int) -> bool:
    """Whether it has at most so many levels, what is innermost included."""
    level = [value]
    for _ in range(levels):     # one after the other: a call for each value took longer than parsing it
        inside = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = list(chain.from_iterable(inside))
    return not level


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396 2, to the letter."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


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
