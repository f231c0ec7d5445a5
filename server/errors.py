"""The errors of requests, each with its status, and the status of each error of the store."""

from repository.errors import (
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
)

STATUS_OF: dict[type[StoreError], int] = {
    InvalidName: 400,
    InvalidMetadata: 400,
    ReadOnly: 403,
    ModelNotFound: 404,
    ModelExists: 409,
    MetadataUnreadable: 409,
    NotEmpty: 409,
    # A fault of one model is not a 5xx: because of those, proxies take a server out of service, with all its models.
    # Caches would keep a 404 or 410, and clients would take it for "there is no such file". curl, wget and the clients
    # of the Hugging Face Hub do not retry after a 409. RFC 9110 15.5.10: the user might be able to resolve it.
    ModelCorrupt: 409,
    ModelUnreadable: 409,
    StorageFailed: 500,     # for this request: others may well succeed
    StorageLost: 503,       # the only status that tells a proxy to try another server
    StorageFull: 507,
}


class HttpError(Exception):
    """Answers a request with `status`, these headers, and a message that says what was wrong and what to do."""

    status = 400
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, detail: str, *headers: tuple[str, str]) -> None:
        super().__init__(detail)
        self.headers = self.headers + headers


class OptionsAnswered(HttpError):
    """Not an error: OPTIONS is answered before a handler is called."""

    status = 204


class BadRequest(HttpError):
    """The request is malformed or incomplete."""


class CutShort(BadRequest):
    """The body ended before its announced length."""


class DigestMismatch(BadRequest):
    """The bytes that arrived do not have the digest that the client sent."""


class NotFound(HttpError):
    """There is nothing at this path: no route, or nothing of what a room keeps in addition to the models."""

    status = 404


def nothing_at(path: str) -> NotFound:
    """The error for a path that belongs to no route."""
    return NotFound(f"there is nothing at {path[:200]}: see the README for the routes")


class MethodNotAllowed(HttpError):
    status = 405


class ForeignOrigin(HttpError):
    """The request comes from a web page of another origin, by somebody's browser."""

    status = 403


class Misdirected(HttpError):
    """The request names a host that is not this server."""

    status = 421


class LengthRequired(HttpError):
    status = 411


class PreconditionFailed(HttpError):
    status = 412


class TooLarge(BadRequest):
    status = 413


class UnsupportedMediaType(HttpError):
    status = 415


class RangeNotSatisfiable(HttpError):
    status = 416

    def __init__(self, size: int) -> None:
        super().__init__(f"the range begins beyond the {size} bytes there are: the download is complete",
                         ("Content-Range", f"bytes */{size}"))


class QueueFull(HttpError):
    status = 429


class ProtocolError(HttpError):
    """The request is not valid HTTP, or beyond a limit of the server."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail, *((("Retry-After", "1"),) if status == 429 else ()))
        self.status = status


def status_of(error: Exception) -> int:
    """The status of the answer to an exception: its own, or the one in the table; otherwise 500."""
    status: int = next((STATUS_OF[c] for c in type(error).__mro__ if c in STATUS_OF), getattr(error, "status", 500))
    return status
