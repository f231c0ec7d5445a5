"""The description of a route, as plain values: parameters, bodies, answers. openapi/ makes a document of them.

Schemas are those of JSON Schema 2020-12; one that is used in several places is a Schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from repository.aliases import MARK
from repository.model import MAX_PARTS, MAX_PATH, NAME, RESERVED_ENDINGS, RESERVED_PROJECTS

Json = Mapping[str, Any]


class Schema(NamedTuple):
    """A schema with a name, which is in the document once."""

    name: str
    definition: Json


class Field(NamedTuple):
    """A parameter of the query, or a header of a request or of an answer.

    With a `media` type, its value is a text of that type; without one, an object stands for parameters of any name.
    """

    name: str
    text: str
    schema: Json | Schema
    required: bool = False
    media: str | None = None


class Answer(NamedTuple):
    """What an answer means, the schemas of its body by media type, and its headers beyond those of every answer."""

    text: str
    content: Mapping[str, Json | Schema] = {}       # never changed
    headers: tuple[Field, ...] = ()


@dataclass(frozen=True, eq=False)
class About:
    """The description of a route.

    `id` is the name of a function in generated clients, `summary` the text of the README's table. `errors` are statuses
    of ERRORS in addition to those of every route, and `with_errors` the headers of its errors in addition to those in
    ERRORS. `names` are the fields of its path that differ from those in NAMES.
    """

    id: str
    summary: str
    answers: Mapping[int, Answer]
    errors: tuple[int, ...] = ()
    query: tuple[Field, ...] = ()
    headers: tuple[Field, ...] = ()
    bodies: Mapping[str, Json | Schema] = field(default_factory=dict)
    names: tuple[Field, ...] = ()
    with_errors: tuple[Field, ...] = ()
    text: str = ""

    def joined(self, more: "About") -> "About":
        """This description and another in one: answers and their bodies, parameters and their values, errors, text."""
        answers = dict(self.answers)
        for status, answer in more.answers.items():
            known = answers.get(status, Answer(answer.text))
            answers[status] = Answer(known.text, {**known.content, **answer.content},
                                     by_name(*known.headers, *answer.headers))
        return replace(self, answers=answers, errors=(*self.errors, *more.errors),
                       query=by_name(*self.query, *more.query), headers=by_name(*self.headers, *more.headers),
                       names=by_name(*more.names, *self.names), with_errors=(*self.with_errors, *more.with_errors),
                       text=f"{self.text} {more.text}".strip())


def by_name(*fields: Field) -> tuple[Field, ...]:
    """These fields, each name once; the lists of values of fields that have the same name are joined."""
    found = dict[str, Field]()
    for each in fields:
        known = found.setdefault(each.name, each)
        if isinstance(known.schema, Mapping) and isinstance(each.schema, Mapping) and "enum" in known.schema:
            values = [*known.schema["enum"], *(each.schema["enum"] if known is not each else ())]
            found[each.name] = known._replace(schema={**known.schema, "enum": values})
    return tuple(found.values())


# ---- what several routes have


JSON, TEXT, BINARY = "application/json", "text/plain", "application/octet-stream"
STRING: Json = {"type": "string"}
TEXT_OR_NULL: Json = {"type": ["string", "null"]}
WHOLE: Json = {"type": "integer", "minimum": 0}
BYTES: Json = {"type": "string", "format": "binary"}    # generated clients recognise a file by this
FLAG: Json = {"type": "string", "enum": ["true", "false"]}
SHA256: Json = {"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"}
ONE_NAME: Json = {"type": "string", "pattern": f"^{NAME.pattern}$"}
VERSION_OR_ALIAS: Json = {"type": "string", "pattern": f"^{MARK}?{NAME.pattern}$"}
PATH = Schema("Path", {
    "type": "string", "description": f"Up to {MAX_PARTS} names, joined by slashes.", "maxLength": MAX_PATH,
    "pattern": f"^{NAME.pattern}(/{NAME.pattern}){{0,{MAX_PARTS - 1}}}$",
    "not": {"pattern": f"/({'|'.join(sorted(RESERVED_ENDINGS))})$"},
})
MESSAGE = Field("message", "What was done.", STRING)

# The names in paths, by the field of the route. OpenAPI has no parameters with slashes.
NAMES = {
    "project_id": Field("project_id", "The name of the project.",
                        Schema("ProjectId", {**ONE_NAME, "not": {"enum": sorted(RESERVED_PROJECTS)}})),
    "app_name": Field("app_name", "The name of the application.", Schema("Name", ONE_NAME)),
    "version": Field("version", "The version. Where a model is read, `latest` is the highest one that has it.",
                     Schema("Name", ONE_NAME)),
    "model_name": Field("model_name", f"The name of the model. It may be up to {MAX_PARTS} names with slashes between "
                        "them, which have to be sent as they are, not as %2F.", Schema("Name", ONE_NAME)),
}

ETAG = Field("ETag", "Changes when what is answered does.", STRING)
LOCATION = Field("Location", "Where the result is.", STRING)
CACHE = Field("Cache-Control", "`no-cache`: ask again, which the ETag makes cheap.", STRING)
ACTUAL = (Field("Content-Location", "The path with the version in place of `latest`.", STRING),
          Field("X-Model-Version", "The version that `latest` is.", STRING))
ALLOW = Field("Allow", "The methods of this path.", STRING, required=True)
OF_EVERY_ANSWER = (
    Field("X-Request-Id", "The id of the request, which the server's log has too.", STRING, required=True),
    Field("X-Content-Type-Options", "`nosniff`: the Content-Type is right.", STRING, required=True),
)
IF_MATCH = Field("If-Match", "Only if the ETag is one of these, or `*` for any; otherwise 412.", STRING)
IF_NONE_MATCH = Field("If-None-Match", "Only if the ETag is none of these, or `*` if there is nothing.", STRING)
TAGS: Json = {"type": "string", "pattern": r'^(\*|(W/)?"[!#-~]*"(, (W/)?"[!#-~]*")*)$'}     # RFC 9110 8.8.3
UNCHANGED = Answer("It is still what `If-None-Match` or `If-Modified-Since` says the client has.", {}, (CACHE, ETAG))

ERROR = Schema("Error", {
    "type": "object", "required": ["detail"],
    "properties": {"detail": {"type": "string", "description": "What was wrong, and what to do."}},
})


def error(text: str, *headers: Field) -> Answer:
    return Answer(text, {JSON: ERROR}, (CACHE, *headers))


RETRY_AFTER = Field("Retry-After", "Seconds.", WHOLE)
# In the words of docs/api.md.
ERRORS = {
    400: error("a bad name, parameter, form or document; a digest that does not match; an upload that ended early"),
    401: error("a token is missing or unknown",
               Field("WWW-Authenticate", "One challenge for Bearer, one for Basic.", STRING, required=True)),
    403: error("the token lacks the permission, the storage is read-only, or a web page of another origin sent a "
               "change"),
    404: error("there is no such model or path, or the token may not read it"),
    405: error("this method is not available at this path; `Allow` lists those that are", ALLOW),
    409: error("a part of an upload begins beyond what is here, the model exists and the server never replaces one, a "
               "delete would remove several models, this model is known to be corrupt or cannot be read, or the file "
               "system takes the name for that of another model"),
    411: error("an upload without a body and without `Content-Length: 0`"),
    412: error("a condition does not hold (`If-Match`, `If-None-Match`, `If-Unmodified-Since`, `?sha256=`)"),
    413: error("the model is larger than `MODEL_MAX_SIZE`, or a `PATCH` than 1.75 MiB"),
    415: error("the upload is wrapped in something or encoded, or has a format that `MODEL_ALLOWED_FORMATS` leaves "
               "out"),
    416: error("the range begins beyond the end of the model: the download is already complete",
               Field("Content-Range", "`bytes */N`, of N bytes.", STRING, required=True)),
    421: error("the `Host` is none of `MODEL_ALLOWED_HOSTS`"),
    422: error("the file contains a pickle that `MODEL_PICKLE` refuses"),
    429: error("16 verifications of this caller are waiting already, the server holds too many unfinished requests, or "
               "the proxy limits the rate", RETRY_AFTER),
    431: error("the head of the request is too large"),
    500: error("the storage failed for this request"),
    501: error("a `Transfer-Encoding` other than `chunked`"),
    503: error("nothing in the storage can be read; for `/health`: it cannot be written", RETRY_AFTER),
    507: error("the model does not fit on the disk, or too many uploads are unfinished"),
}
OF_EVERY_ROUTE = (400, 421, 429, 431, 500, 501, 503)
