"""Lists of models: which ones are wanted, page by page, in the format that was asked for."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any
from urllib.parse import urlencode

from repository.model import HERE, NAME_FIELDS, ModelKey, with_url
from repository.tree_index import Batch, Names
from server.errors import BadRequest
from server.responses import Response
from storage import Storage

MAX_PAGE = 1000     # models on one page
BLOCK = 64 * 1024   # bytes; the first is sent after some 100 models, a millisecond
PIECE = 256 * 1024  # bytes given to the server at once, which buffers what is not taken yet: most blocks are shorter
PAGE_BYTES = 1 << 20    # of lines that a page holds until they are sent, 1,000 ordinary ones; others are read again
Entry = tuple[Names, str, bytes | None]     # of a page: the version, the last name, the line unless it is read again


def list_response(store: Storage, names: Mapping[str, str], places: Sequence[Names], query: Mapping[str, str],
                  base_url: str) -> Response:
    """The models below `names` that are at these places, in order, streamed; raises BadRequest."""
    form, below = query.get("format", "json"), tuple(names.values())
    if form not in LINES_OF and form != "json":
        raise BadRequest(f"format {form[:50]!r} is not known: use json, {', '.join(LINES_OF)}")
    if query.get("corrupt", "true") not in ("true", "false"):
        raise BadRequest(f"corrupt {query['corrupt'][:50]!r} is neither true nor false")
    found = wanted(store, places, query, cursor_of(query))
    headers: list[tuple[str, str]] = []
    more: dict[str, Any] = {}
    if "limit" in query:
        page, goes_on = page_of(found, limit_of(query))
        more["total_models"] = (sum(len(lines) for _, lines in wanted(store, places, query, ())) if is_filtered(query)
                                else sum(store.index.total(place)[0] for place in places))
        if goes_on:
            place, last, _ = page[-1]
            more["next"] = "/".join((*place, last))
            link = f"{base_url}/models/{'/'.join(below) or 'list'}?{urlencode({**query, 'after': more['next']})}"
            headers.append(("Link", f'<{link}>; rel="next"'))
        found = lines_of(store, page)
    if form == "json":
        kind, blocks = "application/json", json_list(names, found, more, base_url)
    else:
        kind = "application/x-ndjson" if form == "ndjson" else "text/plain; charset=utf-8"
        texts = (LINES_OF[form](place, lines, len(below)) for place, lines in found)
        blocks = (with_url(b"".join(block), base_url) for block in in_blocks(texts))
    blocks = in_pieces(blocks)
    first, second = next(blocks, b""), next(blocks, None)
    # whole where it is short: waitress closes the connection after an answer without a length
    whole = first if second is None else chain((first, second), blocks)
    return Response(200, [("Content-Type", kind), ("Cache-Control", "no-cache"), *headers], whole)


def page_of(found: Iterator[Batch], limit: int) -> tuple[deque[Entry], bool]:
    """The next models, at most so many, and whether there are more."""
    page, size = deque[Entry](), 0
    for place, lines in found:
        for name, line in lines.items():
            if len(page) == limit:
                return page, True
            size += len(line)
            page.append((place, name, line if size <= PAGE_BYTES else None))
    return page, False


def lines_of(store: Storage, page: deque[Entry]) -> Iterator[Batch]:
    """The models of a page, which is given up while they are sent; one deleted meanwhile is left out."""
    while page:
        place, name, line = page.popleft()
        line = line or store.index.line((*place, name))
        if line:
            yield place, {name: line}


def cursor_of(query: Mapping[str, str]) -> tuple[str, ...]:
    cursor = query.get("after", "")
    if cursor and cursor.count("/") != 3:
        raise BadRequest("after is not a cursor: take it from `next` of the page before")
    return ModelKey(*cursor.split("/")).names if cursor else ()


def limit_of(query: Mapping[str, str]) -> int:
    text = query["limit"]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_PAGE):
        raise BadRequest(f"limit {text[:50]!r} is not a whole number from 1 to {MAX_PAGE}")
    return int(text)


def wanted(store: Storage, places: Sequence[Names], query: Mapping[str, str], after: Names) -> Iterator[Batch]:
    """The models that the filters let through, see Index.lines."""
    found = chain.from_iterable(store.lines(place, after) for place in places if place >= after[: len(place)])
    if not is_filtered(query):
        return found
    return ((place, {name: line for name, line in lines.items() if passes(json.loads(with_url(line, "")), query)})
            for place, lines in found)


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


def json_list(names: Mapping[str, str], found: Iterator[Batch], more: dict[str, Any], base_url: str,
              ) -> Iterator[bytes]:
    """One JSON document, made while it is sent; the count comes last, when it is known."""
    start, count = (json.dumps(dict(names))[:-1] + (", " if names else "") + '"models": [').encode(), 0
    for block in in_blocks(lines.values() for _, lines in found):
        yield (b",\n" if count else start + b"\n") + with_url(b",\n".join(block), base_url)
        count += len(block)
    end = "], " + json.dumps({"total_models": count, **more})[1:] + "\n"
    yield end.encode() if count else start + end.encode()


def in_blocks(texts: Iterator[Iterable[bytes]]) -> Iterator[list[bytes]]:
    """The same in fewer pieces: each costs the server a lock and a system call."""
    block, size = list[bytes](), 0
    for some in texts:
        block += some
        size += sum(map(len, some))
        if size > BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def in_pieces(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same in pieces of PIECE at most: of a model with half a MiB of metadata the server buffers a part."""
    for block in blocks:
        for start in range(0, len(block), PIECE):
            yield block[start : start + PIECE]


def sum_lines(place: Names, lines: dict[str, bytes], depth: int) -> list[bytes]:
    sums = {name: json.loads(with_url(line, ""))["sha256"] for name, line in lines.items()}
    # relative to what is listed: as wget -i saves one version, as wget -x saves more
    return [f"{sha256}  {'/'.join((*place, name)[depth:])}\n".encode() for name, sha256 in sums.items() if sha256]


LINES_OF: dict[str, Callable[[Names, dict[str, bytes], int], list[bytes]]] = {
    "ndjson": lambda place, lines, depth: [line + b"\n" for line in lines.values()],
    "txt": lambda place, lines, depth: [f"{'/'.join((*place, name))}\n".encode() for name in lines],
    "urls": lambda place, lines, depth: [f"{HERE}/models/{'/'.join((*place, name))}\n".encode() for name in lines],
    "sha256sums": sum_lines,
}
