"""Lists of models: which ones are wanted, page by page, in the format that was asked for."""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from downloads import Response
from forms import BadUpload
from models import Model, ModelKey, check_name, describe, url_of
from storage import Storage

MAX_PAGE = 1000     # models on one page


def list_response(store: Storage, names: Mapping[str, str], query: Mapping[str, str], base_url: str) -> Response:
    """The models below `names`, streamed; raises BadUpload and InvalidName."""
    for name, value in names.items():
        check_name(name, value)
    form = query.get("format", "json")
    if form not in LINE_OF and form != "json":
        raise BadUpload(f"format {form[:50]!r} is not known: use json, {', '.join(LINE_OF)}")
    found: Iterator[Model] = (model for model in stored(store, names, cursor_of(query)) if is_wanted(model, query))
    headers: list[tuple[str, str]] = []
    more: dict[str, Any] = {}
    if "limit" in query:
        limit = limit_of(query)
        page = list(islice(found, limit + 1))
        found = iter(page[:limit])
        more["total_models"] = sum(is_wanted(model, query) for model in stored(store, names, ()))
        if len(page) > limit:
            more["next"] = str(page[limit - 1].key)
            path = "/".join(names.values()) or "list"
            link = f"{base_url}/models/{path}?{urlencode({**query, 'after': more['next']})}"
            headers.append(("Link", f'<{link}>; rel="next"'))
    if form == "json":
        kind, body = "application/json", json_list(names, found, more, base_url)
    else:
        kind = "application/x-ndjson" if form == "ndjson" else "text/plain; charset=utf-8"
        body = (LINE_OF[form](model, base_url, len(names)).encode() for model in found)
    return Response(200, [("Content-Type", kind), ("Cache-Control", "no-cache"), *headers], body)


def cursor_of(query: Mapping[str, str]) -> tuple[str, ...]:
    cursor = query.get("after", "")
    if cursor and cursor.count("/") != 3:
        raise BadUpload("after is not a cursor: take it from `next` of the page before")
    return ModelKey(*cursor.split("/")).names if cursor else ()


def limit_of(query: Mapping[str, str]) -> int:
    text = query["limit"]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_PAGE):
        raise BadUpload(f"limit {text[:50]!r} is not a whole number from 1 to {MAX_PAGE}")
    return int(text)


def stored(store: Storage, names: Mapping[str, str], after: tuple[str, ...]) -> Iterator[Model]:
    for key in store.keys(*names.values(), after=after):
        if model := store.find(key):    # else it was deleted since
            yield model


def is_wanted(model: Model, query: Mapping[str, str]) -> bool:
    details = model.details
    if "framework" in query and query["framework"] != (details.framework or ""):
        return False
    if query.get("q", "").casefold() not in "\n".join((*model.key.names, details.description or "")).casefold():
        return False
    return all(as_text(details.metadata.get(name.removeprefix("metadata."))) == value
               for name, value in query.items() if name.startswith("metadata."))


def as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def json_list(names: Mapping[str, str], found: Iterator[Model], more: dict[str, Any], base_url: str) -> Iterator[bytes]:
    """One JSON document, made while it is sent; the count comes last, when it is known."""
    yield (json.dumps(dict(names))[:-1] + (", " if names else "") + '"models": [').encode()
    count = 0
    for model in found:
        yield (",\n" if count else "\n").encode() + ndjson_line(model, base_url, 0).rstrip().encode()
        count += 1
    yield ("], " + json.dumps({"total_models": count, **more})[1:] + "\n").encode()


def ndjson_line(model: Model, base_url: str, depth: int) -> str:
    return json.dumps(describe(model, base_url)) + "\n"


def sum_line(model: Model, base_url: str, depth: int) -> str:
    # relative to what is listed: as wget -i saves one version, as wget -x saves more
    return f"{model.sha256}  {'/'.join(model.key.names[depth:])}\n" if model.sha256 else ""


LINE_OF: dict[str, Callable[[Model, str, int], str]] = {
    "ndjson": ndjson_line,
    "txt": lambda model, base_url, depth: f"{model.key}\n",
    "urls": lambda model, base_url, depth: f"{url_of(model.key, base_url)}\n",
    "sha256sums": sum_line,
}
