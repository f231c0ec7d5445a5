"""What requests to continue an upload say, and what the answers tell: three protocols, and pure functions.

The names are those of draft-ietf-httpbis-resumable-upload. tus 1.0 (https://tus.io) has most of them, too.
"""

import base64
import binascii
import re

from server.conditional import Header
from server.errors import BadRequest, HttpError, NotFound
from server.settings import Settings

NUMBER = re.compile("[0-9]{1,18}")
TUS = "1.0.0"
OPTIONS = (("Tus-Resumable", TUS), ("Tus-Version", TUS),
           ("Tus-Extension", "creation,creation-with-upload,creation-defer-length,termination"))


class WrongOffset(HttpError):
    status = 409


class Gone(NotFound):
    """There is no such upload."""


class Refusal(HttpError):
    """What is 409 for others. tus-js-client would take that for a wrong offset, and send all of it five times."""

    status = 403


def number(header: Header, name: str) -> int | None:
    """The number in a header; None without it. Raises BadRequest."""
    if (text := header(name)) is None:
        return None
    if not NUMBER.fullmatch(text.strip()):
        raise BadRequest(f"{name} {text[:50]!r} is not a number of bytes")
    return int(text)


def is_last(header: Header) -> bool:
    """Whether nothing follows this part, as far as it says so; tus tells it by the length alone. Raises BadRequest."""
    if (said := header("Upload-Complete")) not in (None, "?0", "?1"):   # as ?0, the last part would wait for more
        raise BadRequest(f"Upload-Complete is {said!r:.50} and neither ?0 nor ?1")
    return said != "?0" and header("Tus-Resumable") is None


def is_client_of_tus(header: Header) -> bool:
    """Whether tus-js-client or another client of a protocol with retries of its own has sent it."""
    return header("Tus-Resumable") is not None or header("Upload-Draft-Interop-Version") is not None


def metadata_of(text: str) -> dict[str, str]:
    """The fields in Upload-Metadata (tus 1.0, creation): a name and base64, with commas between them."""
    fields = {}
    for pair in filter(None, (pair.strip() for pair in text.split(","))):
        name, _, value = pair.partition(" ")
        try:
            fields[name] = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise BadRequest(f"{name[:100]!r} in Upload-Metadata is not UTF-8 in base64") from error
    fields.pop("filetype", None)    # which tus-js-client guesses by the name
    return fields


def state_headers(settings: Settings, offset: int, complete: bool, length: int | None) -> list[tuple[str, str]]:
    """What every answer tells of an upload."""
    most = f"max-size={settings.max_size}, " if settings.max_size is not None else ""
    size = [("Upload-Length", str(length))] if length is not None else [("Upload-Defer-Length", "1")]
    return [("Upload-Offset", str(offset)), ("Upload-Complete", f"?{complete:d}"), *size, ("Tus-Resumable", TUS),
            ("Upload-Limit", f"{most}max-age={settings.upload_age}"), ("Cache-Control", "no-store")]
