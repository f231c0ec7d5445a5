"""Lists of models: which ones are wanted, page by page, in the format that was asked for."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any
from urllib.parse import urlencode

from downloads import Response
from forms import BadUpload
from index import Names
from models import NAME_FIELDS, ModelKey, with_url
from storage import Storage

MAX_PAGE = 1000     # models on one page
BLOCK = 64 * 1024   # the first is sent after some 100 models, a millisecond


def list_response(store: Storage, names: Mapping[str, str], places: Sequence[Names], query: Mapping[str, str],
                  base_url: str) -> Response:
    """The models below `names` that are at these places, in order and all of them below, streamed; raises BadUpload."""
    form, below = query.get("format", "json"), tuple(names.values())
    if form not in LINE_OF and form != "json":
        raise BadUpload(f"format {form[:50]!r} is not known: use json, {', '.join(LINE_OF)}")
    if query.get("corrupt", "true") not in ("true", "false"):
        raise BadUpload(f"corrupt {query['corrupt'][:50]!r} is neither true nor false")
    found = wanted(store, places, query, cursor_of(query))
    headers: list[tuple[str, str]] = []
    more: dict[str, Any] = {}
    if "limit" in query:
        limit = limit_of(query)
        page = list(islice(found, limit + 1))
        found = iter(page[:limit])
        more["total_models"] = (sum(1 for _ in wanted(store, places, query, ())) if is_filtered(query)
                                else sum(store.index.total(place)[0] for place in places))
        if len(page) > limit:
            more["next"] = "/".join(page[limit - 1][0])
            link = f"{base_url}/models/{'/'.join(below) or 'list'}?{urlencode({**query, 'after': more['next']})}"
            headers.append(("Link", f'<{link}>; rel="next"'))
    if form == "json":
        kind, body = "application/json", json_list(names, found, more, base_url)
    else:
        kind = "application/x-ndjson" if form == "ndjson" else "text/plain; charset=utf-8"
        body = (LINE_OF[form](model, line, base_url, len(below)) for model, line in found)
    blocks = in_blocks(body)
    first, second = next(blocks), next(blocks, None)
    # whole where it is short: waitress closes the connection after an answer without a length
    whole = first if second is None else chain((first, second), blocks)
    return Response(200, [("Content-Type", kind), ("Cache-Control", "no-cache"), *headers], whole)


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


def wanted(store: Storage, places: Sequence[Names], query: Mapping[str, str], after: Names,
           ) -> Iterator[tuple[Names, bytes]]:
    """The models that the filters let through: their names and their JSON, see Index.lines."""
    lines = chain.from_iterable(store.lines(place, after) for place in places if place >= after[: len(place)])
    return (x for x in lines if passes(json.loads(x[1] + b"}"), query)) if is_filtered(query) else lines


def is_filtered(query: Mapping[str, str]) -> bool:
    return any(name in ("framework", "model_format", "q", "corrupt") or name.startswith("metadata.") for name in query)


def passes(model: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    if "framework" in query and query["framework"] != (model["framework"] or ""):
        return False
    if "model_format" in query and query["model_format"] != (model["format"] or ""):
        return False
    if "corrupt" in query and query["corrupt"] != as_text(model["corrupt"]):
        return False
    text = "\n".join((*(model[name] for name in NAME_FIELDS), model["description"] or ""))
    if query.get("q", "").casefold() not in text.casefold():
        return False
    return all(as_text(model["metadata"].get(name.removeprefix("metadata."))) == value
               for name, value in query.items() if name.startswith("metadata."))


def as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def json_list(names: Mapping[str, str], found: Iterator[tuple[Names, bytes]], more: dict[str, Any], base_url: str,
              ) -> Iterator[bytes]:
    """One JSON document, made while it is sent; the count comes last, when it is known."""
    yield (json.dumps(dict(names))[:-1] + (", " if names else "") + '"models": [').encode()
    count = 0
    for model, line in found:
        yield (b",\n" if count else b"\n") + with_url(model, line, base_url)
        count += 1
    yield ("], " + json.dumps({"total_models": count, **more})[1:] + "\n").encode()


def in_blocks(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer pieces: each costs the server a lock and a system call."""
    block = bytearray()
    for line in lines:
        block += line
        if len(block) > BLOCK:
            yield bytes(block)
            block.clear()
    yield bytes(block)


def sum_line(model: Names, line: bytes, base_url: str, depth: int) -> bytes:
    sha256 = json.loads(line + b"}")["sha256"]
    # relative to what is listed: as wget -i saves one version, as wget -x saves more
    return f"{sha256}  {'/'.join(model[depth:])}\n".encode() if sha256 else b""


LINE_OF: dict[str, Callable[[Names, bytes, str, int], bytes]] = {
    "ndjson": lambda model, line, base_url, depth: with_url(model, line, base_url) + b"\n",
    "txt": lambda model, line, base_url, depth: f"{'/'.join(model)}\n".encode(),
    "urls": lambda model, line, base_url, depth: f"{base_url}/models/{'/'.join(model)}\n".encode(),
    "sha256sums": sum_line,
}
