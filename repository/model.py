"""What a model is: its names, what is known about it, and how info and lists show it. No I/O."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple, Self

from repository.errors import InvalidName

Names = tuple[str, ...]     # of nested directories: () is everything, then project, application, version, what is in it
NAME_RULE = "use 1 to 128 of A-Z a-z 0-9 . _ + -, beginning with a letter, digit or _"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
RESERVED_PROJECTS = frozenset({"list", "upload"})   # hidden by the routes /models/list and /models/upload
RESERVED_ENDINGS = frozenset({"info", "upload"})    # after the path of a model, these are routes
MAX_PARTS = 8       # names in the path of a model: TensorFlow and Triton need four, and each costs readers a directory
MAX_PATH = 512      # characters in all: with the other names and the root far below PATH_MAX, as tar and rsync need it
URL_PLACEHOLDER = "\0"  # JSON escapes this character, so it cannot occur in a line otherwise
OF_LINES = json.JSONDecoder(strict=False)   # accepts that character; json.loads() would create one for each line


class Stamp(NamedTuple):
    """Identifies one state of a file; `size` is in bytes."""

    inode: int
    size: int
    mtime_ns: int


def counted(number: int, noun: str) -> str:
    """'1 model', '2 models'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, order=True)
class ModelKey:
    """The names of a model; raises InvalidName, so an existing key is safe to join to a path.

    `model_name` may be a path: up to MAX_PARTS names joined by slashes, MAX_PATH characters in all.
    """

    project_id: str
    app_name: str
    version: str
    model_name: str

    def __post_init__(self) -> None:
        for field_name, value in zip(NAME_FIELDS, self.fields, strict=True):
            check_name(field_name, value)

    @classmethod
    def at(cls, names: Names) -> Self:
        """The key of the model in this directory."""
        project_id, app_name, version, *path = names
        return cls(project_id, app_name, version, "/".join(path))

    @property
    def fields(self) -> Names:
        """The values of NAME_FIELDS."""
        return (self.project_id, self.app_name, self.version, self.model_name)

    @property
    def names(self) -> Names:
        """The names of the directories that lead to the model, the last of which is its own."""
        return (self.project_id, self.app_name, self.version, *self.model_name.split("/"))

    @property
    def name(self) -> str:
        """The last of its names: that of the file, if the path is that of a file in folders."""
        return self.model_name.rpartition("/")[2]

    def __str__(self) -> str:
        return "/".join(self.fields)


NAME_FIELDS = tuple(f.name for f in fields(ModelKey))
VERSION_DEPTH = len(NAME_FIELDS) - 1
MAX_DEPTH = VERSION_DEPTH + MAX_PARTS


def names_in(given: Mapping[str, str]) -> Names:
    """The names of the directory to which the given ones of NAME_FIELDS lead."""
    return tuple("/".join(given.values()).split("/")) if given else ()


def can_be_model(names: Names) -> bool:
    """Whether a model can be at these names, each of which is valid: its path is not too long, nor that of a route."""
    path = names[VERSION_DEPTH:]
    return len(path) == 1 or (path[-1] not in RESERVED_ENDINGS and len("/".join(path)) <= MAX_PATH)


@functools.lru_cache(maxsize=1024)    # a request checks its names three times, and most requests have the same names
def check_name(field_name: str, value: str) -> None:
    """Raises InvalidName unless `value` follows the grammar of names; that of a model may be a path."""
    parts = value.split("/") if field_name == "model_name" else [value]
    for part in parts:
        if not NAME.fullmatch(part):
            raise InvalidName(f"{field_name} {value[:200]!r} is not a name: {NAME_RULE}", field_name)
    if len(parts) > MAX_PARTS or len(value) > MAX_PATH:
        raise InvalidName(f"{field_name} {value[:200]!r} is too long: use up to {MAX_PARTS} names with slashes between "
                          f"them, {MAX_PATH} characters in all", field_name)
    if len(parts) > 1 and parts[-1] in RESERVED_ENDINGS:
        raise InvalidName(f"{field_name} {value[:200]!r} ends like the route /{parts[-1]}: choose another", field_name)
    if field_name == "project_id" and value in RESERVED_PROJECTS:
        raise InvalidName(f"project_id {value!r} is reserved for a route of this server: choose another", field_name)


@dataclass(frozen=True, eq=False)
class Details:
    """What a user has said about a model; `metadata` are the custom fields, whose values can be any JSON."""

    filename: str | None = None
    description: str | None = None
    framework: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Compares as JSON: 1, 1.0 and True are equal in Python, so a change from one to another would go unnoticed."""
        return isinstance(other, Details) and as_text(vars(self), sort=True) == as_text(vars(other), sort=True)

    __hash__ = None     # type: ignore[assignment]


@dataclass(frozen=True)
class Inspection:
    """What the server found in the bytes of a model; both values can be written as JSON."""

    format: str
    details: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """One stored model. `size` is in bytes; what a foreign or broken metadata.json does not say is None.

    `promised` holds the size and digest from metadata.json if they do not belong to this file, and is empty otherwise.
    `readable` is false if metadata.json exists but could not be read, so its contents are not known.
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
        return Stamp(self.inode, self.size, self.mtime_ns)

    def as_json(self) -> dict[str, Any]:
        """The fields of info, without those that depend on the place and the server."""
        return {
            **dict(zip(NAME_FIELDS, self.key.fields, strict=True)),
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
        """The contents of metadata.json. For a damaged file they keep the size and digest that it should have."""
        return {**self.as_json(), **self.promised}

    @cached_property
    def line(self) -> bytes:
        """The entry in info and lists, as JSON; URL_PLACEHOLDER stands for the base URL, which varies by request."""
        start = json.dumps({**self.as_json(), "path": f"{self.key}/model"})[:-1]
        return f'{start}, "url": "{URL_PLACEHOLDER}/models/{self.key}"}}'.encode()

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the info: 32 hex digits that change when the info does."""
        return hashlib.sha256(self.line).hexdigest()[:32]


def told_by(line: bytes) -> dict[str, Any]:
    """The contents of a model's line, with the placeholder in `url`."""
    told: dict[str, Any] = OF_LINES.raw_decode(line.decode())[0]    # decode() would search for spaces around it
    return told


def with_url(lines: bytes, base_url: str) -> bytes:
    """Replaces the placeholder in lines of models by this URL."""
    return lines.replace(URL_PLACEHOLDER.encode(), json.dumps(base_url)[1:-1].encode())


def now() -> str:
    """The current time as metadata.json has it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def url_of(key: ModelKey, base_url: str) -> str:
    """The address of the download."""
    return f"{base_url}/models/{key}"   # names contain no character that has to be quoted in a URL


def describe(model: Model, base_url: str) -> dict[str, Any]:
    """The JSON of a model in answers to uploads, changes and deletes."""
    return {**model.as_json(), "path": f"{model.key}/model", "url": url_of(model.key, base_url)}


def as_text(value: Any, sort: bool = False) -> str:
    """A value as it is written to metadata.json; raises ValueError for NaN and infinities, which JSON does not have."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort)
