"""Aliases of versions over HTTP: `@production` in place of a version, to read; moved without any bytes."""

from collections.abc import Callable

from repository.aliases import MARK
from repository.errors import ModelNotFound, absent
from repository.model import NAME_FIELDS, check_name
from server.conditional import check_write
from server.errors import BadRequest
from server.places import place_in
from server.request import Request
from server.responses import Response, json_response
from server.uploads import Body
from storage import Storage


def read_through(request: Request, store: Storage, handler: Callable[..., Response]) -> Response:
    """The answer of a handler for the version that the alias in the path points at, with headers that name it."""
    if "app_name" not in request.names:     # only applications have aliases
        return handler(request, store, **request.names)
    project_id, app_name, alias = (request.names[name] for name in NAME_FIELDS[:3])
    missing, before = absent((project_id, app_name, alias)), ""
    if not request.caller.may("read", (project_id, app_name)):
        raise missing
    while (version := store.aliases.version(project_id, app_name, alias)) and version != before:
        before = version    # if it is moved and this version deleted meanwhile, we look again
        try:
            if next(store.keys(project_id, app_name, version), None) is None:
                raise ModelNotFound(f"the alias {alias} points at version {version}, which holds nothing")
            response = handler(request, store, **{**request.names, "version": version})
        except ModelNotFound as error:
            missing = error
            continue
        where = request.path.replace(f"/{alias}", f"/{version}", 1)
        response.headers += [("Content-Location", request.prefix + where), ("X-Model-Version", version)]
        return response
    raise missing


def admit_no_body(request: Request, store: Storage, **names: str) -> Body:
    """Refuses a body: it would be discarded, and the answer taken for one to an upload."""
    has_one = request.length or request.header("Transfer-Encoding")
    return Body(BadRequest("an alias takes no body: to upload something, name the version") if has_one else None)


def point(request: Request, store: Storage, project_id: str, app_name: str, alias: str) -> Response:
    version, known = request.query.get("version"), list[str | None]()
    if version is None:
        raise BadRequest(f"an alias points at a version: add ?version= to say at which {MARK}{alias} is to point")
    check_name("version", version)

    def check(current: str | None) -> None:
        known.append(current)
        check_write(request.header, *([etag(current)] if current else []))
        place_in(store, project_id=project_id, app_name=app_name, version=version)

    store.check_writable(project_id, app_name)
    store.aliases.point(project_id, app_name, MARK + alias, version, check)
    return answer(request, "update", 200 if known[0] else 201, f"Alias points at {version}",
                  project_id, app_name, alias, version)


def remove(request: Request, store: Storage, project_id: str, app_name: str, alias: str) -> Response:
    known = list[str]()

    def check(current: str | None) -> None:
        if current is None:
            raise ModelNotFound(f"there is no alias {MARK}{alias} in {project_id}/{app_name}")
        known.append(current)
        check_write(request.header, etag(current))

    store.check_writable(project_id, app_name)
    store.aliases.remove(project_id, app_name, MARK + alias, check)
    return answer(request, "delete", 200, "Alias removed", project_id, app_name, alias, known[0])


def etag(version: str) -> str:
    """Names the state of an alias, for If-Match."""
    return f'"{version}"'


def answer(request: Request, verb: str, status: int, message: str, project_id: str, app_name: str, alias: str,
           version: str) -> Response:
    """Logs a change for the audit, and answers it."""
    request.audit(verb, (project_id, app_name, MARK + alias), None, status, version=version)
    document = {"message": message, "project_id": project_id, "app_name": app_name, "alias": MARK + alias,
                "version": version, "url": f"{request.base_url}/models/{project_id}/{app_name}/{MARK}{alias}"}
    return json_response(status, document, ("ETag", etag(version)))
