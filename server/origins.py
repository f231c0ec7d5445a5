"""Which web pages may use this server: the origin of a page that writes, the host that a browser took us for, CORS.

A browser sends what any page tells it to, to every address that it can reach, 127.0.0.1 included. Headers that no
script can set say which page that was. Other clients do not send these headers, and are not affected.
"""

from server.errors import ForeignOrigin, Misdirected
from server.request import Request
from server.settings import plain_origin

SAFE = ("GET", "HEAD", "OPTIONS")       # RFC 9110 9.2.1: they change nothing
OWN_SITES = ("same-origin", "none")     # "none": by the user, who has typed an address for example
OPEN_PATHS = ("/health",)               # probes ask by address, and the answer says nothing about the models
METHODS = "GET, HEAD, PUT, POST, PATCH, DELETE"
PREFLIGHT_AGE = "600"   # seconds for which a browser need not ask again; Chromium accepts up to two hours


def check(request: Request) -> None:
    """Raises Misdirected for a host that is not ours, ForeignOrigin for a write that a page of another origin sent."""
    if request.settings.allowed_hosts:
        check_host(request)
    if request.method in SAFE or is_allowed(request):
        return
    scheme, host = seen_by_client(request)
    origin, site = request.header("Origin"), request.header("Sec-Fetch-Site")
    # both, because a browser may send only one of them, and if they contradict each other, neither can be trusted
    own = f"{scheme}://{host}"
    if (site is not None and site not in OWN_SITES) or (origin is not None and plain_origin(origin) != own):
        raise ForeignOrigin(
            f"a page of {(origin or 'another origin')[:200]!r} sent this, and only pages of {own} may change anything "
            "here: list that origin in MODEL_ALLOWED_ORIGINS, or set TRUSTED_PROXY if a proxy publishes this server "
            "under another name")


def check_host(request: Request) -> None:
    """Raises Misdirected unless the host is one of MODEL_ALLOWED_HOSTS, which may have a port, or else match any port.

    A page can have its own name lead to our address (DNS rebinding), and then has the same origin as this server: only
    that name gives it away. RFC 9110 15.5.20.
    """
    if request.path in OPEN_PATHS or not request.header("Host"):    # every browser sends a Host
        return
    _, host = seen_by_client(request)
    if not {host, host_of(host)} & request.settings.allowed_hosts:
        raise Misdirected(f"this server is not {host[:200]!r}: use one of its names, or add that one to "
                          "MODEL_ALLOWED_HOSTS")


def headers(request: Request) -> list[tuple[str, str]]:
    """The headers of every answer for browsers: to believe its Content-Type, and which other origin may read it."""
    found = [("X-Content-Type-Options", "nosniff")]
    if request.settings.allowed_origins:
        found.append(("Vary", "Origin"))    # the answer depends on it
    if is_allowed(request):     # without Allow-Credentials, so that a wildcard means all headers (Fetch 3.3.3)
        found += [("Access-Control-Allow-Origin", request.header("Origin") or ""),
                  ("Access-Control-Expose-Headers", "*")]
        if request.method == "OPTIONS" and request.header("Access-Control-Request-Method"):
            found += [("Access-Control-Allow-Methods", METHODS),
                      ("Access-Control-Allow-Headers", "*, Authorization"),     # * does not include that one
                      ("Access-Control-Max-Age", PREFLIGHT_AGE)]
    return found


def is_allowed(request: Request) -> bool:
    """Whether the request comes from a page of one of MODEL_ALLOWED_ORIGINS."""
    return plain_origin(request.header("Origin") or "") in request.settings.allowed_origins


def seen_by_client(request: Request) -> tuple[str, str]:
    """The scheme, and the host with its port unless that is the scheme's, under which the client knows this server."""
    scheme = request.environ["wsgi.url_scheme"]
    return scheme, plain_origin(f"{scheme}://{request.host}").partition("://")[2]


def host_of(host: str) -> str:
    """A host without its port; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
