"""Many models in one answer: a tar whose headers are made and whose files are opened when their turn comes.

Nothing is spooled. A file that is no longer the one that the headers were made for ends the answer early, so that no
client takes a mixture for the whole.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import BinaryIO, NamedTuple

from folders.layout import Layout, Member, Part
from repository.errors import ModelCorrupt, StoreError, absent
from repository.indexed import Batch
from repository.model import Model, ModelKey, Names, counted, names_in, told_by
from server.conditional import etag_of
from server.errors import BadRequest
from server.listing import ListQuery, selected
from server.request import Request
from server.responses import AnswerCutShort, FileSlice, Piece, Response, content_disposition, ranged_response
from storage import Storage

SMALL = 64 << 10    # bytes of a file that is read at once: handing over a descriptor costs more
MIN_BLOCK = 128 << 10   # bytes gathered before they are sent: each block costs the server a lock and a system call
MAX_NAMED = 20      # corrupt models in a message


class Entry(NamedTuple):
    """A model as it was when the headers were made. `mtime` is that of its upload, in seconds since 1970."""

    names: Names
    size: int
    etag: str
    mtime: int


def tar_response(request: Request, store: Storage, names: Mapping[str, str], places: Sequence[Names]) -> Response:
    """The models below `names` that are also below one of `places`, as a tar, or a range of it.

    Raises BadRequest, ModelNotFound if there are none, ModelCorrupt if one is known to be corrupt.
    """
    query, above = ListQuery.parse({**request.query, "format": "json"}), names_in(names)
    if query.limit is not None or query.after:
        raise BadRequest("a tar has no pages: leave out limit and after")
    for place in places:    # a list may lag behind other servers, but a tar of files that were replaced would break off
        store.index.expire(place)
    entries = list(entries_of(store, selected(store, places, query, ()), request.flag("allow_corrupt")))
    if not entries:
        raise absent(above)
    layout = Layout([Member("/".join(entry.names[len(above):]), entry.size, entry.mtime) for entry in entries])
    etag = etag_of_all(entries, len(above))
    headers = [
        ("Content-Type", "application/x-tar"),
        ("Accept-Ranges", "bytes"),
        ("ETag", etag),
        ("Cache-Control", "no-cache"),
        ("Content-Disposition", content_disposition(f"{above[-1] if above else 'models'}.tar")),
    ]
    return ranged_response(request.method, request.header, headers, etag, None, layout.size,
                           lambda start, stop: blocks_of(store, entries, layout.pieces(start, stop)))


def entries_of(store: Storage, batches: Iterator[Batch], corrupt_too: bool) -> Iterator[Entry]:
    """What the lines of an index say of these models; raises ModelCorrupt with the names of those that are."""
    corrupt = []
    for place, lines in batches:
        for name, line in lines.items():
            known = told_by(line)
            if known["corrupt"] and not corrupt_too:
                corrupt.append("/".join((*place, name)))
            moment = seconds_of(known["uploaded_at"])
            if known["sha256"] and moment is not None and not known["corrupt"]:
                yield Entry((*place, name), known["size"], f'"{known["sha256"]}"', moment)
            elif model := store.find(ModelKey.at((*place, name))):
                yield entry_of(model)
    if corrupt:
        more = f" and {len(corrupt) - MAX_NAMED} more" if len(corrupt) > MAX_NAMED else ""
        named = ", ".join(corrupt[:MAX_NAMED])
        raise ModelCorrupt(f"{counted(len(corrupt), 'corrupt model')} would be in it: {named}{more}. Upload them "
                           "again, or add ?allow_corrupt=true to have them as they are")


def entry_of(model: Model) -> Entry:
    moment = seconds_of(model.uploaded_at)
    return Entry(model.key.names, model.size, etag_of(model), model.mtime_ns // 10**9 if moment is None else moment)


def seconds_of(text: str | None) -> int | None:
    """A time of metadata.json in seconds since 1970; None where it says none."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def etag_of_all(entries: Sequence[Entry], depth: int) -> str:
    """The ETag of a tar: of the names, bytes and times in it. Weak where that of one model is."""
    text = "\n".join(f"{'/'.join(entry.names[depth:])} {entry.etag} {entry.mtime}" for entry in entries)
    weak = any(entry.etag.startswith("W/") for entry in entries)
    return f'{"W/" if weak else ""}"{hashlib.sha256(text.encode()).hexdigest()}"'


# ---- sending


def blocks_of(store: Storage, entries: Sequence[Entry], pieces: Iterator[bytes | Part]) -> Iterator[Piece]:
    """The bytes of a tar, small pieces joined; raises AnswerCutShort when a file is not the one that it was."""
    block, size = list[bytes](), 0
    for piece in pieces:
        if isinstance(piece, Part):
            if piece.start == piece.stop:
                continue
            file = open_same(store, entries[piece.number])
            if piece.stop - piece.start > SMALL:
                yield b"".join(block)
                block, size = [], 0
                yield FileSlice(file, piece.start, piece.stop - piece.start)
                continue
            with file:
                piece = os.pread(file.fileno(), piece.stop - piece.start, piece.start)
        block.append(piece)
        size += len(piece)
        if size > MIN_BLOCK:
            yield b"".join(block)
            block, size = [], 0
    yield b"".join(block)


def open_same(store: Storage, entry: Entry) -> BinaryIO:
    """The file of a model that is still what the entry says; raises AnswerCutShort."""
    try:
        model, file = store.open(ModelKey.at(entry.names))
    except StoreError as error:
        raise AnswerCutShort(str(error)) from error
    if entry_of(model) != entry:
        file.close()
        raise AnswerCutShort(f"{model.key} was changed while a tar with it was sent")
    return file
