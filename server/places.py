"""What the names in a path stand for: the version that `latest` is at the moment, and whether anything is there."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from repository.errors import ModelNotFound, absent
from repository.model import Model, ModelKey, names_in
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


def info_of(store: Storage, **names: str) -> Model:
    return store.info(ModelKey(**names))


def place_in(store: Storage, **names: str) -> dict[str, str]:
    """These names, where a model is at or below them; raises ModelNotFound."""
    if next(store.keys(*names_in(names)), None) is None:
        raise absent(names_in(names))
    return names
