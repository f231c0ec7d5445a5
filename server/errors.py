"""What can be wrong with a request, each with the status of its answer; and the status of the store's words."""

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
    # What is wrong with one model is no 5xx: proxies take a server that answers with those out of service, for all
    # models. 404 and 410 would be kept by caches, and read as "there is no such file"; curl, wget and the clients of
    # the Hugging Face Hub ask again after 408, 429 and 5xx alone. RFC 9110 15.5.10: the user may resolve it.
    ModelCorrupt: 409,
    ModelUnreadable: 409,
    StorageFailed: 500,     # in this request: what others ask for may well be there
    StorageLost: 503,       # the one status that tells a proxy to ask another server
    StorageFull: 507,
}


class HttpError(Exception):
    """A request that is answered with `status`, a sentence that says what to do, and headers of its own."""

    status = 400
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, detail: str, *headers: tuple[str, str]) -> None:
        super().__init__(detail)
        self.headers = self.headers + headers


class OptionsAnswered(HttpError):
    """Not an error: OPTIONS is answered before there is a handler to ask."""

    status = 204


class BadRequest(HttpError):
    """What was sent cannot be taken as it is."""


class DigestMismatch(BadRequest):
    """The bytes that arrived are not those that the client claims to have sent."""


class NotFound(HttpError):
    """No route has this path."""

    status = 404


class MethodNotAllowed(HttpError):
    status = 405


class ForeignOrigin(HttpError):
    """A web page of another origin sent it, from somebody's browser."""

    status = 403


class Misdirected(HttpError):
    """It was sent to a host that this server is not, by the name in it."""

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
    """Not HTTP as this server takes it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail, *((("Retry-After", "1"),) if status == 429 else ()))
        self.status = status
