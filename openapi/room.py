"""The description of the API: /openapi.json."""

import functools
import hashlib
import json
from collections.abc import Sequence

from openapi.document import Document
from server.about import CACHE, ETAG, IF_MATCH, IF_NONE_MATCH, JSON, UNCHANGED, About, Answer
from server.application import Room, Route
from server.request import Request
from server.responses import Response, tagged_response
from server.settings import Settings
from storage import Storage

ABOUT = About("get_openapi", "describes this API: OpenAPI 3.1", {
    200: Answer("The document.", {JSON: {"type": "object"}}, (CACHE, ETAG)),
    304: UNCHANGED,
}, (412,), headers=(IF_MATCH, IF_NONE_MATCH))


def overview(routes: Sequence[Route], settings: Settings) -> tuple[Route, ...]:
    """The route of the document, which describes all routes, itself included, and is made when first requested."""
    @functools.cache
    def made() -> bytes:
        return json.dumps(Document(settings).of((*routes, own))).encode()

    def describe(request: Request, store: Storage) -> Response:
        text = made()
        etag = f'"{hashlib.sha256(text).hexdigest()[:32]}"'
        return tagged_response(request.header, text, etag, "the document")

    # needs no token: it says nothing about what is stored, and programs that generate clients may not have one
    own = Route("GET", "/openapi.json", None, describe, about=ABOUT)
    return (own,)


OPENAPI = Room(overview=overview)
