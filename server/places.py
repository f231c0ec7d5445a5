"""What the names in a path stand for: the version that `latest` is at the moment, and whether anything is there."""

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from repository.errors import ModelNotFound, NotEmpty, absent
from repository.model import VERSION_DEPTH, Model, ModelKey, names_in
from repository.versions import precedence
from server.request import Request
from storage import Storage

T = TypeVar("T")
ALIAS = "latest"


def newest(request: Request, store: Storage, read: Callable[..., T], names: Mapping[str, str], suffix: str = "",
           ) -> tuple[T, list[tuple[str, str]]]:
    """What `read` gives for what has these names, `latest` resolved; with headers that name the version then."""
    try:
        return read(**names), []    # a version that is really called latest wins
    except ModelNotFound:
        if names["version"] != ALIAS:
            raise
    project, app, _, *path = names_in(names)
    for version in sorted(store.versions(project, app, tuple(path)), key=precedence, reverse=True):
        found = {**names, "version": version}
        try:
            where = f"{request.prefix}/models/{'/'.join(found.values())}{suffix}"
            return read(**found), [("Content-Location", where), ("X-Model-Version", version)]
        except ModelNotFound:
            continue    # deleted since we looked
    raise absent(names_in(names))


def leave_no_alias(request: Request, store: Storage, keys: Collection[ModelKey]) -> None:
    """Removes the aliases of versions that have no other models than these; raises NotEmpty unless it is asked to."""
    for names in {key.names[:VERSION_DEPTH] for key in keys}:
        pointing = list(store.aliases.below(*names))
        if pointing and any(key not in keys for key in store.keys(*names)):
            continue
        for project_id, app_name, alias, version in pointing:
            if request.query.get("aliases") != "true":
                raise NotEmpty(f"the alias {alias} of {project_id}/{app_name} points at {version}: move it to another "
                               "version first, or add ?recursive=true&aliases=true to remove it, too")
            request.caller.check("update", (project_id, app_name))
            store.aliases.remove(project_id, app_name, alias, lambda current: None)
            request.audit("delete", (project_id, app_name, alias), None, 200, version=version)


def info_of(store: Storage, **names: str) -> Model:
    return store.info(ModelKey(**names))


def place_in(store: Storage, **names: str) -> dict[str, str]:
    """These names, where a model is at or below them; raises ModelNotFound."""
    if next(store.keys(*names_in(names)), None) is None:
        raise absent(names_in(names))
    return names
