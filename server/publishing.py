"""The checks before the bytes of an upload arrive, and how it becomes a model after that."""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from repository import metadata
from repository.errors import ModelExists, StorageFull
from repository.model import NAME_FIELDS, Model, ModelKey, check_name, describe, url_of
from server.conditional import check_change, etag_of
from server.digests import claims_of
from server.errors import TooLarge
from server.places import check_shadows
from server.request import Request
from server.responses import Response, json_response
from storage import Check, Draft, Storage


def check_upload(request: Request, store: Storage, fields: Mapping[str, str], size: int, missing: int,
                 overhead: int = 0) -> dict[str, str]:
    """Refuses an upload for whatever is known at its beginning; returns the digests that its client claims.

    `size` is the least number of bytes that it has, `missing` how many of them are still to be stored, and `overhead`
    how many may not belong to the model.
    """
    store.check_writable()
    for name in NAME_FIELDS:
        if name in fields:
            check_name(name, fields[name])
    known = tuple(fields[name] for name in takewhile(fields.__contains__, NAME_FIELDS))
    request.caller.check("create", known, partly=True)
    store.check_writable(*known)
    metadata.details_of(fields, None)
    claims = claims_of(request.header, fields)
    limit = request.settings.max_size
    if limit is not None and size > limit + overhead:
        raise TooLarge(f"{size} bytes are more than the {limit} that this server accepts (MODEL_MAX_SIZE)")
    check_space(store, missing)
    if all(name in fields for name in NAME_FIELDS):
        key = ModelKey(*(fields[name] for name in NAME_FIELDS))
        may_write(request, store, key)(store.find(key))
    return claims


def check_space(store: Storage, size: int) -> None:
    """Raises StorageFull unless so many bytes fit on the disk."""
    if size > (free := store.free_bytes()):
        raise StorageFull(f"{size} bytes do not fit on the disk, which has {free} free: delete models first")


def check_overwrite(request: Request, what: object) -> None:
    """Raises ModelExists if MODEL_OVERWRITE forbids replacing."""
    if not request.settings.overwrite:
        raise ModelExists(f"{what} exists and this server keeps what it has: choose another version")


def publish(request: Request, store: Storage, draft: Draft, fields: Mapping[str, str], filename: str | None,
            digest: str) -> Response:
    """Stores the draft as the model that these fields describe, if the caller may do that and the file is accepted."""
    key = ModelKey(*(fields[name] for name in NAME_FIELDS))
    request.caller.check("create", key.names)   # a form may tell the names after the file
    details = metadata.details_of(fields, filename)
    examine = request.services.examine
    seen = draft.examine(examine) if examine else None
    result = draft.publish(key, digest, details, may_write(request, store, key), seen)
    answer: dict[str, Any] = {"message": f"Model {'uploaded' if result.created else 'replaced'} successfully"}
    if result.unchanged:
        answer = {"message": "Model is unchanged", "unchanged": True}
    headers = ("Location", url_of(key, request.base_url)), ("ETag", etag_of(result.model))
    answer |= describe(result.model, request.base_url)
    verb, status = ("create", 201) if result.created else ("update", 200)
    request.audit(verb, key.names, digest, status)
    return json_response(status, answer, *headers)


def may_write(request: Request, store: Storage, key: ModelKey) -> Check:
    """A check that raises what forbids storing this model, given the one that is there."""
    def check(current: Model | None) -> None:
        if current:
            request.caller.check("update", current.key.names)
        else:
            try:
                store.check_place(key)
            except ModelExists as error:
                if request.caller.may("read", key.names):
                    raise
                raise ModelExists(f"{key} cannot be stored beside what is there: choose another name") from error
            check_shadows(request.caller, store, key)
        check_change(request.header, current)
        if current:
            check_overwrite(request, current.key)

    return check
