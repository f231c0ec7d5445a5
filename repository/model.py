"""What a model is: its four names, what is known of it, and the words for what can be wrong with it. No I/O."""

import hashlib
import json
import re
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from repository.errors import InvalidName

NAME_RULE = "use 1 to 128 of A-Z a-z 0-9 . _ + -, beginning with a letter, digit or _"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
RESERVED_PROJECTS = frozenset({"list", "upload"})   # the routes /models/list and /models/upload hide them
HERE = "\0"             # JSON escapes it, so nothing else that a line holds is one
Stamp = tuple[int, int, int]    # of a file: inode, size in bytes, mtime in ns, which tell one state of it from another


def counted(number: int, noun: str) -> str:
    """'1 model', '2 models'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


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


def check_name(field_name: str, value: str) -> None:
    """Raises InvalidName unless `value` follows the grammar of names."""
    if not NAME.fullmatch(value):
        raise InvalidName(f"{field_name} {value[:200]!r} is not a name: {NAME_RULE}")
    if field_name == "project_id" and value in RESERVED_PROJECTS:
        raise InvalidName(f"project_id {value!r} is taken by a route of this server: choose another")


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


def as_text(value: Any, sort: bool = False) -> str:
    """A value as metadata.json has it; raises ValueError for NaN and the infinities, which are not JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort)
