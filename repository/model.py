"""What a model is: its four names, what is known of it, and the words for what can be wrong with it. No I/O."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain
from typing import Any

log = logging.getLogger("model_server.models")
NAME_RULE = "use 1 to 128 of A-Z a-z 0-9 . _ + -, beginning with a letter, digit or _"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
RESERVED_PROJECTS = frozenset({"list", "upload"})   # the routes /models/list and /models/upload hide them
SEMVER = re.compile(    # semver.org, "Is there a suggested regular expression"
    r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(?:-((?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*))?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?")
SHA256 = re.compile(r"[0-9a-f]{64}")
HERE = "\0"             # JSON escapes it, so nothing else that a line holds is one
MAX_CUSTOM = 64         # custom metadata fields, as the contract says
MAX_DEPTH = 64          # levels of a JSON document; somebody sends thousands to make us recurse
MAX_FIELD = 8 * 1024    # bytes of any field as it is written, as the contract says
Stamp = tuple[int, int, int]    # of a file: inode, size in bytes, mtime in ns, which tell one state of it from another
Verdict = tuple[Stamp, str, bool]   # of a verification: the file that was read, when, whether it is corrupt


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


def counted(number: int, noun: str) -> str:
    """'1 model', '2 models'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


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


@dataclass(frozen=True, order=True)
class ModelKey:
    """The four names of a model; raises InvalidName, so a key that exists is safe to join to a path."""

    project_id: str
    app_name: str
    version: str
    model_name: str

    def __post_init__(self) -> None:
        for field_name, value in zip(NAME_FIELDS, self.names, strict=True):
            check_name(field_name, value)

    @property
    def names(self) -> tuple[str, ...]:
        return (self.project_id, self.app_name, self.version, self.model_name)

    def __str__(self) -> str:
        return "/".join(self.names)


NAME_FIELDS = tuple(f.name for f in fields(ModelKey))
KNOWN_FIELDS = (*NAME_FIELDS, "description", "framework", "sha256")


def check_name(field_name: str, value: str) -> None:
    """Raises InvalidName unless `value` follows the grammar of names."""
    if not NAME.fullmatch(value):
        raise InvalidName(f"{field_name} {value[:200]!r} is not a name: {NAME_RULE}")
    if field_name == "project_id" and value in RESERVED_PROJECTS:
        raise InvalidName(f"project_id {value!r} is taken by a route of this server: choose another")


def precedence(version: str) -> tuple[Any, ...]:
    """Sorts versions: SemVer 2.0 releases (11) over pre-releases over all else, that by runs of digits and letters."""
    if found := SEMVER.fullmatch(version):
        release = tuple(int(number) for number in found.group(1, 2, 3))
        pre = tuple((0, int(x), "") if x.isdigit() else (1, 0, x) for x in (found[4] or "").split(".") if x)
        return (1 if pre else 2, release, pre, version)
    runs = tuple((1, int(x), "") if x.isdigit() else (0, 0, x) for x in re.findall("[0-9]+|[A-Za-z]+", version))
    return (0, runs, (), version)


@dataclass(frozen=True, eq=False)
class Details:
    """What a user says about a model; `metadata` holds the custom fields, any JSON."""

    filename: str | None = None
    description: str | None = None
    framework: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """As JSON: to Python 1, 1.0 and true are equal, and a change of one into another would be no change."""
        return isinstance(other, Details) and as_text(vars(self), sort=True) == as_text(vars(other), sort=True)

    __hash__ = None     # type: ignore[assignment]


@dataclass(frozen=True)
class Inspection:
    """What the server saw in the bytes of a model; both go into JSON as they are."""

    format: str
    details: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """One stored model. `size` is in bytes; what a foreign or broken metadata.json does not tell is None.

    `promised` is the size and the digest that metadata.json tells where they are of another file than this one.
    Not `readable` is a model with a metadata.json that could not be read, which may say anything.
    """

    key: ModelKey
    size: int
    sha256: str | None
    details: Details
    uploaded_at: str | None
    updated_at: str | None
    mtime_ns: int = 0
    inode: int = 0
    inspection: Inspection | None = None
    verified_at: str | None = None
    corrupt: bool = False
    promised: dict[str, Any] = field(default_factory=dict)
    readable: bool = True

    @property
    def stamp(self) -> Stamp:
        return (self.inode, self.size, self.mtime_ns)

    def as_json(self) -> dict[str, Any]:
        return {
            **dict(zip(NAME_FIELDS, self.key.names, strict=True)),
            "filename": self.details.filename,
            "size": self.size,
            "sha256": self.sha256,
            "format": self.inspection and self.inspection.format,
            "details": self.inspection and self.inspection.details,
            "description": self.details.description,
            "framework": self.details.framework,
            "metadata": self.details.metadata,
            "uploaded_at": self.uploaded_at,
            "updated_at": self.updated_at,
            "verified_at": self.verified_at,
            "corrupt": self.corrupt,
        }

    def as_document(self) -> dict[str, Any]:
        """What metadata.json holds. Of a damaged file it goes on telling what it should be."""
        return {**self.as_json(), **self.promised}

    @cached_property
    def line(self) -> bytes:
        """What info and lists say of it as JSON, with HERE where the server's URL belongs, which varies."""
        most = json.dumps({**self.as_json(), "path": f"{self.key}/model"})
        return f'{most[:-1]}, "url": "{HERE}/models/{self.key}"}}'.encode()

    @cached_property
    def fingerprint(self) -> str:
        """Changes with what info says."""
        return hashlib.sha256(self.line).hexdigest()[:32]


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


def with_url(lines: bytes, base_url: str) -> bytes:
    """Lines of models as the server at this URL tells them."""
    return lines.replace(HERE.encode(), json.dumps(base_url)[1:-1].encode())    # JSON has nothing of a URL to escape


def now() -> str:
    """The moment as metadata tells it, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def url_of(key: ModelKey, base_url: str) -> str:
    return f"{base_url}/models/{key}"   # no name has a character that a URL would quote


def describe(model: Model, base_url: str) -> dict[str, Any]:
    """What info, lists and answers to uploads say of a model."""
    return {**model.as_json(), "path": f"{model.key}/model", "url": url_of(model.key, base_url)}


def details_of(fields: Mapping[str, str], filename: str | None) -> Details:
    """What the fields of an upload say beside the names; raises InvalidMetadata for too many or too long ones."""
    custom = {name: value for name, value in fields.items() if name not in KNOWN_FIELDS}
    details = Details(filename, fields.get("description"), fields.get("framework"), custom)
    check_details(details)
    return details


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


def as_text(value: Any, sort: bool = False) -> str:
    """A value as metadata.json has it; raises ValueError for NaN and the infinities, which are not JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort)


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
