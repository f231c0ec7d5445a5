"""An OpenAPI 3.1 document, made of the descriptions of the routes: see server/about.py."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from server import about as told
from server.about import About, Answer, Field, Schema
from server.access import GRANTS_OF_ANONYMOUS, Caller, anonymous_of
from server.application import Route
from server.origins import SAFE
from server.settings import VERSION, Settings

Json = dict[str, Any]
OF_RANGES = (206, 416)      # RFC 9110 14.2: only GET has them
FOR_OTHER_ORIGINS = tuple(Field(name, "For web pages of other origins.", told.STRING) for name in (
    "Vary", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Access-Control-Allow-Methods",
    "Access-Control-Allow-Headers", "Access-Control-Max-Age"))
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The token."},
    "basic": {"type": "http", "scheme": "basic", "description": "Any user name, with the token as the password."},
}


class Document:
    """Describes routes under these settings; what occurs several times becomes a component."""

    def __init__(self, settings: Settings) -> None:
        anonymous = anonymous_of(settings.tokens_file, settings.anonymous)
        self._settings, self._anonymous = settings, Caller(grants=GRANTS_OF_ANONYMOUS[anonymous])
        self._guarded = settings.tokens_file is not None or anonymous != "all"
        self._of_every_answer = (*told.OF_EVERY_ANSWER, *(FOR_OTHER_ORIGINS if settings.allowed_origins else ()))
        self._schemas, self._headers, self._responses = Json(), Json(), Json()
        for status, answer in told.ERRORS.items():
            self._reference(status, answer)

    def of(self, routes: Sequence[Route]) -> Json:
        """The whole document; routes without a description are left out."""
        paths = {route.path: Json() for route in routes if route.about}
        for route in sorted(routes, key=lambda route: route.method != "OPTIONS"):   # before that of the other methods
            for method, verb, about in methods_of(route, route.about) if route.about else ():
                paths[route.path].setdefault(method.lower(), self._operation(route, method, verb, about))
        schemes = {"securitySchemes": SCHEMES} if self._guarded else {}
        return {
            "openapi": "3.1.0",
            "info": {"title": "AI Model Repository Server", "version": VERSION,
                     "description": "Stores AI models over HTTP and gives them back."},
            "servers": [{"url": self._settings.url_prefix or "/"}],
            "paths": paths,
            "components": {"schemas": self._schemas, "headers": self._headers, "responses": self._responses, **schemes},
        }

    def _operation(self, route: Route, method: str, verb: str | None, about: About) -> Json:
        guarded = verb is not None and self._guarded
        errors = {*told.OF_EVERY_ROUTE, *about.errors, *((401, 403) if guarded else ()),
                  *((404,) if guarded and route.fields else ()), *((403,) if method not in SAFE else ())}
        fields = told.NAMES | {field.name: field for field in about.names}
        names = (fields[name]._replace(required=True) for name in route.fields)
        operation: Json = {
            "operationId": about.id, "summary": about.summary, "description": about.text,
            "tags": [(re.findall(r"/(\w+)", route.path) or ["page"])[0]],
            "parameters": [self._parameter(place, field) for place, fields_there in (
                ("path", names), ("query", about.query), ("header", about.headers)) for field in fields_there],
            "responses": self._answers(about, errors),
        }
        if about.bodies:
            operation["requestBody"] = {"required": True, "content": self._content(about.bodies)}
        if guarded:
            nothing = [Json()] if self._anonymous.may(verb or "", ()) else []
            operation["security"] = [*({name: list[str]()} for name in SCHEMES), *nothing]
        return operation

    def _answers(self, about: About, errors: Iterable[int]) -> Json:
        found = {str(status): self._reference(status, answer._replace(headers=(*answer.headers, *about.with_errors)))
                 for status, answer in told.ERRORS.items() if status in errors}
        return found | {str(status): self._answer(answer) for status, answer in about.answers.items()}

    def _reference(self, status: int, answer: Answer) -> Json:
        name = re.sub(r"\W", "", HTTPStatus(status).phrase.title())     # NotFound
        return {"$ref": f"#/components/responses/{added(self._responses, name, self._answer(answer))}"}

    def _answer(self, answer: Answer) -> Json:
        headers = {field.name: self._header(field) for field in (*answer.headers, *self._of_every_answer)}
        return {"description": answer.text, "headers": headers, "content": self._content(answer.content)}

    def _content(self, schemas: Mapping[str, told.Json | Schema]) -> Json:
        return {kind: {"schema": self._schema(schema)} for kind, schema in schemas.items()}

    def _header(self, field: Field) -> Json:
        header = {"description": field.text, "required": field.required, "schema": self._schema(field.schema)}
        return {"$ref": f"#/components/headers/{added(self._headers, field.name, header)}"}

    def _parameter(self, place: str, field: Field) -> Json:
        schema = {"schema": self._schema(field.schema)}
        return {"name": field.name, "in": place, "required": field.required, "description": field.text,
                **({"content": {field.media: schema}} if field.media else schema)}

    def _schema(self, schema: Any) -> Any:
        """A schema, in which each schema that has a name becomes a component and is replaced by a reference."""
        if isinstance(schema, Schema):
            if schema.name not in self._schemas:
                self._schemas[schema.name] = self._schema(schema.definition)
            return {"$ref": f"#/components/schemas/{schema.name}"}
        if isinstance(schema, Mapping):
            return {name: self._schema(value) for name, value in schema.items()}
        return [self._schema(each) for each in schema] if isinstance(schema, list) else schema


def methods_of(route: Route, about: About) -> Iterator[tuple[str, str | None, About]]:
    """(method, permission, description) of everything that a route answers: with GET also HEAD, and OPTIONS."""
    yield route.method, route.verb, about
    if route.method == "GET":
        answers = {status: answer._replace(content={}) for status, answer in about.answers.items()
                   if status not in OF_RANGES}
        errors = tuple(status for status in about.errors if status not in OF_RANGES)
        yield "HEAD", route.verb, replace(about, id=f"head_{about.id}", answers=answers, errors=errors)
    is_alone = not re.search(r"}[^/]|[^/]{", route.path)     # otherwise another route's path matches the same URLs
    if is_alone and route.method != "OPTIONS":
        # any name: a preflight request succeeds, so that the page sees what is wrong with its own request
        names = tuple(Field(name, f"Any {name}.", told.STRING) for name in route.fields)
        answer = Answer("The methods of this path.", {}, (told.ALLOW,))
        errors = (404,) if names else ()    # an alias, where there are versions alone
        yield "OPTIONS", None, About(f"options_{about.id}", "returns the methods of a path", {204: answer}, errors,
                                     names=names)


def added(components: Json, name: str, component: Json) -> str:
    """Adds a component to those of its kind; returns its name, which is a similar one if another one has this name."""
    while components.setdefault(name, component) != component:
        name += "-"
    return name
