"""What the names in a path stand for: `latest` resolved, aliases of versions that go, names that two URLs share."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from repository.aliases import points_at
from repository.errors import InvalidName, ModelNotFound, NotEmpty, absent
from repository.model import VERSION_DEPTH, Model, ModelKey, names_in
from repository.versions import precedence
from server.access import Caller, Refused
from server.request import Request
from storage import Storage

T = TypeVar("T")
LATEST = "latest"             # the highest version there is, unless one is really called so
DIGEST = ".sha256"          # the URL of a model's digest is the model's with this at its end


def resolve_latest(request: Request, store: Storage, read: Callable[..., T], names: Mapping[str, str], suffix: str = "",
                   ) -> tuple[T, list[tuple[str, str]]]:
    """What `read` returns for these names, with `latest` resolved, and headers that name the version if it was."""
    try:
        return read(**names), []    # a version that is really called latest wins
    except ModelNotFound:
        if names["version"] != LATEST:
            raise
    for version in sorted(store.versions(names["project_id"], names["app_name"]), key=precedence, reverse=True):
        found = {**names, "version": version}
        try:
            where = f"{request.prefix}/models/{'/'.join(found.values())}{suffix}"
            return read(**found), [("Content-Location", where), ("X-Model-Version", version)]
        except ModelNotFound:
            continue    # this version does not have it
    raise absent(names_in(names))


def leave_no_alias(request: Request, store: Storage, keys: Collection[ModelKey]) -> None:
    """Removes the aliases of versions that hold no other models than these; raises NotEmpty without ?aliases=true."""
    versions = {key.names[:VERSION_DEPTH] for key in keys}
    for application in sorted({names[:-1] for names in versions}):     # once: it may have thousands of versions
        for project_id, app_name, alias, version in list(store.aliases.below(*application)):
            names = (project_id, app_name, version)
            if names not in versions or any(key not in keys for key in store.keys(*names)):
                continue
            if not request.flag("aliases"):
                raise NotEmpty(points_at(alias, names))
            request.caller.check("update", (project_id, app_name))
            store.aliases.remove(project_id, app_name, alias, lambda current: None)
            request.audit("delete", (project_id, app_name, alias), None, 200, version=version)


def info_of(store: Storage, **names: str) -> Model:
    return store.info(ModelKey(**names))


def place_in(store: Storage, **names: str) -> dict[str, str]:
    """These names; raises ModelNotFound unless a model is at them or below them."""
    if next(store.keys(*names_in(names)), None) is None:
        raise absent(names_in(names))
    return names


def check_shadows(caller: Caller, store: Storage, key: ModelKey) -> None:
    """Raises Refused if a new model changes what another URL returns, unless the caller may update what it returned.

    A model `base.sha256` takes precedence over the digest of `base`, whichever of them is stored first. A model in a
    version that is really called latest takes precedence over what `latest` resolves to, now and later.
    """
    base, real = replace(key, model_name=key.model_name.removesuffix(DIGEST)), digest_name(key)
    for other, reason in (
        (base if base != key and store.find(base) else None, f"{key} would be what the URL of its digest returns"),
        (real if real and store.find(real) else None, f"it is what the URL of the digest of {key} would return"),
        (key if key.version == LATEST else None, f"{LATEST} would mean it"),
    ):
        try:
            if other:
                caller.check("update", other.names)
        except Refused as error:
            raise type(error)(f"{error} ({reason})", error.verb, error.names) from error


def digest_name(key: ModelKey) -> ModelKey | None:
    """The key of a model at the URL of this one's digest; None if its name would be too long."""
    with suppress(InvalidName):
        return replace(key, model_name=key.model_name + DIGEST)
    return None
