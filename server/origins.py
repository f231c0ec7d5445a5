"""Which web pages may use this server: the origin of a page that writes, the host that a browser took us for, CORS.

A browser sends what any page asks it to, to every address that it can reach, 127.0.0.1 included. It tells of the page
in headers that no script can set. Clients that are no browsers send neither of them and are not concerned.
"""

from server.errors import ForeignOrigin, Misdirected
from server.request import Request
from server.settings import plain_origin

SAFE = ("GET", "HEAD", "OPTIONS")       # RFC 9110 9.2.1: they change nothing
OWN_SITES = ("same-origin", "none")     # "none": the user did it, by typing an address for example
OPEN_PATHS = ("/health",)               # probes ask by address, and there is nothing of the models in it
METHODS = "GET, HEAD, PUT, POST, PATCH, DELETE"
PREFLIGHT_AGE = "600"   # seconds for which a browser need not ask again; Chromium takes no more than two hours


def check(request: Request) -> None:
    """Raises Misdirected for a host that is not ours, ForeignOrigin for a write that a page of another origin sent."""
    if request.settings.allowed_hosts:
        check_host(request)
    if request.method in SAFE or is_allowed(request):
        return
    scheme, host = seen_by_client(request)
    origin, site = request.header("Origin"), request.header("Sec-Fetch-Site")
    # both: a browser may send one of them alone, and one that contradicts the other is not to be trusted
    own = f"{scheme}://{host}"
    if (site is not None and site not in OWN_SITES) or (origin is not None and plain_origin(origin) != own):
        raise ForeignOrigin(
            f"a page of {(origin or 'another origin')[:200]!r} sent this, and only pages of {own} may change anything "
            "here: list that origin in MODEL_ALLOWED_ORIGINS, or set TRUSTED_PROXY if a proxy publishes this server "
            "under another name")


def check_host(request: Request) -> None:
    """Raises Misdirected unless this is one of MODEL_ALLOWED_HOSTS, with that port or where none is given with any.

    A page can have its own name lead to our address (DNS rebinding), and is of our origin then: it has only the name
    to tell it by. RFC 9110 15.5.20.
    """
    if request.path in OPEN_PATHS or not request.header("Host"):    # which no browser leaves out
        return
    _, host = seen_by_client(request)
    if not {host, host_of(host)} & request.settings.allowed_hosts:
        raise Misdirected(f"this server is not {host[:200]!r}: use one of its names, or add that one to "
                          "MODEL_ALLOWED_HOSTS")


def headers(request: Request) -> list[tuple[str, str]]:
    """What every answer tells a browser: to believe its Content-Type, and which other origin may read it."""
    found = [("X-Content-Type-Options", "nosniff")]
    if request.settings.allowed_origins:
        found.append(("Vary", "Origin"))    # for caches: without that origin it is another answer
    if is_allowed(request):     # without Allow-Credentials, so a wildcard stands for all (Fetch 3.3.3)
        found += [("Access-Control-Allow-Origin", request.header("Origin") or ""),
                  ("Access-Control-Expose-Headers", "*")]
        if request.method == "OPTIONS" and request.header("Access-Control-Request-Method"):
            found += [("Access-Control-Allow-Methods", METHODS),
                      ("Access-Control-Allow-Headers", "*, Authorization"),     # which * does not stand for
                      ("Access-Control-Max-Age", PREFLIGHT_AGE)]
    return found


def is_allowed(request: Request) -> bool:
    """Whether it is from a page of one of MODEL_ALLOWED_ORIGINS."""
    return plain_origin(request.header("Origin") or "") in request.settings.allowed_origins


def seen_by_client(request: Request) -> tuple[str, str]:
    """The scheme, and the host with its port unless that is the scheme's, under which the client knows this server."""
    scheme = request.environ["wsgi.url_scheme"]
    return scheme, plain_origin(f"{scheme}://{request.host}").partition("://")[2]


def host_of(host: str) -> str:
    """A host without its port; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
