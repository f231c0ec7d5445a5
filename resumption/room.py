"""Uploads that are continued after a break, and uploads that need no bytes: the resource `upload` of a model."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from repository.errors import ModelExists, StoreError
from repository.model import NAME_FIELDS, Model, ModelKey, url_of
from resumption import about, wire
from resumption.instant import Hints, borrow
from resumption.parts import Keeping, Part, Rest, Writers, too_long
from resumption.shelf import IDENT, KeptDraft, Record, Shelf, ident_of
from server import threads
from server.application import Room, Route
from server.digests import SHA256_HEX, check_claims, digest_in
from server.envelopes import check_envelope, check_no_range
from server.errors import BadRequest, HttpError, QueueFull, status_of
from server.multipart import clean_filename
from server.publishing import check_upload, publish
from server.request import Request, Services, merged
from server.responses import Response
from server.uploads import Body, Upload
from storage import Draft, Storage

PATH = "/models/{project_id}/{app_name}/{version}/{model_name}/upload"
SWEEP = 3600.0      # seconds between two looks for drafts that have become too old
FATAL = (400, 413, 415, 422, 507)   # statuses of what cannot be mended by sending the rest again
COUNTED = 60.0      # seconds by which the figures of the drafts may be out of date


class Keeper:
    """What the requests of one server share to continue uploads. Its thread learns digests and removes old drafts."""

    def __init__(self, store: Storage, services: Services) -> None:
        self.store, self._services = store, services
        self.shelf, self.writers, self.hints = Shelf(store), Writers(), Hints(store)
        self._stopping = False
        self._total, self._counted = (0, 0), -COUNTED

    def start(self) -> None:
        threads.start("resumption", self._run, self._services.metrics)

    def stop(self) -> None:
        self._stopping = True
        self.hints.changed.set()
        self.writers.settle_all()
        self.shelf.close()

    def _run(self) -> None:
        swept = -SWEEP
        while not self._stopping:
            if time.monotonic() - swept >= SWEEP and not self.store.read_only:
                swept = time.monotonic()
                self.shelf.guard(create=False)
                self.shelf.sweep(self._services.settings.upload_age)
            self.hints.learn(lambda: self._stopping)
            self.hints.changed.wait(SWEEP - (time.monotonic() - swept))

    def keeps(self, request: Request) -> bool:
        return SHA256_HEX.fullmatch(request.query.get("sha256", "")) is not None

    def receive(self, request: Request, store: Storage, limit: int | None, claims: Iterable[str]) -> Upload:
        key, sha256 = ModelKey(**request.names), request.query["sha256"].lower()
        record = Record(str(key), request.caller.name, sha256, fields=described(request.query))
        return Keeping(self.shelf, ident_of(record.who, str(key), sha256), record, self.writers, store,
                       self._services.intake, limit, claims)

    def gauges(self) -> dict[str, tuple[str, float]]:
        if time.monotonic() - self._counted > COUNTED:
            self._total, self._counted = self.shelf.total(), time.monotonic()
        return {"kept_uploads": ("Unfinished uploads that are kept.", self._total[0]),
                "kept_upload_bytes": ("Bytes of these.", self._total[1])}


class Asked:
    """The upload that a request means, by `?sha256=` or `?id=`. Raises BadRequest, wire.Gone."""

    def __init__(self, request: Request, names: Mapping[str, str]) -> None:
        self.request, self.key, self.keeper = request, ModelKey(**names), keeper_of(request)
        who, sha256, ident = request.caller.name, digest_in(request.query), request.query.get("id")
        if not (sha256 if ident is None else IDENT.fullmatch(ident)):
            raise BadRequest("name the upload: with ?sha256= and the digest of the model, or with the ?id= that the "
                             "answer to a POST gave")
        self.ident = ident or ident_of(who, str(self.key), sha256 or "")
        self.keeper.writers.settle(self.ident)
        known = self.keeper.shelf.find(self.ident)
        if known and (known.record.model, known.record.who) != (str(self.key), who):
            known = None
        if known is None and ident:
            raise wire.Gone("there is no such upload: it was stored, has expired, or belongs to another token")
        self.record, self.size = known or (Record(str(self.key), who, sha256, fields=described(request.query)), 0)
        self.sha256 = sha256 or self.record.sha256

    def claim(self, length: int | None) -> KeptDraft | None:
        """Its draft, which is begun by the first part unless it was begun by a POST; None if it is gone by now."""
        if self.size or "id" in self.request.query:
            return self.keeper.shelf.claim(self.ident)
        return self.keeper.shelf.begin(self.ident, replace(self.record, length=length))

    def stored(self) -> Model | None:
        """The model, if it has these bytes already."""
        model = self.keeper.store.find(self.key) if self.request.caller.may("read", self.key.names) else None
        return model if model and self.sha256 and model.sha256 == self.sha256 and not model.corrupt else None

    def borrow(self) -> tuple[Draft, ModelKey] | None:
        """A draft with all of the bytes, and the model that they are of, which the caller may read.

        None for clients of tus: with such an offset they would take the upload for stored, and send nothing more.
        """
        request = self.request
        if self.sha256 and "id" not in request.query and not wire.is_client_of_tus(request.header):
            for source in (self.key, *self.keeper.hints.find(self.sha256)):
                if request.caller.may("read", source.names) and (
                        draft := borrow(self.keeper.store, source, self.sha256, self.key)):
                    return draft, source
        return None


def keeper_of(request: Request) -> Keeper:
    keeper = request.services.keeper
    assert isinstance(keeper, Keeper)
    return keeper


def described(fields: Mapping[str, str]) -> dict[str, str]:
    """The fields that describe the model."""
    return {name: value for name, value in fields.items() if name not in (*NAME_FIELDS, "sha256", "id")}


# ---- handlers


def state(request: Request, store: Storage, **names: str) -> Response:
    asked = Asked(request, names)
    offset, complete, length = asked.size, asked.record.done, asked.record.length
    if 0 < offset == length and not complete:
        offset -= 1     # its client has to send something, or what is here would never be stored: see Asked.borrow()
    if model := asked.stored():
        offset, complete, length = model.size, True, model.size
    elif found := asked.borrow():
        found[0].discard()      # it was only to see whether that is possible
        offset = length = found[0].size
    headers = wire.state_headers(request.settings, offset, complete, length)
    return Response(200, [("Content-Type", "text/plain; charset=utf-8"), *headers], f"{offset}\n".encode())


def admit_part(request: Request, store: Storage, **names: str) -> Body:
    asked, offset = Asked(request, names), wire.number(request.header, "Upload-Offset")
    if offset is None:
        raise BadRequest("Upload-Offset is missing: how many bytes come before these; GET tells how many are here")
    length, known = wire.number(request.header, "Upload-Length"), asked.record.length
    if None not in (length, known) and length != known:
        raise BadRequest(f"Upload-Length is {length}, and was {known} before: DELETE the upload and begin another one")
    length = known if length is None else length
    fields = asked.record.fields | request.fields
    # what comes before it is here, or in the store, or this part is refused
    last = check(request, store, asked.key, fields, offset, length, max(offset, asked.size))
    if asked.record.done:
        return Body()
    here = asked.size
    if offset <= here:
        if (draft := asked.claim(length)) and offset <= draft.size:
            return part(request, store, draft, offset, length, last)
        if draft:
            draft.keep()
        return admit_part(request, store, **names)      # it was stored meanwhile, or removed and perhaps begun again
    if found := asked.borrow():
        if (here := found[0].size) == offset:
            return Rest(store, request.services.intake, *found, asked.ident, asked.record)
        found[0].discard()
    raise wire.WrongOffset(f"the upload has {here} bytes and not {offset}: continue from there",
                           ("Upload-Offset", str(here)))


def part(request: Request, store: Storage, draft: KeptDraft, offset: int, length: int | None, last: bool) -> Part:
    return Part(draft, offset, length, last, keeper_of(request).writers, store, request.services.intake,
                request.settings.max_size)


def check(request: Request, store: Storage, key: ModelKey, fields: Mapping[str, str], offset: int, length: int | None,
          here: int) -> bool:
    """Refuses what can be known by the head of a part; returns whether that says that it is the last one.

    `here` are the bytes that need no more room.
    """
    size = max(offset + request.length, length or 0)
    described_by = described(fields) | dict(zip(NAME_FIELDS, key.fields, strict=True))
    with in_words_of(request):
        claims = check_upload(request, store, described_by, size, size - here)
    check_envelope(request.header, is_form=False)
    check_no_range(request.header, "send one after the other, and say with Upload-Offset where it begins")
    if length is not None and max(size, here) > length:
        raise too_long(length)
    if claims or request.header("Upload-Checksum") is not None:    # as tus has it
        raise BadRequest("digests of a part are not checked: give that of the whole as ?sha256=")
    return wire.is_last(request.header)


@contextmanager
def in_words_of(request: Request) -> Iterator[None]:
    """Refuses to replace a model in a way that clients of tus do not take for a wrong offset."""
    try:
        yield
    except ModelExists as error:
        if wire.is_client_of_tus(request.header):
            raise wire.Refusal(str(error)) from error
        raise


def take_part(request: Request, store: Storage, **names: str) -> Response:
    if isinstance(body := request.body, Part | Rest):
        return finish(request, store, body)
    size = Asked(request, names).size   # it was stored before
    return Response(204, wire.state_headers(request.settings, size, True, size))


def finish(request: Request, store: Storage, body: Part | Rest) -> Response:
    """Stores the model if this was the last part of it."""
    digests, record, size = body.finish(), body.record, body.draft.size
    if isinstance(body, Part) and not body.complete:
        body.draft.keep()
        body.dropped = False
        return Response(204, wire.state_headers(request.settings, size, False, body.length))
    try:
        for sha256 in filter(None, (digest_in(request.query), record.sha256)):
            check_claims({"sha256": sha256}, digests)
        with in_words_of(request):
            told = described(record.fields | request.fields)
            filename = clean_filename(told.pop("filename", "")) or None
            response = publish(request, store, body.draft, told | request.names, filename, digests["sha256"])
    except (HttpError, StoreError) as error:
        body.dropped = body.dropped or status_of(error) in FATAL
        raise
    body.dropped = True     # what is left of the draft, such as the old model
    settle(request, body)
    about = wire.state_headers(request.settings, size, True, size)
    if request.header("Tus-Resumable") is not None:
        return Response(204, about)
    response.headers += [pair for pair in about if pair[0].startswith("Upload-")]
    return response


def settle(request: Request, body: Part | Rest) -> None:
    """What is to be done when the model has been stored."""
    keeper, metrics, key = keeper_of(request), request.services.metrics, ModelKey(**request.names)
    if isinstance(body, Rest):
        keeper.shelf.remove(body.ident)
        if body.source != key:      # else it was stored already
            metrics.count_upload("instant")
            for each in (body.source, key):     # damage before the file was shared is that of both
                with suppress(QueueFull, StoreError):
                    request.services.verifier.ask(request.caller.name, *each.names)
        return
    if body.start:
        metrics.count_upload("resumed")
    if "id" in request.query or request.method == "POST":   # else GET looks for the model itself
        body.draft.discard(done=True)


def admit_creation(request: Request, store: Storage, **names: str) -> Body:
    if "id" in request.query and request.header("X-HTTP-Method-Override") == "PATCH":   # as Java sends it (tus 1.0)
        return admit_part(request, store, **names)
    key, record = ModelKey(**names), record_of(request)
    if "id" in request.query or wire.number(request.header, "Upload-Offset"):
        raise BadRequest("a POST begins an upload, with its first byte: continue this one with PATCH")
    last = check(request, store, key, record.fields, 0, record.length, 0)
    if record.length == 0 or request.length or request.header("Transfer-Encoding") is not None:
        first = part(request, store, begin(request, record), 0, record.length, last)
        first.dropped = True    # unless it is answered: nobody could continue it without the name in the answer
        return first
    return Body()


def begin(request: Request, record: Record) -> KeptDraft:
    return keeper_of(request).shelf.begin(ident_of(record.who), record)


def record_of(request: Request) -> Record:
    """What a POST says of the upload that it begins."""
    fields = merged(request.fields.items(), wire.metadata_of(request.header("Upload-Metadata") or "").items())
    length = wire.number(request.header, "Upload-Length")
    return Record(str(ModelKey(**request.names)), request.caller.name, digest_in(fields), length, described(fields))


def create(request: Request, store: Storage, **names: str) -> Response:
    if "id" in request.query:   # it was taken for a PATCH
        return take_part(request, store, **names)
    if isinstance(body := request.body, Part):
        draft, response = body.draft, finish(request, store, body)
    else:
        draft = begin(request, record_of(request))
        draft.keep()
        response = Response(201, wire.state_headers(request.settings, 0, False, draft.record.length))
    where = f"{url_of(ModelKey(**names), request.base_url)}/upload?id={draft.ident}"
    rest = [pair for pair in response.headers if pair[0] != "Location"]
    return Response(201, [*rest, ("Location", where)], response.body)


def forget(request: Request, store: Storage, **names: str) -> Response:
    asked = Asked(request, names)
    asked.keeper.shelf.remove(asked.ident)
    asked.keeper.writers.supersede(asked.ident)
    return Response(204, [])


def options(request: Request, store: Storage, **names: str) -> Response:
    most = [("Tus-Max-Size", str(request.settings.max_size))] if request.settings.max_size else []
    return Response(204, [("Allow", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"), *wire.OPTIONS, *most])


RESUMPTION = Room(
    routes=(
        Route("GET",     PATH, "create", state, about=about.GET),
        Route("PUT",     PATH, "create", take_part, admit_part, about=about.PUT),
        Route("PATCH",   PATH, "create", take_part, admit_part, about=about.PATCH),
        Route("POST",    PATH, "create", create, admit_creation, about=about.POST),
        Route("DELETE",  PATH, "create", forget, about=about.DELETE),
        Route("OPTIONS", PATH, None,     options, about=about.OPTIONS),
    ),
    keeper=Keeper,
)
