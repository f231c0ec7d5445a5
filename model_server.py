"""AI Model Repository Server: stores models over HTTP and gives them back. Run it: python model_server.py

This is the door: one handler for each route, the route table, main().
"""

import gc
import logging
import os
import signal
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from folders.room import FOLDERS
from hub.room import HUB
from inspection.room import INSPECTION
from openapi.room import OPENAPI
from page.room import PAGE
from repository import metadata
from repository.errors import (
    ModelNotFound,
    NotEmpty,
    StoreError,
    corrupted,
)
from repository.model import (
    NAME_FIELDS,
    Model,
    ModelKey,
    counted,
    describe,
    names_in,
    now,
    with_url,
)
from repository.reading import OpenModel
from resumption.room import RESUMPTION
from server import threads
from server.application import Application, Room, Route
from server.command_line import command
from server.conditional import but_if_match, check_change, etag_of_info, has_condition
from server.descriptions import MODEL_PATH, described
from server.digests import check_claims, claims_of, digest_in
from server.envelopes import check_chunks, check_envelope, check_whole
from server.errors import BadRequest, PreconditionFailed, TooLarge
from server.listing import list_response
from server.logs import configure
from server.metrics import Metrics
from server.places import (
    DIGEST,
    LATEST,
    digest_name,
    info_of,
    leave_no_alias,
    place_in,
    resolve_latest,
)
from server.process import open_storage, raise_descriptor_limit, tune
from server.publishing import check_upload, publish
from server.request import Request, Tell, merged, say
from server.responses import Response, file_response, json_response, tagged_response
from server.settings import VERSION, Settings, misspelt
from server.uploads import Body, Upload
from server.waitress_adapter.server import Server
from storage import Storage

log = logging.getLogger("model_server")
# Bytes by which a form may be longer than MODEL_MAX_SIZE before its length alone refuses it: for fields and headers.
FORM_OVERHEAD = metadata.MAX_CUSTOM_TEXT + (64 << 10)
MAX_DOCUMENT = 7 << 18      # bytes of a PATCH: a client that escapes all but ASCII sends 64 fields of 8 KiB in 1.6 MiB
METRICS_AGE = 60.0          # seconds for which changes by others may be missing: a scrape need not read the disk
HEALTH_AGE = 1.0            # seconds for which one probe, and one look for corrupt models, are relied on


# ---- handlers, in the order of the routes


def health(request: Request, store: Storage) -> Response:
    state: dict[str, Any] = {"version": VERSION, "timestamp": now(), "storage_path": str(store.root)}
    try:
        disk = store.disk()
        if disk.read_only:
            state["read_only"] = True
        store.probe(at_most=HEALTH_AGE)
        if corrupt := request.services.verifier.corrupt(at_most=HEALTH_AGE):
            state["corrupt_models"] = corrupt
        state |= request.services.metrics.troubles()
        status = "degraded" if corrupt or request.services.metrics.troubled() else "healthy"
        return json_response(200, {"status": status, **state, "free_bytes": disk.free_bytes})
    except StoreError as error:
        return json_response(503, {"status": "unhealthy", "reason": str(error), **state})


def is_known_healthy(request: Request, store: Storage) -> bool:
    return store.probed_within(HEALTH_AGE) and not request.services.verifier.last_corrupt


def upload(request: Request, store: Storage, **names: str) -> Response:
    body = request.body
    assert isinstance(body, Upload)
    digests = body.finish()
    assert body.draft
    fields = merged(request.fields.items(), body.fields)
    missing = [name for name in NAME_FIELDS if name not in fields]
    if missing:
        raise BadRequest(f"{', '.join(missing)} missing: give them as query parameters or as form fields")
    check_chunks(fields)
    check_claims(claims_of(request.header, fields), digests)
    return publish(request, store, body.draft, fields, body.filename, digests["sha256"])


def admit_upload(request: Request, store: Storage, **names: str) -> Body:
    fields, limit = request.fields, request.settings.max_size
    claims = check_upload(request, store, fields, request.length, request.length, 0 if names else FORM_OVERHEAD)
    check_whole(request.header)
    check_envelope(request.header, is_form=not names)
    check_chunks(fields)
    keeper = request.services.keeper
    if names and keeper and keeper.keeps(request):
        return keeper.receive(request, store, limit, claims)
    form = None if names else request.header("Content-Type") or ""
    return Upload(store, request.services.intake, form, limit, claims)


def admit_document(request: Request, store: Storage, **names: str) -> Body:
    if request.length > MAX_DOCUMENT:
        raise TooLarge(f"the document is longer than {MAX_DOCUMENT} bytes")
    return Body(limit=MAX_DOCUMENT)


def checksum(request: Request, store: Storage, **names: str) -> Response:
    real = digest_name(ModelKey(**names))   # a real model of that name comes first
    if real and store.find(real):
        return download_key(request, store, real)
    try:
        model, headers = resolve_latest(request, store, partial(info_of, store), names, DIGEST)
    except ModelNotFound:
        with suppress(ModelNotFound):
            if real:    # in the highest version that has it, if none has the model itself
                return download_key(request, store, real)
        raise
    beside = digest_name(model.key)
    if headers and beside and store.find(beside):   # in the version that `latest` means for the model itself
        response = download_key(request, store, beside)
        response.headers += headers
        return response
    if not model.sha256:
        raise ModelNotFound(f"the digest of {model.key} is not known: it was put there by hand; upload it to have one")
    body = f"{model.sha256}  {model.key.name}\n".encode()
    return Response(200, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-cache"), *headers], body)


def download(request: Request, store: Storage, **names: str) -> Response:
    """A model or, where there is none of this name, what is in the folder."""
    pinned, anyway = digest_in(request.query), request.flag("allow_corrupt")
    read = store.open if request.method == "GET" else store.peek

    def open_or_list(**names: str) -> OpenModel | dict[str, str]:
        key = ModelKey(**names)
        try:
            return read(key)
        except ModelNotFound:
            if (first := next(store.keys(*key.names), None)) is None:
                raise
            return read(key) if first == key else names     # it was stored just now

    opened, headers = resolve_latest(request, store, open_or_list, names)
    if not isinstance(opened, OpenModel):
        return list_below(request, store, opened, headers)
    if opened.model.corrupt and not anyway:
        opened.file.close()
        raise corrupted(opened.model.key, ", or add ?allow_corrupt=true to have them as they are")
    if pinned is not None and pinned != opened.model.sha256:
        opened.file.close()
        raise PreconditionFailed(f"the model is not {pinned} but {opened.model.sha256}")
    direct = opened.model.key.version == request.names["version"]
    tag = version_tag(request, store, opened)
    headers += [("X-Version-ETag", tag)] if tag else []
    response = file_response(request.method, but_if_match(request.header, tag), opened, dated=direct)
    response.headers += headers
    return response


def version_tag(request: Request, store: Storage, opened: OpenModel) -> str | None:
    with ExitStack() as undo:
        undo.callback(opened.file.close)
        tag = request.services.version_tag and request.services.version_tag(request, store, opened.model)
        undo.pop_all()
        return tag


def download_key(request: Request, store: Storage, key: ModelKey) -> Response:
    return download(request, store, **dict(zip(NAME_FIELDS, key.fields, strict=True)))


def is_known(request: Request, store: Storage, **names: str) -> bool:
    return store.knows(ModelKey(**names))


def is_known_head(request: Request, store: Storage, **names: str) -> bool:
    return request.method == "HEAD" and store.knows(ModelKey(**names))


def info(request: Request, store: Storage, **names: str) -> Response:
    model, headers = resolve_latest(request, store, partial(info_of, store), names, "/info")
    return tagged_response(request.header, with_url(model.line, request.base_url), etag_of_info(model),
                           "the metadata of the model", *headers)


def amend(request: Request, store: Storage, **names: str) -> Response:
    try:
        patch = metadata.parse_json(bytes(request.body.data))
    except ValueError as error:
        raise BadRequest(f"the body is not a JSON document: {error}") from error

    def change(model: Model) -> Model:
        check_change(request.header, model, etag_of_info(model))
        details = metadata.patched(model.details, patch)
        return model if details == model.details else replace(model, details=details, updated_at=now())

    model = store.amend(ModelKey(**names), change)
    request.audit("update", model.key.names, model.sha256, 200)
    return json_response(200, describe(model, request.base_url), ("ETag", etag_of_info(model)))


def delete_model(request: Request, store: Storage, **names: str) -> Response:
    key = ModelKey(**names)
    for name in ("recursive", "aliases"):
        request.flag(name)      # if one is malformed, nothing is deleted
    if not store.find(key) and next(store.keys(*key.names), key) != key:
        return delete_tree(request, store, **names)

    def check(model: Model | None) -> None:
        check_change(request.header, model)
        leave_no_alias(request, store, [key])

    model = store.delete(key, check)
    request.audit("delete", key.names, model.sha256, 200)
    return json_response(200, {"message": "Model deleted successfully", **describe(model, request.base_url)})


def delete_tree(request: Request, store: Storage, **names: str) -> Response:
    recursive = request.flag("recursive")
    request.flag("aliases")     # checked now: later, some models would be deleted already
    keys = list(store.keys(*names_in(names)))
    where = "/".join(names.values())
    if not keys:
        raise ModelNotFound(f"there is no model below {where}")
    if has_condition(request.header):
        raise PreconditionFailed(f"a condition is for one model, and this would delete {counted(len(keys), 'model')} "
                                 f"below {where}: nothing was deleted, send it without")
    if not recursive:
        raise NotEmpty(f"this would delete {counted(len(keys), 'model')} below {where}: add ?recursive=true to do it")
    leave_no_alias(request, store, frozenset(keys))
    deleted = 0
    for key in keys:
        try:
            model = store.delete(key, lambda model: None)
            request.audit("delete", key.names, model.sha256, 200)
            deleted += 1
        except ModelNotFound:
            continue    # somebody was faster
    message = f"{counted(deleted, 'model')} deleted"
    return json_response(200, {"message": message, **names, "deleted_models": deleted})


def list_models(request: Request, store: Storage, **names: str) -> Response:
    headers: list[tuple[str, str]] = []
    if names.get("version") == LATEST and request.caller.may("read", names_in(names)):
        with suppress(ModelNotFound):   # then it is a list of nothing
            names, headers = resolve_latest(request, store, partial(place_in, store), names)
    return list_below(request, store, names, headers)


def list_below(request: Request, store: Storage, names: dict[str, str], headers: list[tuple[str, str]]) -> Response:
    places = request.caller.places("read", names_in(names))
    others = request.services.formats
    form = others.get(request.query.get("format", ""))
    response = (form(request, store, names, places) if form else
                list_response(store, names, places, request.query, request.base_url, others))
    response.headers += headers
    return response


def verify(request: Request, store: Storage, **names: str) -> Response:
    if names:
        place_in(store, **names)
    progress = request.services.verifier.ask(request.caller.name, *names_in(names))
    return json_response(202, visible(request, progress), ("Location", f"{request.prefix}/verify"))


def verification(request: Request, store: Storage) -> Response:
    return json_response(200, visible(request, request.services.verifier.progress()))


def visible(request: Request, progress: dict[str, Any]) -> dict[str, Any]:
    """What the caller may see of a verification: all of it where they may read what is verified."""
    def may_read(place: str) -> bool:
        return request.caller.may("read", tuple(place.split("/")) if place else ())

    shown = progress if may_read(progress["below"]) else {"running": progress["running"]}
    return {**shown, "waiting": [place for place in progress["waiting"] if may_read(place)]}


def metrics(request: Request, store: Storage) -> Response:
    models_stored, bytes_stored = store.index.total(at_most=METRICS_AGE)
    page = request.services.metrics.render({
        "uploads_in_flight": ("Uploads begun and not over.", request.services.intake.in_flight),
        "models": ("Models stored.", models_stored),
        "corrupt_models": ("Models known to be corrupt.", request.services.verifier.corrupt()),
        "stored_bytes": ("Bytes of the models stored.", bytes_stored),
        "free_bytes": ("Bytes free for models.", store.free_bytes()),
    } | (request.services.keeper.gauges() if request.services.keeper else {}))
    kind = ("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
    return Response(200, [kind, ("Cache-Control", "no-cache")], page.encode())


# ---- the routes, in the README's order


VERIFY_PATH = "/verify/{project_id}/{app_name}/{version}/{model_name}"
ROUTES = (
    Route("GET",    "/health",                                    None,     health, at_once=is_known_healthy),
    Route("GET",    "/metrics",                                   "read",   metrics),
    Route("POST",   "/models/upload",                             "create", upload, admit_upload, partly=True),
    Route("GET",    "/models/list",                               "read",   list_models, partly=True),
    Route("GET",    "/models/{project_id}",                       "read",   list_models, partly=True),
    Route("GET",    "/models/{project_id}/{app_name}",            "read",   list_models, partly=True),
    Route("GET",    "/models/{project_id}/{app_name}/{version}",  "read",   list_models, partly=True),
    Route("GET",    MODEL_PATH + "/info",                         "read",   info, at_once=is_known),
    Route("PATCH",  MODEL_PATH + "/info",                         "update", amend, admit_document),
    Route("GET",    MODEL_PATH + DIGEST,                          "read",   checksum),
    Route("GET",    MODEL_PATH,                                   "read",   download, at_once=is_known_head),
    Route("PUT",    MODEL_PATH,                                   "create", upload, admit_upload),
    Route("DELETE", MODEL_PATH,                                   "delete", delete_model),
    Route("DELETE", "/models/{project_id}",                       "delete", delete_tree),
    Route("DELETE", "/models/{project_id}/{app_name}",            "delete", delete_tree),
    Route("DELETE", "/models/{project_id}/{app_name}/{version}",  "delete", delete_tree),
    Route("POST",   "/verify",                                    "read",   verify),
    Route("POST",   "/verify/{project_id}",                       "read",   verify),
    Route("POST",   "/verify/{project_id}/{app_name}",            "read",   verify),
    Route("POST",   "/verify/{project_id}/{app_name}/{version}",  "read",   verify),
    Route("POST",   VERIFY_PATH,                                  "read",   verify),
    Route("GET",    "/verify",                                    "read",   verification, partly=True),
)


# The optional rooms. Without its line here, its import and its folder, everything else works.
ROOMS: tuple[Room, ...] = (
    FOLDERS,
    INSPECTION,
    HUB,
    PAGE,
    RESUMPTION,
    OPENAPI,
)


def create_app(store: Storage, settings: Settings, measured: Metrics | None = None, tell: Tell = say) -> Application:
    """The WSGI application; `tell` writes the line of a request. Raises ValueError for settings that cannot be."""
    return Application(store, settings, described(ROUTES), ROOMS, measured or Metrics(), tell)


def main() -> None:
    tune()
    measured = Metrics()
    # without a stdout nobody wants the log, and the next file that is opened must not take its descriptor
    lines = configure(sys.stdout.fileno() if sys.stdout else os.open(os.devnull, os.O_WRONLY), measured)
    try:
        settings = Settings.from_env(os.environ)
    except ValueError as error:
        raise SystemExit(f"model_server: {error}") from error
    for name, alike in misspelt(os.environ):
        log.warning("%s is not a setting, so it changes nothing: is %s meant?", name, alike)
    with open_storage(settings.storage_path) as store:
        try:
            application = create_app(store, settings, measured, lines.tell)
        except ValueError as error:
            raise SystemExit(f"model_server: {error}") from error
        try:
            server = Server(application, settings.host, settings.port, settings.threads,
                            raise_descriptor_limit(), idle=settings.idle_seconds, grace=settings.grace_seconds,
                            proxies=settings.trusted_proxy, prefix=settings.url_prefix)
        except (OSError, ValueError) as error:
            place = f"{settings.host or '*'}:{settings.port}"
            raise SystemExit(f"model_server: cannot listen on {place} ({error}): set SERVER_HOST to an address of this "
                             "machine, and SERVER_PORT to a port that is free and allowed to this user") from error
        # or each full garbage collection would go through the index: with a million models, it stops requests for 0.2 s
        store.index.settled = gc.freeze
        store.index.remember()
        threads.start("index", store.index.watch, measured)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:   # as nohup has it
                signal.signal(number, lambda *_: server.stop())
        log.info("serving %s at %s, overwrite %s, limit %s, %s", store.root, " ".join(server.addresses),
                 "allow" if settings.overwrite else "deny", settings.max_size or "none",
                 application.guard or "anonymous all")
        if keeper := application.services.keeper:
            keeper.start()
        server.run()
        if keeper:
            keeper.stop()
        application.services.verifier.stop()
        log.info("stopped")


if __name__ == "__main__":
    if sys.argv[1:]:
        raise SystemExit(command(sys.argv[1:]))
    main()
