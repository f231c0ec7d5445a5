"""What puts folders into the server: lists as a tar, versions that are uploaded as one, aliases."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from folders import aliases
from folders.about import ADDS, POINT, PUT_VERSION, REMOVE
from folders.download import entry_of, etag_of_all, tar_response
from folders.tar_upload import TarUpload
from folders.version_tags import version_tag
from repository import metadata
from repository.indexed import Batch
from repository.model import VERSION_DEPTH, Model, ModelKey, Names
from server.application import Room, Route
from server.conditional import check_write, has_condition
from server.digests import check_claims, claims_of
from server.envelopes import check_chunks, check_envelope, check_whole
from server.errors import BadRequest
from server.listing import json_list, streamed
from server.places import LATEST
from server.publishing import check_overwrite, check_space
from server.request import Request
from server.responses import Response
from server.uploads import Body
from storage import Storage


def put_version(request: Request, store: Storage, **names: str) -> Response:
    body, version = request.body, tuple(names.values())
    assert isinstance(body, TarUpload)
    digests = body.finish()
    assert body.version
    check_claims(claims_of(request.header, request.fields), digests)
    models = sorted(body.version.models, key=lambda model: model.key.names)
    created = store.publish_version(body.version, may_replace(request, store, version, {m.key for m in models}))
    status, message = (201, "Version uploaded successfully") if created else (200, "Version replaced successfully")
    request.audit("create" if created else "update", version, None, status)
    blocks = json_list({"message": message, **names}, still_there(store, models), {}, request.base_url)
    return streamed(status, "application/json", blocks, ("Location", f"{request.base_url}/models/{'/'.join(version)}"),
                    ("ETag", etag_of_version(models)))


def still_there(store: Storage, models: Iterable[Model]) -> Iterator[Batch]:
    """The lines of these models, without those that somebody has replaced by now."""
    for model in models:
        found = store.find(model.key, keep=False)
        if found and found.stamp == model.stamp:
            yield Batch(model.key.names[:VERSION_DEPTH], {model.key.model_name: found.line})


def etag_of_version(models: Iterable[Model]) -> str:
    """The ETag of the tar of a version, with these models in order."""
    return etag_of_all([entry_of(model) for model in models], VERSION_DEPTH)


def may_replace(request: Request, store: Storage, version: Names, stored: set[ModelKey] | None = None,
                ) -> Callable[[list[ModelKey]], None]:
    """A check that raises what forbids making these models the whole version, given those in it; None: unknown yet."""
    def check(current: list[ModelKey]) -> None:
        if current:
            request.caller.check("update", version)
        if stored is not None and set(current) - stored:
            request.caller.check("delete", version)
        if has_condition(request.header):
            models = [store.info(key, keep=False) for key in current]
            check_write(request.header, *([etag_of_version(models)] if models else []))
        if current:
            check_overwrite(request, "/".join(version))

    return check


def admit_version(request: Request, store: Storage, **names: str) -> Body:
    """Refuses by the head of the request whatever can be known from it."""
    version, fields = tuple(names.values()), request.fields
    if names["version"] == LATEST:
        raise BadRequest(f"{LATEST} means the highest version there is: name the version that the tar is to become")
    if "model_name" in request.query:
        raise BadRequest("the names of the models are those in the tar: leave out model_name")
    store.check_writable(*version)
    store.check_replaceable(version)
    details = metadata.details_of(fields, None)
    claims = claims_of(request.header, fields)
    check_space(store, request.length)
    current = store.keys(*version)  # whether there is one is enough, but for the ETag
    may_replace(request, store, version)([*(current if request.header("If-Match") else islice(current, 1))])
    check_whole(request.header)
    check_envelope(request.header, is_form=False)
    check_chunks(fields)
    return TarUpload(store, request.services, version, details, claims)


ALIAS_PATH = "/models/{project_id}/{app_name}/@{alias}"
FOLDERS = Room(
    routes=(
        Route("PUT",    "/models/{project_id}/{app_name}/{version}",  "create", put_version, admit_version,
              about=PUT_VERSION),
        Route("PUT",    ALIAS_PATH,                                   "update", aliases.point, aliases.admit_no_body,
              about=POINT),
        Route("DELETE", ALIAS_PATH,                                   "update", aliases.remove, about=REMOVE),
    ),
    formats={"tar": tar_response},
    read_through=aliases.read_through,
    version_tag=version_tag,
    adds=ADDS,
)
