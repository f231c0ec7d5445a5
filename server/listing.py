"""Lists of models: which ones are selected, page by page, in the requested format."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

from repository.indexed import Batch
from repository.model import (
    NAME_FIELDS,
    URL_PLACEHOLDER,
    VERSION_DEPTH,
    ModelKey,
    Names,
    names_in,
    told_by,
    with_url,
)
from server.errors import BadRequest
from server.request import flag_in
from server.responses import Response
from storage import Storage

MAX_PAGE = 1000     # models on one page
MIN_BLOCK = 64 * 1024   # bytes gathered before they are sent: those of some 100 models, that is, of a millisecond
MAX_BLOCK = 256 * 1024  # bytes handed to the server at once, which buffers what is not sent yet; few blocks are longer
PAGE_BYTES = 1 << 20    # of the lines that a page keeps until they are sent: 1,000 ordinary ones; others are read again
FILTERS = ("framework", "model_format", "q", "corrupt")


@dataclass(frozen=True)
class ListQuery:
    """The query of a list, checked. `limit` is None for all models; `parameters` are those of the query, as sent."""

    form: str
    limit: int | None
    after: Names
    filters: Mapping[str, str]      # those of FILTERS that were given
    metadata: Mapping[str, str]     # values by the name of the custom field
    parameters: Mapping[str, str]

    @classmethod
    def parse(cls, parameters: Mapping[str, str], others: Iterable[str] = ()) -> Self:
        """Raises BadRequest, whose message names `others` as formats, too. Unknown parameters are ignored."""
        form = parameters.get("format", "json")
        if form not in LINES_OF and form != "json":
            raise BadRequest(f"format {form[:50]!r} is not known: use json, {', '.join([*LINES_OF, *others])}")
        flag_in(parameters, "corrupt")
        filters = {name: parameters[name] for name in FILTERS if name in parameters}
        metadata = {name.removeprefix("metadata."): value for name, value in parameters.items()
                    if name.startswith("metadata.")}
        return cls(form, limit_in(parameters), cursor_in(parameters), filters, metadata, parameters)

    @property
    def is_filtered(self) -> bool:
        return bool(self.filters or self.metadata)

    def texts(self) -> list[bytes]:
        """Texts that the line of each selected model contains: a line without them need not be parsed as JSON."""
        values = [(name, json.dumps(self.filters[parameter])) for parameter, name in
                  (("framework", "framework"), ("model_format", "format")) if self.filters.get(parameter)]
        values += [("corrupt", self.filters["corrupt"])] if "corrupt" in self.filters else []
        values += [(name, "") for name in self.metadata]
        return [f"{json.dumps(name)}: {value}".encode() for name, value in values]

    def word(self) -> bytes:
        """What each line that `q` selects contains in lower case, unless it has escapes; b"" if that is not known."""
        text = self.filters.get("q", "")
        return text.lower().encode() if text.isascii() and text.isprintable() else b""

    def selects(self, model: Mapping[str, Any]) -> bool:
        """Whether all filters hold for a model, given as its JSON."""
        for name, value in (("framework", model["framework"] or ""), ("model_format", model["format"] or ""),
                            ("corrupt", json.dumps(model["corrupt"]))):
            if self.filters.get(name, value) != value:
                return False
        text = "\n".join((*(model[name] for name in NAME_FIELDS), model["description"] or ""))
        if self.filters.get("q", "").casefold() not in text.casefold():
            return False
        return all(equals_text(model["metadata"].get(name), value) for name, value in self.metadata.items())


class PageEntry(NamedTuple):
    """A model on a page; its line is None if it would take too much memory: then it is read again when it is sent."""

    place: Names
    name: str
    line: bytes | None


def list_response(store: Storage, names: Mapping[str, str], places: Sequence[Names], parameters: Mapping[str, str],
                  base_url: str, others: Iterable[str]) -> Response:
    """The models below `names` that are also below one of `places`, in order, streamed; raises BadRequest.

    `others` are the names of the formats that rooms add.
    """
    query, below = ListQuery.parse(parameters, others), names_in(names)
    headers: list[tuple[str, str]] = []
    more: dict[str, Any] = {}
    if query.limit is None:
        batches = selected(store, places, query, query.after)
    else:
        if query.is_filtered:
            everything = selected(store, places, query, ())
            page, goes_on, more["total_models"] = counted_page(everything, query.after, query.limit)
        else:
            page, goes_on = page_of(selected(store, places, query, query.after), query.limit)
            more["total_models"] = sum(map(store.index.count, places))
        if goes_on:
            more["next"] = "/".join((*page[-1].place, page[-1].name))
            link = f"{base_url}/models/{'/'.join(below) or 'list'}?{urlencode({**parameters, 'after': more['next']})}"
            headers.append(("Link", f'<{link}>; rel="next"'))
        batches = batches_of(store, page)
    if len(below) == VERSION_DEPTH - 1:
        aliases = store.aliases.below(*below) if places else ()
        more["aliases"] = {alias: version for _, _, alias, version in aliases}
    if query.form == "json":
        kind, blocks = "application/json", json_list(names, batches, more, base_url)
    else:
        kind = "application/x-ndjson" if query.form == "ndjson" else "text/plain; charset=utf-8"
        texts = (LINES_OF[query.form](batch, len(below)) for batch in batches)
        blocks = (with_url(b"".join(block), base_url) for block in in_blocks(texts))
    return streamed(200, kind, blocks, *headers)


def streamed(status: int, kind: str, blocks: Iterator[bytes], *headers: tuple[str, str]) -> Response:
    """An answer of this Content-Type, made while it is sent."""
    answer = Response(status, [("Content-Type", kind), ("Cache-Control", "no-cache"), *headers])
    blocks, begun = in_pieces(blocks), bytearray()
    for piece in blocks:
        begun += piece
        if len(begun) > MIN_BLOCK:
            answer.body = chain((bytes(begun),), blocks)
            return answer
    answer.body = bytes(begun)  # as a whole: waitress closes the connection after an answer without Content-Length
    return answer


def limit_in(parameters: Mapping[str, str]) -> int | None:
    """The number of models on a page; raises BadRequest."""
    text = parameters.get("limit")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_PAGE):
        raise BadRequest(f"limit {text[:50]!r} is not a whole number from 1 to {MAX_PAGE}")
    return int(text)


def cursor_in(parameters: Mapping[str, str]) -> Names:
    """The names of the last model of the page before, () on the first one; raises BadRequest or InvalidName."""
    cursor = parameters.get("after", "")
    if cursor and cursor.count("/") < VERSION_DEPTH:
        raise BadRequest("after is not a cursor: take it from `next` of the page before")
    return ModelKey.at(tuple(cursor.split("/"))).names if cursor else ()


def selected(store: Storage, places: Sequence[Names], query: ListQuery, after: Names) -> Iterator[Batch]:
    """The models below these places that come after `after` and that the filters select, in order."""
    enough = query.limit if query.limit and not query.is_filtered else inf
    batches = chain.from_iterable(store.lines(place, after, enough)
                                  for place in places if place >= after[: len(place)])
    return chosen(batches, query) if query.is_filtered else batches


def chosen(batches: Iterator[Batch], query: ListQuery) -> Iterator[Batch]:
    """The models of each batch that the filters select."""
    texts, word = query.texts(), query.word()
    for place, lines in batches:
        for text in texts:
            lines = {name: line for name, line in lines.items() if text in line}
        if word:
            lines = {name: line for name, line in lines.items() if word in line.lower() or b"\\" in line}
        yield Batch(place, {name: line for name, line in lines.items() if query.selects(told_by(line))})


def page_of(batches: Iterator[Batch], limit: int) -> tuple[deque[PageEntry], bool]:
    """The next models, `limit` of them at most, and whether there are more."""
    page, size = deque[PageEntry](), 0
    for place, lines in batches:
        for name, line in lines.items():
            if len(page) == limit:
                return page, True
            size += len(line)
            page.append(PageEntry(place, name, line if size <= PAGE_BYTES else None))
    return page, False


def counted_page(batches: Iterator[Batch], after: Names, limit: int) -> tuple[deque[PageEntry], bool, int]:
    """page_of() those that come after `after`, and the number of all of them, in one pass."""
    counts = list[int]()

    def those_after() -> Iterator[Batch]:
        for place, lines in batches:
            counts.append(len(lines))
            yield Batch(place, {name: line for name, line in lines.items() if (*place, name) > after})

    rest = those_after()
    page, goes_on = page_of(rest, limit)
    deque(rest, maxlen=0)
    return page, goes_on, sum(counts)


def batches_of(store: Storage, page: deque[PageEntry]) -> Iterator[Batch]:
    """The models of a page, which is emptied while they are sent; models deleted in the meantime are left out."""
    while page:
        place, name, line = page.popleft()
        line = line or store.index.line((*place, name))
        if line:
            yield Batch(place, {name: line})


def equals_text(value: Any, text: str) -> bool:
    """Whether a filter's text equals this JSON value: a string as it is, never null, anything else as JSON."""
    if value is None or isinstance(value, str):
        return bool(value == text)
    try:
        return json.dumps(value, sort_keys=True) == json.dumps(json.loads(text), sort_keys=True)
    except (ValueError, RecursionError):
        return False


def json_list(names: Mapping[str, str], batches: Iterator[Batch], more: dict[str, Any], base_url: str,
              ) -> Iterator[bytes]:
    """A JSON document, made while it is sent; the number of models comes last, because only then it is known."""
    start, count = (json.dumps(dict(names))[:-1] + (", " if names else "") + '"models": [').encode(), 0
    for block in in_blocks(batch.lines.values() for batch in batches):
        yield (b",\n" if count else start + b"\n") + with_url(b",\n".join(block), base_url)
        count += len(block)
    end = "], " + json.dumps({"total_models": count, **more})[1:] + "\n"
    yield end.encode() if count else start + end.encode()


def in_blocks(texts: Iterator[Iterable[bytes]]) -> Iterator[list[bytes]]:
    """Joins small pieces into blocks of MIN_BLOCK or more: each block costs the server a lock and a system call."""
    block, size = list[bytes](), 0
    for some in texts:
        block += some
        size += sum(map(len, some))
        if size > MIN_BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def in_pieces(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Cuts blocks into pieces of at most MAX_BLOCK, so that the server buffers only part of a model's long line."""
    for block in blocks:
        for start in range(0, len(block), MAX_BLOCK):
            yield block[start : start + MAX_BLOCK]


def sum_lines(batch: Batch, depth: int) -> list[bytes]:
    """Lines for `sha256sum -c`; names are relative to what is listed, where wget -i or wget -x save the models."""
    sums = {name: told_by(line)["sha256"] for name, line in batch.lines.items()}
    return [f"{sha256}  {'/'.join((*batch.place, name)[depth:])}\n".encode()
            for name, sha256 in sums.items() if sha256]


def path_lines(batch: Batch, prefix: str) -> list[bytes]:
    return [f"{prefix}{'/'.join((*batch.place, name))}\n".encode() for name in batch.lines]


LINES_OF: dict[str, Callable[[Batch, int], list[bytes]]] = {    # by format; the int is how many names were listed below
    "ndjson": lambda batch, depth: [line + b"\n" for line in batch.lines.values()],
    "txt": lambda batch, depth: path_lines(batch, ""),
    "urls": lambda batch, depth: path_lines(batch, f"{URL_PLACEHOLDER}/models/"),
    "sha256sums": sum_lines,
}
