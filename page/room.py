"""The page for browsers: its files, from memory, at / and at the addresses of lists."""

import hashlib
import html
from pathlib import Path

from page.about import ADDS, FILE, START
from server.application import Room, Route
from server.conditional import asks_for, read_status
from server.errors import nothing_at
from server.request import Request
from server.responses import Response
from storage import Storage

PAGES = ("GET /", *ADDS)
KINDS = {".css": "text/css", ".js": "text/javascript"}
# Nothing but our own files runs or is loaded, even if a name or metadata got into the page as anything but text.
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
          "frame-ancestors 'none'; base-uri 'none'; form-action 'none'")


def nothing(request: Request, store: Storage, **names: str) -> Response:
    raise nothing_at(request.path)


class Page:
    """Answers what browsers ask for. The page holds no data, so it needs no token. Raises OSError."""

    def __init__(self) -> None:
        files = Path(__file__).parent
        self._html = (files / "page.html").read_text(encoding="utf-8")
        self._files = {path.name: path.read_bytes() for path in files.iterdir() if path.suffix in KINDS}

    def __call__(self, request: Request, route: Route) -> Response | None:
        if f"{route.method} {route.path}" in PAGES and "format" not in request.query:
            request.vary.append("Accept")
            if asks_for("text/html", request.header("Accept") or ""):
                page = self._html.replace("{root}", html.escape(root_of(request)))
                return answer(request, "text/html", page.encode())
        if route.handler is nothing and (body := self._files.get(request.names.get("name", ""))):
            return answer(request, KINDS[Path(request.names["name"]).suffix], body)
        return None


def root_of(request: Request) -> str:
    """The relative URL of the root of the server, or its path below the proxy's."""
    if request.prefix:      # the address may be the prefix itself, without a slash at its end
        return f"{request.prefix}/"
    return "../" * (request.path.count("/") - 1) or "./"


def answer(request: Request, kind: str, body: bytes) -> Response:
    """This file, or 304 for a browser that has it."""
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = [("ETag", etag), ("Cache-Control", "no-cache"), ("Content-Security-Policy", POLICY)]
    if read_status(request.header, etag, None) == 304:
        return Response(304, headers)
    return Response(200, [("Content-Type", f"{kind}; charset=utf-8"), *headers], body)


PAGE = Room((
    Route("GET", "/", None, nothing, about=START),              # for all but browsers
    Route("GET", "/page/{name}", None, nothing, about=FILE),    # where Page has no file of this name
), front=Page, adds=ADDS)
