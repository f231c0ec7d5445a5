"""A request, what it says, and its line in the log."""

import functools
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import parse_qsl, quote

from repository.model import Inspection, Names
from server.access import EVERYBODY
from server.errors import BadRequest
from server.metrics import Metrics
from server.responses import Response
from server.settings import NAME_OF_HOST, Settings
from server.uploads import Body, Intake, Upload
from server.verifier import Verifier
from storage import Storage

T = TypeVar("T")
audit = logging.getLogger("audit")
MAX_QUERY = 200             # parameters; ours and the custom ones are under 80
METHODS = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
PLAIN = re.compile(r"[A-Za-z0-9_.~/+,:-]+")     # what as_field() does not quote
MAX_LOGGED_METHOD = 32      # characters; the longest one registered has 18
MAX_LOGGED_PATH = 1024      # the longest path of a route has half as many, what clients send up to 64 KiB
MAX_LOGGED_ADDRESS = 64     # an IPv6 address with its zone has under 60
IN_PATHS = "/!$&'()*+,;=:@~"     # RFC 3986 3.3: what a path may have unescaped, beside letters, digits, - . and _


Tell = Callable[[str], None]
say: Tell = logging.getLogger("access").info    # what writes the line of a request unless Log.tell does it faster
Examine = Callable[[BinaryIO, int], Inspection]     # of an open file and its size; raises what refuses the file
VersionTag = Callable[..., str | None]  # of a request, the store, and a model; None where that would take too long
ListFormat = Callable[..., Response]    # of a request, the store, the names that are listed, places that may be read


class Keeper(Protocol):
    """Keeps uploads that break off, until they are continued."""

    def start(self) -> None:
        """Begins what is done in the background, until stop()."""

    def stop(self) -> None: ...

    def keeps(self, request: "Request") -> bool:
        """Whether a PUT of a model is to be kept if it breaks off."""

    def receive(self, request: "Request", store: Storage, limit: int | None, claims: Iterable[str]) -> Upload:
        """What takes the body of such a request; `limit` is in bytes, `claims` are the algorithms of its digests."""

    def gauges(self) -> dict[str, tuple[str, float]]:
        """Figures for the metrics, by name, each with its help text."""


@dataclass(frozen=True)
class Services:
    """What the requests of one server share in addition to the store."""

    settings: Settings
    metrics: Metrics
    verifier: Verifier
    intake: Intake
    examine: Examine | None     # examines the bytes of an upload, if there is a room that does
    formats: Mapping[str, ListFormat]   # those of rooms, by their name in ?format=
    tell: Tell      # writes the line of a request to the log
    version_tag: VersionTag | None
    keeper: Keeper | None = None
    kept: dict[type, Any] = field(default_factory=dict)

    def of(self, kind: type[T]) -> T:
        """The object of this class that an optional room keeps in memory for this server, created when first needed."""
        kept: T = self.kept.get(kind) or self.kept.setdefault(kind, kind())
        return kept


class Request:
    """One request, from its WSGI environment; `names` are those in its path, `route` is the pattern of that."""

    def __init__(self, environ: dict[str, Any], services: Services) -> None:
        self.environ = environ
        self.services = services
        self.settings = services.settings
        # these four until the route is known
        self.route, self.names = "none", dict[str, str]()
        self.verb: str | None = None
        self.explain: Callable[..., Any] | None = None
        self.vary: list[str] = []   # the headers on which the choice of the answer was based
        self.caller = EVERYBODY     # unless a guard says otherwise
        self.method: str = environ["REQUEST_METHOD"]
        # what is not UTF-8 turns into U+FFFD, which no name may have
        self.path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
        self.body = Body()
        given = self.header("X-Request-Id") or ""
        self.id = given if REQUEST_ID.fullmatch(given) else ""

    def header(self, name: str) -> str | None:
        return self.environ.get(variable_of(name))

    @functools.cached_property
    def parameters(self) -> list[tuple[str, str]]:
        """The query's parameters in their order, each as often as it was sent; raises BadRequest."""
        try:
            text = self.environ.get("QUERY_STRING", "").encode("latin-1").decode()
            return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY)
        except ValueError as error:
            raise BadRequest(f"the query cannot be read: {error}") from error

    @functools.cached_property
    def query(self) -> dict[str, str]:
        """The query's parameters; raises BadRequest if one has two values."""
        return merged(self.parameters)

    @functools.cached_property
    def fields(self) -> dict[str, str]:
        """The names in the path and the query's parameters; raises BadRequest if one has two values."""
        return merged(self.names.items(), self.query.items())

    def flag(self, name: str) -> bool:
        """Whether this parameter of the query is true; raises BadRequest if it is neither true nor false."""
        return flag_in(self.query, name) or False

    @property
    def length(self) -> int:
        return int(self.environ.get("CONTENT_LENGTH") or 0)

    @property
    def host(self) -> str:
        if host := self.header("Host"):
            return host
        name: str = self.environ["SERVER_NAME"]
        return f"{f'[{name}]' if ':' in name else name}:{self.environ['SERVER_PORT']}"   # RFC 3986 3.2.2

    def check_host(self) -> None:
        """Raises BadRequest if host or scheme, sent by the client or a trusted proxy, cannot be part of a URL."""
        if not NAME_OF_HOST.fullmatch(self.host):   # RFC 9112 3.2: an invalid one must be 400
            raise BadRequest(f"the Host {self.host[:100]!r} is not a name or an address with an optional port")
        if (scheme := self.environ["wsgi.url_scheme"]) not in ("http", "https"):
            raise BadRequest(f"the proxy's X-Forwarded-Proto ends with {scheme[:100]!r}: have it send http or https")

    @property
    def prefix(self) -> str:
        """What precedes the paths of the routes in a URL."""
        return quote(self.environ.get("SCRIPT_NAME", ""), safe=IN_PATHS, encoding="latin-1")

    @property
    def base_url(self) -> str:
        return f"{self.environ['wsgi.url_scheme']}://{self.host}{self.prefix}"

    def log(self, status: int, sent: int) -> None:
        """Logs and counts the request when its answer is over; `sent` are the bytes of its body."""
        seconds, received = time.monotonic() - self.body.started, self.body.received
        is_upload = isinstance(self.body, Upload) or self.method == "PUT"   # even if it is empty
        size = received if is_upload else received or sent
        method, path = as_field(self.method, MAX_LOGGED_METHOD), as_field(self.path, MAX_LOGGED_PATH)
        client = as_field(self.environ.get("REMOTE_ADDR") or "-", MAX_LOGGED_ADDRESS)
        self.services.tell(f"{method} {path} {status} {size} {seconds * 1000:.1f} {self.id} {client}")
        method = self.method if self.method in METHODS else "other"     # the values of a label must be few
        self.services.metrics.count(self.route, method, status, seconds, received, sent)

    def audit(self, verb: str, names: Names, sha256: str | None, status: int, **more: str) -> None:
        """Logs that a model was changed, or was not because the caller lacks the permission."""
        audit.info("%s", json.dumps({"who": self.caller.name, "verb": verb, "model": "/".join(names) or None,
                                     "sha256": sha256, "status": status, "request": self.id, **more}))


def as_field(text: str, most: int) -> str:
    """Any text as one field of a log line, cut after `most` characters."""
    if len(text) <= most and PLAIN.fullmatch(text):     # the usual case, in which this is faster than quoting
        return text
    quoted = quote(text[: most + 1], safe="/+,:")
    return quoted if len(quoted) <= most else f"{quoted[:most]}..."


@functools.cache    # the names are our own, so they are few
def variable_of(header: str) -> str:
    """The name of a header's variable in a WSGI environment (PEP 3333)."""
    variable = header.upper().replace("-", "_")
    return variable if variable in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{variable}"


def flag_in(parameters: Mapping[str, str], name: str) -> bool | None:
    """The value of a parameter that is true or false, None if it is missing; raises BadRequest."""
    if name not in parameters:
        return None
    if parameters[name] not in ("true", "false"):
        raise BadRequest(f"{name} {parameters[name][:50]!r} is neither true nor false")
    return parameters[name] == "true"


def merged(*pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The fields of several sources together; raises BadRequest if one has two values."""
    fields: dict[str, str] = {}
    for name, value in (pair for several in pairs for pair in several):
        if fields.setdefault(name, value) != value:
            raise BadRequest(f"{name[:100]!r} is given twice, with different values: give it once")
    return fields
