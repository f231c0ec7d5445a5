"""From a WSGI request to its handler and back: requests, routes, errors as JSON, the application.

Which routes there are, and what their handlers do, is in model_server.py.
"""

import functools
import itertools
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote

from inspection import formats as inspection
from repository.model import (
    InvalidMetadata,
    InvalidName,
    MetadataUnreadable,
    ModelCorrupt,
    ModelExists,
    ModelNotFound,
    ModelUnreadable,
    NotEmpty,
    ReadOnly,
    StorageFailed,
    StorageFull,
    StorageLost,
    StoreError,
    absent,
    check_name,
)
from server.access import EVERYBODY, Forbidden, Names, Refused, Unauthorized, guard_of
from server.metrics import Metrics
from server.multipart import BadUpload, DigestMismatch, TooLarge, merged
from server.responses import PreconditionFailed, RangeNotSatisfiable, Response, json_response, send
from server.serial_queue import Intake
from server.settings import Settings
from server.uploads import BLOCK, REQUEST, Body, ProtocolError, Upload
from server.verifier import QueueFull, Verifier
from storage import Storage

log = logging.getLogger("model_server")
access = logging.getLogger("access")
audit = logging.getLogger("audit")
RETRY_AFTER = 5             # seconds for a storage to come back, as deploy/nginx.conf says for a server
MAX_QUERY = 200             # parameters; ours and the custom ones are under 80
METHODS = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
DOUBLE_SLASH = re.compile("([A-Za-z][A-Za-z0-9+.-]*://[^/]*)?//")   # RFC 9112 3.2.2: a target may be a whole URL
HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
MAX_LOGGED_METHOD = 32      # characters; the longest one registered has 18
MAX_LOGGED_PATH = 1024      # the longest path of ours has half as many, what somebody sends up to 64 KiB
MAX_LOGGED_ADDRESS = 64     # an IPv6 address with its zone has under 60
IN_PATHS = "/!$&'()*+,;=:@~"     # RFC 3986 3.3: what a path may have unescaped, beside letters, digits, - . and _


class HttpError(Exception):
    """An answer that is an error of the request alone, with its own headers."""

    def __init__(self, status: int, detail: str, *headers: tuple[str, str]) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers


STATUS_OF: dict[type[Exception], int] = {
    InvalidName: 400,
    InvalidMetadata: 400,
    BadUpload: 400,
    DigestMismatch: 400,
    Unauthorized: 401,
    Forbidden: 403,
    ReadOnly: 403,
    ModelNotFound: 404,
    ModelExists: 409,
    MetadataUnreadable: 409,
    NotEmpty: 409,
    # What is wrong with one model is no 5xx: proxies take a server that answers with those out of service, for all
    # models. 404 and 410 would be kept by caches, and read as "there is no such file"; curl, wget and the clients of
    # the Hugging Face Hub ask again after 408, 429 and 5xx alone. RFC 9110 15.5.10: the user may resolve it.
    ModelCorrupt: 409,
    ModelUnreadable: 409,
    PreconditionFailed: 412,
    TooLarge: 413,
    inspection.FormatRefused: 415,
    RangeNotSatisfiable: 416,
    inspection.PickleRefused: 422,
    QueueFull: 429,
    StorageFailed: 500,      # in this request: what others ask for may well be there
    StorageLost: 503,        # the one status that tells a proxy to ask another server
    StorageFull: 507,
}


# ---- requests and answers


@dataclass(frozen=True)
class Services:
    """What the requests of one server share beside the store."""

    settings: Settings
    metrics: Metrics
    verifier: Verifier
    intake: Intake


class Request:
    """One request, from its WSGI environment; `names` are those in its path, `route` is the pattern of that."""

    def __init__(self, environ: dict[str, Any], services: Services) -> None:
        self.environ = environ
        self.services = services
        self.settings = services.settings
        self.route, self.names = "none", dict[str, str]()   # until they are known
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
    def query(self) -> dict[str, str]:
        """The query's parameters; raises BadUpload when one comes with two values."""
        try:
            text = self.environ.get("QUERY_STRING", "").encode("latin-1").decode()
            return merged(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY))
        except ValueError as error:
            raise BadUpload(f"the query cannot be read: {error}") from error

    @functools.cached_property
    def fields(self) -> dict[str, str]:
        """The names in the path and the query's parameters; raises BadUpload when one comes with two values."""
        return merged(self.names.items(), self.query.items())

    @property
    def length(self) -> int:
        return int(self.environ.get("CONTENT_LENGTH") or 0)

    @property
    def host(self) -> str:
        return self.header("Host") or f"{self.environ['SERVER_NAME']}:{self.environ['SERVER_PORT']}"

    def check_host(self) -> None:
        """Raises HttpError where the host, the client's or that of the proxy that is believed, cannot be in a URL."""
        if not HOST.fullmatch(self.host):   # RFC 9112 3.2: an invalid one must be 400
            raise HttpError(400, f"the Host {self.host[:100]!r} is none: send the host's name or address, and its port")

    @property
    def prefix(self) -> str:
        """What comes before the paths of the routes, as a URL has it."""
        return quote(self.environ.get("SCRIPT_NAME", ""), safe=IN_PATHS, encoding="latin-1")

    @property
    def base_url(self) -> str:
        return f"{self.environ['wsgi.url_scheme']}://{self.host}{self.prefix}"

    def log(self, status: int, sent: int) -> None:
        """Tells the log and the metrics of the request when its answer is over."""
        seconds, received = time.monotonic() - self.body.started, self.body.received
        access.info("%s %s %d %d %.1f %s %s", as_field(self.method, MAX_LOGGED_METHOD),
                    as_field(self.path, MAX_LOGGED_PATH), status, received or sent, seconds * 1000, self.id,
                    as_field(self.environ.get("REMOTE_ADDR") or "-", MAX_LOGGED_ADDRESS))
        method = self.method if self.method in METHODS else "other"     # a label may not have values without end
        self.services.metrics.count(self.route, method, status, seconds, received, sent)

    def audit(self, verb: str, names: Names, sha256: str | None, status: int) -> None:
        """Tells of one model that was changed, or was not because the caller may not do that."""
        audit.info("%s", json.dumps({"who": self.caller.name, "verb": verb, "model": "/".join(names) or None,
                                     "sha256": sha256, "status": status, "request": self.id}))


def as_field(text: str, most: int) -> str:
    """One field of a log line, whatever somebody sent as it, of at most so many characters and a sign of the cut."""
    quoted = quote(text[: most + 1], safe="/+,:")
    return quoted if len(quoted) <= most else f"{quoted[:most]}..."


@functools.cache    # the names are ours: there are few
def variable_of(header: str) -> str:
    """The name of a header's variable in a WSGI environment (PEP 3333)."""
    variable = header.upper().replace("-", "_")
    return variable if variable in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{variable}"


def error_response(error: Exception) -> Response:
    """The answer to an exception: its own status, or that of the table, or 500 and a traceback in the log."""
    headers: tuple[tuple[str, str], ...] = getattr(error, "headers", ())
    status = next((STATUS_OF[c] for c in type(error).__mro__ if c in STATUS_OF), getattr(error, "status", 500))
    detail = str(error)
    if isinstance(error, RangeNotSatisfiable):
        headers = (("Content-Range", f"bytes */{error.size}"),)
    if isinstance(error, StorageLost):
        headers = (("Retry-After", str(RETRY_AFTER)),)
    if (isinstance(error, StorageFailed) and status != 409) or status == 500:
        log.error("%s", error, exc_info=error)
        if not isinstance(error, StoreError):
            detail = "the server has a fault; its log tells more under this X-Request-Id"
    return json_response(status, {"detail": detail}, *headers) if status != 204 else Response(204, [*headers])


def lost(error: StorageFailed) -> StorageLost:
    found = StorageLost(f"{error}; nothing of the storage can be read just now: try again in some seconds")
    found.__cause__ = error
    return found


# ---- routes


@dataclass(frozen=True)
class Route:
    """`verb` is what a caller must have the right to, for all that the path names; None: anybody may.

    Where it is `partly` enough to have it for some of that, the handler keeps to what request.caller may.
    """

    method: str
    path: str
    verb: str | None
    handler: Callable[..., Response]
    admit: Callable[..., Body] | None = None    # what becomes of a body, decided by the request's head
    at_once: Callable[..., bool] = lambda request, store, **names: False    # whether no disk and no time is needed
    partly: bool = False

    @functools.cached_property
    def depth(self) -> int:
        return self.path.count("/")

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(self.path)))


def find_route(routes: Sequence[Route], request: Request) -> tuple[Route, dict[str, str]]:
    """The route of a request and the names in its path, which follow the grammar; raises HttpError 404, 405, 204."""
    raw = request.environ.get("REQUEST_URI", "").partition("?")[0]
    if DOUBLE_SLASH.match(raw):     # waitress takes them for one, other servers and a proxy's rules do not
        raise HttpError(404, "the path begins with more than one slash: take one away")
    if "%2f" in raw.lower():    # decoded it would be a slash, and the name another one (TRAPS 10)
        raise InvalidName("a name in the path has an encoded slash, which no name may have")
    method = "GET" if request.method == "HEAD" else request.method
    path = request.path[:-1] if method == "GET" and request.path.endswith("/") else request.path
    depth = path.count("/")
    fitting = [route for route in routes if route.depth == depth and route.pattern.fullmatch(path)]
    fitting = [route for route in fitting if route.path == path] or fitting     # /models/list is no project
    if not fitting:
        raise HttpError(404, f"there is nothing at {request.path[:200]}: see the README for the routes")
    for route in fitting:
        if route.method == method and (found := route.pattern.fullmatch(path)):
            for name, value in found.groupdict().items():
                check_name(name, value)
            return route, found.groupdict()
    methods = {route.method for route in fitting}
    allow = ("Allow", ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))))
    if method == "OPTIONS":
        raise HttpError(204, "", allow)
    raise HttpError(405, f"{request.method[:50]} is not for this path: use {allow[1]}", allow)


def read_body(environ: dict[str, Any], body: Body) -> None:
    """Fills a body from wsgi.input, under a server that is not ours; one cut short is refused."""
    announced = environ.get("CONTENT_LENGTH") or ""
    left = sys.maxsize if not announced and environ.get("wsgi.input_terminated") else int(announced or 0)
    while left > 0 and (data := environ["wsgi.input"].read(min(left, BLOCK))):
        left -= len(data)
        body.append(data)
        if isinstance(body, Upload):
            body.wait_for_room()
    if announced and left > 0:
        body.refuse(BadUpload(f"the body ends {left} bytes before its Content-Length: send it again"))


class Application:
    """The WSGI application. `admit` says, by its head alone, what becomes of a request's body."""

    def __init__(self, store: Storage, settings: Settings, routes: Sequence[Route], metrics: Metrics) -> None:
        self.store = store
        self.routes = routes
        self.guard = guard_of(settings.tokens_file, settings.anonymous)
        self.services = Services(settings, metrics, Verifier(store, settings.verify_rate, metrics), Intake())
        self._process, self._numbers = secrets.token_hex(6), itertools.count(1)

    def begin(self, environ: dict[str, Any]) -> tuple[Request, Route]:
        """The request of an environment and its route, kept there until it is answered.

        Raises HttpError and InvalidName.
        """
        request, route = environ.get(REQUEST) or (Request(environ, self.services), None)
        if route is None:
            environ[REQUEST] = request, None
            request.check_host()
            route = self.find(request)
            environ[REQUEST] = request, route
        return request, route

    def find(self, request: Request) -> Route:
        """The route of a request, which knows its names then; raises HttpError and InvalidName."""
        route, request.names = find_route(self.routes, request)
        request.route = route.path
        return route

    def admit(self, environ: dict[str, Any]) -> Body:
        """What becomes of a body, by the head of its request alone; refusals are answered when they are asked for."""
        try:
            request, route = self.begin(environ)
            self.authorize(request, route)
            return self.body_of(request, route)
        except Exception as error:      # noqa: BLE001  raised again when the request is answered
            return Body(error)

    def answers_at_once(self, environ: dict[str, Any]) -> bool:
        """Whether a request without a body takes so little that no thread need be woken for it."""
        try:
            request, route = self.begin(environ)
            return route.at_once(request, self.store, **request.names)
        except (HttpError, StoreError):
            return False    # it will be raised again

    def body_of(self, request: Request, route: Route) -> Body:
        return route.admit(request, self.store, **request.names) if route.admit else Body()

    def authorize(self, request: Request, route: Route) -> None:
        """Finds out who asks, before the store is asked; raises what they get when they may not do that."""
        if self.guard is None or route.verb is None:
            return
        place = tuple(request.names.values())
        caller = request.caller = self.guard.caller(request.header("Authorization"), route.verb, place)
        if route.verb == "read" and caller.known:
            if route.partly:
                return  # what they may not read is not in the list
            if place and not caller.may("read", place):
                raise absent(place)
        caller.check(route.verb, place, partly=route.partly)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request, route = environ.pop(REQUEST, None) or (Request(environ, self.services), None)
        request.id = request.id or f"{self._process}-{next(self._numbers):x}"
        try:
            response = self.respond(request, route)
        except Exception as error:      # noqa: BLE001  this is where every fault turns into its answer
            response = self.refuse(request, error)
        finally:
            request.body.close()
            request.body.settle()
        response.headers.append(("X-Request-Id", request.id))
        return send(response, environ, start_response, functools.partial(request.log, response.status))

    def respond(self, request: Request, route: Route | None) -> Response:
        environ, arrived = request.environ, request.environ["wsgi.input"]
        if isinstance(arrived, Body):   # our own server filled it while it arrived
            request.body = arrived
            if isinstance(arrived.refusal, ProtocolError):
                raise arrived.refusal   # what there is of the head is not to be trusted
        request.check_host()    # again: a proxy that is believed may have named another one
        route = route or self.find(request)
        self.authorize(request, route)  # again, where a body has come: its token may have been withdrawn meanwhile
        if request.body is not arrived:
            request.body = self.body_of(request, route)
            if isinstance(request.body, Upload) and not {"CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"} & environ.keys():
                raise HttpError(411, "the request has no body and does not say that it is empty: send a Content-Length")
            read_body(environ, request.body)
        if request.body.refusal:
            raise request.body.refusal
        return route.handler(request, self.store, **request.names)

    def refuse(self, request: Request, error: Exception) -> Response:
        """The answer to an exception, which is counted where it ended an upload, and told to the audit."""
        if isinstance(error, StorageFailed) and self.store.is_lost():
            error = lost(error)
        response = error_response(error)
        upload = request.method in ("PUT", "POST") and not request.path.startswith("/verify")
        if isinstance(request.body, Upload) or upload:
            self.services.metrics.refuse(type(error).__name__)
        if isinstance(error, Refused) and error.verb != "read":
            request.audit(error.verb, error.names, None, response.status)
        return response
