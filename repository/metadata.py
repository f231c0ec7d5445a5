"""metadata.json: writing it, reading it back, and a cache of the models read recently."""

import json
import logging
import math
import os
import re
import threading
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

from repository import filesystem
from repository.errors import InvalidMetadata
from repository.model import NAME_FIELDS, Details, Inspection, Model, ModelKey, Stamp, as_text

log = logging.getLogger("model_server.metadata")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_CUSTOM = 64         # custom metadata fields; see docs/api.md
MAX_DEPTH = 64          # levels of a JSON document; thousands of levels are sent only to exhaust the stack
MAX_FIELD = 8 * 1024    # bytes of any field as it is written; see docs/api.md
MAX_CUSTOM_TEXT = MAX_CUSTOM * MAX_FIELD    # bytes of all custom fields in one JSON object
OUR_FIELDS = (*NAME_FIELDS, "description", "framework", "sha256", "metadata")   # all other fields are custom


class Verdict(NamedTuple):
    """The result of a verification of one state of a file."""

    stamp: Stamp
    verified_at: str
    corrupt: bool


def described(key: ModelKey, document: Mapping[str, Any], stamp: Stamp, verdict: Verdict | None) -> Model:
    """The model made of the file with this stamp and of its metadata.json, any field of which may be missing or wrong.

    `document` is {} if there is no metadata.json. `verdict` takes precedence over it.
    """
    texts = {name: value for name, value in document.items() if isinstance(value, str)}
    sha256, custom, promised = texts.get("sha256"), document.get("metadata"), dict[str, Any]()
    if sha256 is not None and (not SHA256.fullmatch(sha256) or document.get("size") != stamp.size):
        log.warning("%s/metadata.json is broken: it describes another file than the model beside it", key)
        if SHA256.fullmatch(sha256) and type(document.get("size")) is int:
            promised = {"size": document["size"], "sha256": sha256}
        sha256 = None
    verified_at, corrupt = texts.get("verified_at"), document.get("corrupt") is True
    if verdict and verdict.stamp == stamp:
        verified_at, corrupt = verdict.verified_at, verdict.corrupt
    kind, details = texts.get("format"), document.get("details")
    return Model(
        key, stamp.size, sha256,
        Details(texts.get("filename"), texts.get("description"), texts.get("framework"),
                custom if isinstance(custom, dict) else {}),
        texts.get("uploaded_at"), texts.get("updated_at"), mtime_ns=stamp.mtime_ns, inode=stamp.inode,
        inspection=Inspection(kind, details) if sha256 and kind and isinstance(details, dict) else None,
        verified_at=verified_at, corrupt=corrupt, promised=promised)


def details_of(fields: Mapping[str, str], filename: str | None) -> Details:
    """The details in the fields of an upload; raises InvalidMetadata for too many fields or too long ones.

    The field `metadata` is a JSON object of custom fields, which keep their types.
    """
    custom: dict[str, Any] = {name: value for name, value in fields.items() if name not in OUR_FIELDS}
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
    """Raises InvalidMetadata for too many fields, too long ones, and values that JSON in UTF-8 cannot represent."""
    if len(details.metadata) > MAX_CUSTOM:
        raise InvalidMetadata(f"{len(details.metadata)} custom metadata fields: at most {MAX_CUSTOM} are kept")
    ours = {"filename": details.filename, "description": details.description, "framework": details.framework}
    sizes = [*((name, written_size(value)) for name, value in ours.items()),
             *((name, written_size(name) + written_size(value)) for name, value in details.metadata.items())]
    for name, size in sizes:
        if size > MAX_FIELD:
            raise InvalidMetadata(f"metadata field {name[:100]!r} is longer than {MAX_FIELD} bytes: it takes {size} "
                                  "as JSON in UTF-8, including the name of a custom field")


def written_size(value: Any) -> int:
    """Bytes of a value in metadata.json, for a string without its quotes; raises InvalidMetadata."""
    try:
        return len(as_text(value).encode()) - 2 * isinstance(value, str)
    except (ValueError, RecursionError) as error:
        raise InvalidMetadata(f"{repr(value)[:100]} cannot be written as JSON in UTF-8: {error}") from error


def patched(details: Details, patch: Any) -> Details:
    """The details after a JSON merge patch (RFC 7396); raises InvalidMetadata, also for fields that are computed."""
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


def finite(text: str) -> float:
    """A number in JSON; raises ValueError for NaN, infinities and numbers as large, which JSON cannot represent."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:50]} is not a number that JSON can represent")
    return number


STRICT = json.JSONDecoder(parse_float=finite, parse_constant=finite)


def parse_json(text: bytes) -> Any:
    """Parses a JSON document; raises ValueError if it is nested too deeply, or could not be written again.

    json.loads accepts NaN, 1e999 and lone surrogates, and deeper nesting than json.dumps can write.
    """
    try:
        characters = text.decode(json.detect_encoding(text))    # this refuses surrogates that are not escaped
        document = STRICT.decode(characters)
        levels = text.count(b"{") + text.count(b"[")    # an upper bound; counting exactly slowed lists by a quarter
        if levels > MAX_DEPTH and not is_shallow(document, MAX_DEPTH):
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if "\\u" in characters:
            as_text(document).encode()  # raises ValueError for a lone surrogate; the text of most has no escapes
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return document


def is_shallow(value: Any, levels: int) -> bool:
    """Whether a JSON value is nested at most so many levels deep, the innermost value included."""
    level = [value]
    for _ in range(levels):     # level by level: a recursive call for each value took longer than parsing
        inside = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = list(chain.from_iterable(inside))
    return not level


def merge(target: Any, patch: Any) -> Any:
    """The algorithm of RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


# Bytes of a document without indentation. Fields from users take at most 0.6 MiB, those from inspection less than 2,
# and an earlier version accepted 6.3 from users; so there is always room for the result of a verification.
MAX_METADATA = 8 << 20
MAX_INDENTED = 64 << 20     # bytes with indentation; the earlier version indented each level, which came to 50 MiB
READ_BLOCK = 64 * 1024      # bytes of one read; most files have one or two thousand bytes
RECENT_BYTES = 64 << 20     # of memory for models read recently: some 3,000 ordinary ones, by the worst case below
RECENT_LARGEST = 16 * 1024  # bytes of a file that is kept: a few large ones would push out all others
EXPANSION = 32              # bytes of memory for each byte of the file, at worst: {"": {"": {"": …
MODEL_BYTES = 1024          # bytes of memory of a Model without the contents of its file
INDENT = re.compile(rb"\n +")


def encoded(document: Mapping[str, Any]) -> bytes:
    """The bytes of a metadata.json; raises InvalidMetadata for what decoded() would refuse.

    Each field has a line of its own: people and deploy/backup.sh rely on that. Indenting every level as well could turn
    a field of 8 KiB into hundreds of KiB.
    """
    try:
        fields = ",\n".join(f"  {as_text(name)}: {as_text(value)}" for name, value in document.items())
        text = f"{{\n{fields}\n}}\n".encode()
        decoded(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMetadata(f"this metadata could not be read back: {error}") from error
    return text


def decoded(text: bytes) -> dict[str, Any]:
    """Parses a metadata.json; raises ValueError if it is too long, nested too deeply, or not a JSON object."""
    if len(text) > MAX_METADATA:
        raise ValueError(f"it is longer than {MAX_METADATA} bytes")
    document = parse_json(text)
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    return document


def read(directory: int, key: ModelKey) -> dict[str, Any] | None:
    """The metadata.json in the directory of a model; {} if there is none, None if it is broken. Raises OSError."""
    try:
        descriptor, status = filesystem.descriptor_of(filesystem.METADATA, directory)
        try:
            return decoded(unindented(descriptor, status.st_size))
        finally:
            os.close(descriptor)
    except (filesystem.NotRegular, ValueError) as error:
        log.warning("%s/%s is broken: %s", key, filesystem.METADATA, error)
        return None
    except FileNotFoundError:
        return {}


def unindented(descriptor: int, size: int) -> bytes:
    """The text of an open file that had this size, of a long one without the indentation of its lines.

    Raises ValueError if it is too long, and OSError.
    """
    block = os.read(descriptor, min(size + 1, READ_BLOCK))  # one byte more would show that it has grown
    if len(block) == size:
        return block
    blocks, length, indented = list[bytes](), 0, 0
    while block:
        indented += len(block)
        blocks.append(INDENT.sub(b"\n", block))    # a JSON string contains no unescaped line feed
        length += len(blocks[-1])
        if length > MAX_METADATA or indented > MAX_INDENTED:
            raise ValueError(f"it is longer than {MAX_METADATA} bytes")
        block = os.read(descriptor, READ_BLOCK)
    return b"".join(blocks)


State = tuple[Any, ...]     # everything a Model is made from: if it is equal, so is the Model


class Recent:
    """A cache of models read recently: asking for the same info again reads no file. Uses RECENT_BYTES at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[ModelKey, tuple[State, Model]] = {}
        self._bytes = 0

    def get(self, key: ModelKey) -> tuple[State, Model] | None:
        """The model and the state it was read in, None if it is not in the cache."""
        return self._kept.get(key)

    def keep(self, key: ModelKey, state: State, model: Model, size: int) -> None:
        """Stores a model, replacing its older state; `size` is that of its metadata.json in bytes."""
        with self._lock:
            if self._bytes > RECENT_BYTES:
                self._kept.clear()
                self._bytes = 0
            self._kept.pop(key, None)   # its bytes stay counted, which errs on the safe side
            if size <= RECENT_LARGEST:
                self._bytes += MODEL_BYTES + EXPANSION * size
                self._kept[key] = state, model
