"""From a WSGI request to its handler and back: requests, routes, errors as JSON, the application.

Which routes there are, and what their handlers do, is in model_server.py.
"""

import functools
import itertools
import logging
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from repository.aliases import MARK
from repository.errors import (
    InvalidName,
    StorageFailed,
    StorageLost,
    StoreError,
    absent,
)
from repository.model import RESERVED_ENDINGS, check_name
from server import origins
from server.about import About
from server.access import Refused, guard_of
from server.errors import (
    CutShort,
    HttpError,
    LengthRequired,
    MethodNotAllowed,
    NotFound,
    OptionsAnswered,
    ProtocolError,
    nothing_at,
    status_of,
)
from server.metrics import Metrics
from server.request import Examine, Keeper, ListFormat, Request, Services, Tell, VersionTag
from server.responses import Response, json_response, send
from server.settings import Settings
from server.uploads import READ_BLOCK, REQUEST, Body, Intake, Upload
from server.verifier import Verifier
from storage import Storage

log = logging.getLogger("model_server")
RETRY_AFTER = 5     # seconds until a client should try a lost storage again, as in deploy/nginx.conf for a dead server
LEFT = 499          # status in the log, as nginx has it; no client ever gets it
MOST_NAMES = 64     # after the first: more than are allowed, to say so; 64 KiB of them took 0.2 s of the network thread
ONE, NO_ALIAS = "([^/]+)", "([^/@][^/]*)"
# a name that ends another route, like info, can be the only name of a model but not the last of several
SEVERAL = f"([^/]+(?:/(?!(?:{'|'.join(sorted(RESERVED_ENDINGS))})\\Z)[^/]+){{0,{MOST_NAMES}}})"
# a path as clients of other protocols make it: its names may be empty, or end like another route
ANY = f"([^/]*(?:/[^/]*){{0,{MOST_NAMES}}})"
# RFC 9112 3.2.2: a target may be a whole URL
DOUBLE_SLASH = re.compile("([A-Za-z][A-Za-z0-9+.-]*://[^/]*)?/(/|%2f)", re.IGNORECASE)


def error_response(error: Exception) -> Response:
    """The answer to an exception, whose traceback is logged if the storage or the server itself has failed."""
    headers: tuple[tuple[str, str], ...] = getattr(error, "headers", ())
    status = status_of(error)
    detail = str(error)
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


Handler = Callable[..., Response]


@dataclass(frozen=True)
class Route:
    """`verb` is the permission that a caller needs for everything that the path names; None: anybody may.

    If it is `partly` enough to have it for some of that, the handler keeps to what request.caller may. `explain` adds
    to the answer to an error what the clients of this route understand. `about` describes the route to programs.
    """

    method: str
    path: str
    verb: str | None
    handler: Handler
    admit: Callable[..., Body] | None = None    # decides from the request's head what receives the body
    at_once: Callable[..., bool] = lambda request, store, **names: False    # whether the answer needs no disk, no time
    partly: bool = False
    through_aliases: bool = False       # whether an alias may stand for the version, as it may in every GET that reads
    encoded_slashes: bool = False       # whether %2F in the path is a slash; elsewhere it is refused
    explain: Callable[[Request, Exception, Response], None] | None = None
    about: About | None = None

    @property
    def fields(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def pattern(self) -> str:
        """A regular expression for the path, with a group for each of the fields."""
        reads = self.through_aliases or (self.method == "GET" and self.verb != "create")
        kinds = {"model_name": ANY if self.encoded_slashes else SEVERAL, "version": ONE if reads else NO_ALIAS}
        return re.sub(r"\\\{(\w+)\\\}", lambda field: kinds.get(field[1], ONE), re.escape(self.path))


Front = Callable[[Request, Route], Response | None]


class Room(NamedTuple):
    """An optional part of the server: routes, formats of lists, and what else it contributes.

    `read_through` answers a path with an alias in place of the version, by calling the handler with that version.
    `version_tag` returns the ETag of a model's version, which downloads send and accept as a condition.
    `keeper` makes, for a store and the services of a server, what keeps uploads that break off.
    `examiner` makes, for the settings, a function of an open file and its size in bytes, which returns what it found or
    raises what refuses the upload. Raises ValueError for invalid settings.
    `front` makes a function that may answer a request in place of its route, before a token is asked for. It adds to
    request.vary the headers that it based this on.
    `adds` is what the room adds to the descriptions of other routes, by method and path. `overview` returns the routes
    that describe all routes, for those and the settings.
    """

    routes: tuple[Route, ...] = ()
    formats: Mapping[str, ListFormat] = MappingProxyType({})
    read_through: Callable[[Request, Storage, Handler], Response] | None = None
    version_tag: VersionTag | None = None
    keeper: Callable[[Storage, Services], Keeper] | None = None
    examiner: Callable[[Settings], Examine] | None = None
    front: Callable[[], Front] | None = None
    adds: Mapping[str, About] = MappingProxyType({})
    overview: Callable[[Sequence[Route], Settings], tuple[Route, ...]] | None = None


def routes_of(routes: Sequence[Route], rooms: Sequence[Room], settings: Settings) -> tuple[Route, ...]:
    """All routes, each with its whole description."""
    found = list[Route]()
    for route in (*routes, *(route for room in rooms for route in room.routes)):
        about = route.about
        for room in rooms:
            more = room.adds.get(f"{route.method} {route.path}")
            about = about.joined(more) if about and more else about
        found.append(replace(route, about=about))
    return (*found, *(route for room in rooms if room.overview for route in room.overview(found, settings)))


class Router:
    """Finds routes: those without fields by their path, the others by one regular expression for each method.

    If several match, the first one in the table is chosen.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._fixed: dict[str, dict[str, Route]] = {}
        several: dict[str, list[Route]] = {}
        for route in routes:
            if route.fields:
                several.setdefault(route.method, []).append(route)
            else:
                self._fixed.setdefault(route.path, {})[route.method] = route
        self._patterns = {method: Alternatives(routes) for method, routes in several.items()}

    def find(self, request: Request) -> tuple[Route, dict[str, str]]:
        """The route of a request, and the names in its path, which need not follow the grammar.

        Raises InvalidName, and HttpError 404, 405 or 204.
        """
        raw = request.environ.get("REQUEST_URI", "").partition("?")[0]
        if DOUBLE_SLASH.match(raw):     # waitress takes two for one; other servers, and the rules of proxies, do not
            raise NotFound("the path begins with more than one slash: take one away")
        method = "GET" if request.method == "HEAD" else request.method
        path = request.path
        found = self._match(method, path)
        if "%2f" in raw.lower() and not (found and found[0].encoded_slashes):
            raise InvalidName("a name in the path has an encoded slash, which no name may have")
        if found:
            return found
        if f"/{MARK}" in path and method != "OPTIONS" and self._match(method, path.replace(f"/{MARK}", "/_")):
            raise InvalidName("an alias is for reading: to change something, name the version")
        methods = {method for method in self._methods(path) if self._match(method, path)}
        if not methods:
            raise nothing_at(path)
        allow = ("Allow", ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))))
        if method == "OPTIONS":
            raise OptionsAnswered("", allow)
        raise MethodNotAllowed(f"{request.method[:50]} is not available at this path: use {allow[1]}", allow)

    def _methods(self, path: str) -> Iterable[str]:
        return self._fixed.get(path) or self._patterns

    def _match(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        if method == "GET":
            path = path.removesuffix("/") or "/"
        if fixed := self._fixed.get(path):      # /models/list is no project
            return (fixed[method], {}) if method in fixed else None
        alternatives = self._patterns.get(method)
        return alternatives.match(path) if alternatives else None


class Alternatives:
    """Routes of one method as one regular expression. An empty group after each shows which of them matched."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._pattern = re.compile("|".join(f"{route.pattern}()" for route in routes))
        self._routes: dict[int, tuple[Route, list[str], int]] = {}    # by the number of its last group
        first = 0
        for route in routes:
            fields = route.fields
            self._routes[first + len(fields) + 1] = route, fields, first
            first += len(fields) + 1

    def match(self, path: str) -> tuple[Route, dict[str, str]] | None:
        if not (found := self._pattern.fullmatch(path)):
            return None
        assert found.lastindex
        route, fields, first = self._routes[found.lastindex]
        return route, dict(zip(fields, found.groups()[first:], strict=False))


def read_body(environ: dict[str, Any], body: Body) -> None:
    """Fills a body from wsgi.input, under a server other than ours; refuses it if it is cut short."""
    announced = environ.get("CONTENT_LENGTH") or ""
    left = sys.maxsize if not announced and environ.get("wsgi.input_terminated") else int(announced or 0)
    while left > 0:
        if isinstance(body, Upload):
            body.wait_for_room()
        if not (data := environ["wsgi.input"].read(min(left, READ_BLOCK))):
            break
        left -= len(data)
        body.append(data)
    if announced and left > 0:
        body.refuse(CutShort(f"the body ends {left} bytes before its Content-Length: send it again"))


def examiner_of(rooms: Sequence[Room], settings: Settings) -> Examine | None:
    """What examines the bytes of uploads; raises ValueError if a setting requires it and no room does it."""
    examiners = [room.examiner(settings) for room in rooms if room.examiner]
    if not examiners and (settings.allowed_formats or settings.pickle != "allow"):
        raise ValueError("MODEL_ALLOWED_FORMATS and MODEL_PICKLE need the package inspection, which is not installed")
    return examiners[0] if examiners else None


class Application:
    """The WSGI application. `tell` writes the log line of a request."""

    def __init__(self, store: Storage, settings: Settings, routes: Sequence[Route], rooms: Sequence[Room],
                 metrics: Metrics, tell: Tell) -> None:
        self.store = store
        self.routes = routes_of(routes, rooms, settings)
        self.router = Router(self.routes)
        self.read_through = next((room.read_through for room in rooms if room.read_through), None)
        self.fronts = [room.front() for room in rooms if room.front]
        self.guard = guard_of(settings.tokens_file, settings.anonymous)
        verifier = Verifier(store, settings.verify_rate, metrics)
        services = Services(settings, metrics, verifier, Intake(metrics), examiner_of(rooms, settings),
                            {name: form for room in rooms for name, form in room.formats.items()}, tell,
                            next((room.version_tag for room in rooms if room.version_tag), None))
        keepers = [room.keeper(store, services) for room in rooms if room.keeper]
        self.services = replace(services, keeper=keepers[0] if keepers else None)
        self._process, self._numbers = secrets.token_hex(6), itertools.count(1)

    def begin(self, environ: dict[str, Any]) -> tuple[Request, Route]:
        """The request of an environment and its route, kept there until it is answered.

        Raises HttpError and InvalidName.
        """
        request, route = environ.get(REQUEST) or (Request(environ, self.services), None)
        if route is None:
            environ[REQUEST] = request, None
            route = self.find(request)
            environ[REQUEST] = request, route
        return request, route

    def find(self, request: Request) -> Route:
        """The route of a request, which gets its names from the path; raises HttpError and InvalidName."""
        request.check_host()
        origins.check(request)
        route, request.names = self.router.find(request)
        request.route, request.verb, request.explain = route.path, route.verb, route.explain
        for name, value in request.names.items():
            check_name(name, value[value[:1] == MARK and name == "version":])   # an alias stands for a version
        return route

    def admit(self, environ: dict[str, Any]) -> Body:
        """What receives a body, decided from the head of its request alone; a refusal is kept in it."""
        try:
            request, route = self.begin(environ)
            self.authorize(request, route)
            return self.body_of(request, route)
        except Exception as error:      # noqa: BLE001  raised again when the request is answered
            return Body(error)

    def answers_at_once(self, environ: dict[str, Any]) -> bool:
        """Whether a request without a body takes too little time to wake a thread for it."""
        try:
            request, route = self.begin(environ)
            return route.at_once(request, self.store, **request.names)
        except (HttpError, StoreError):
            return False    # it will be raised again

    def body_of(self, request: Request, route: Route) -> Body:
        return route.admit(request, self.store, **request.names) if route.admit else Body()

    def authorize(self, request: Request, route: Route) -> None:
        """Finds the caller and checks their permission, before the store is asked; raises Refused or ModelNotFound."""
        if self.guard is None or route.verb is None:
            return
        # the name of an alias keeps its mark, because without it that would be the name of a version
        place = tuple(MARK * (name == "alias") + value for name, value in request.names.items())
        caller = request.caller = self.guard.caller(request.header("Authorization"), route.verb, place)
        if route.verb == "read" and caller.has_token:
            if route.partly:
                return  # what they may not read is not in the list
            if place and not caller.may("read", place):
                raise absent(place)
        caller.check(route.verb, place, partly=route.partly)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request, route = environ.pop(REQUEST, None) or (Request(environ, self.services), None)
        self.identify(request)
        try:
            response = self.respond(request, route)
        except Exception as error:      # noqa: BLE001  this is where every fault turns into its answer
            response = self.refuse(request, error)
        finally:
            request.body.close()
            request.body.settle()
        response.headers += [("X-Request-Id", request.id), *origins.headers(request)]
        if request.vary:
            response.headers.append(("Vary", ", ".join(request.vary)))
        return send(response, environ, start_response, functools.partial(request.log, response.status))

    def identify(self, request: Request) -> None:
        """Gives a request an id, unless its client did."""
        request.id = request.id or f"{self._process}-{next(self._numbers):x}"

    def leave(self, environ: dict[str, Any], body: Body | None) -> None:
        """Tells of a request whose connection ends before it can be answered, usually because its body is missing."""
        request, _ = environ.get(REQUEST) or (Request(environ, self.services), None)
        self.identify(request)
        request.body = request.body if body is None else body
        request.log(LEFT, 0)

    def respond(self, request: Request, route: Route | None) -> Response:
        environ, arrived = request.environ, request.environ["wsgi.input"]
        if isinstance(arrived, Body):   # our own server filled it while it arrived
            request.body = arrived
            if isinstance(arrived.refusal, ProtocolError):
                raise arrived.refusal   # the rest of the head is not to be trusted
        route = route or self.find(request)
        for front in self.fronts:
            if response := front(request, route):
                return response
        self.authorize(request, route)  # again, where a body has come: its token may have been withdrawn meanwhile
        if request.body is not arrived:
            request.body = self.body_of(request, route)
            if isinstance(request.body, Upload) and not {"CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"} & environ.keys():
                raise LengthRequired("the request has no body and does not say that it is empty: send a Content-Length")
            read_body(environ, request.body)
        if request.body.refusal:
            raise request.body.refusal
        if request.names.get("version", "").startswith(MARK) and self.read_through:
            return self.read_through(request, self.store, route.handler)
        return route.handler(request, self.store, **request.names)

    def refuse(self, request: Request, error: Exception) -> Response:
        """The answer to an exception; counts it if it ended an upload, and logs a lack of permission for the audit."""
        if isinstance(error, StorageFailed) and self.store.is_lost():
            error = lost(error)
        response = error_response(error)
        if request.explain:
            request.explain(request, error, response)
        upload = request.method in ("PUT", "POST") and request.verb != "read"
        if isinstance(request.body, Upload) or upload:
            self.services.metrics.refuse(type(error).__name__)
        if isinstance(error, Refused) and error.verb != "read":
            request.audit(error.verb, error.names, None, response.status)
        return response
