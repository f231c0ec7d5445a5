"""What a revision holds: the files of a version, under a commit id made of the version's name and their digests.

Clients keep what they load by commit. It has 40 hex digits, changes when a file of the version does, and is the same
after a restart and on every server of a storage, although it is not stored anywhere.
"""

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from repository.model import Model, ModelKey, Names, told_by
from repository.versions import precedence
from server.conditional import etag_of
from server.errors import NotFound
from storage import Storage

MAIN = ("main", "HEAD", "latest")       # what clients ask for if they are not told a revision
COMMIT = re.compile("[0-9a-f]{40}")
NAME_DIGITS = 8         # of a commit: those of the version's name, so that no other version is read to find it
KEPT_FILES = 100_000    # in memory, some 40 MiB: ten versions of as many files as a tar may have
LOCKS = 64              # so that a version on a slow disk keeps few others waiting


class Missing(NotFound):
    """Something does not exist; clients go by the code, which says what."""

    def __init__(self, code: str, detail: str, *headers: tuple[str, str]) -> None:
        super().__init__(detail, ("X-Error-Code", code), *headers)


class File(NamedTuple):
    """`size` is in bytes. `identity` is the digest or, if that is not known, the weak ETag."""

    size: int
    sha256: str | None
    identity: str


@dataclass(frozen=True)
class Snapshot:
    """The files of a version by their paths, in order; `modified` is when the newest was uploaded."""

    version: Names
    fingerprint: int
    commit: str
    modified: str | None
    files: Mapping[str, File]


def identity_of(model: Model) -> str:
    return model.sha256 or etag_of(model)


def digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def take(store: Storage, version: Names, fingerprint: int) -> Snapshot:
    """The snapshot of a version as it is now; `fingerprint` is what the index had for it before."""
    files, modified = dict[str, File](), ""
    for batch in store.lines(version):
        for line in batch.lines.values():
            said = told_by(line)
            path, identity = said["model_name"], said["sha256"]
            if not identity and (model := store.find(ModelKey(*(*version, path)), keep=False)):
                identity = identity_of(model)
            files[path] = File(said["size"], said["sha256"], identity or "")
            modified = max(modified, said["uploaded_at"] or "")
    files = dict(sorted(files.items()))
    contents = "\n".join(f"{file.identity}  {path}" for path, file in files.items())
    commit = digits(version[-1])[:NAME_DIGITS] + digits(contents)[NAME_DIGITS:]
    return Snapshot(version, fingerprint, commit, modified or None, files)


class Snapshots:
    """The snapshots of one server: those of versions as they are, and as they were, while there is room for them.

    So a download that began before its version was replaced can continue with the files that are still the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._newest = dict[Names, Snapshot]()      # by version
        self._kept = dict[tuple[Names, str], Snapshot]()    # by version and commit, the oldest first
        self._files = 0     # in all of them

    def find(self, store: Storage, project_id: str, app_name: str, version: str = MAIN[0], **_: str) -> Snapshot:
        """The snapshot of a revision, which may be a version, a commit, or one of MAIN. Raises Missing."""
        repository, is_commit = (project_id, app_name), COMMIT.fullmatch(version)
        if found := self.newest(store, (*repository, version)):
            # a client keeps the files under the id that it asked for, even if that is the name of a version
            return replace(found, commit=version) if is_commit else found
        for name in store.index.below(repository) if is_commit else ():
            place, is_its = (*repository, name), digits(name)[:NAME_DIGITS] == version[:NAME_DIGITS]
            if is_its and self.newest(store, place) and (found := self._kept.get((place, version))):
                return found
        highest, name = next(versions(store, repository), None), "/".join(repository)
        if not highest:
            raise Missing("RepoNotFound", f"there is no model below {name}")
        if version in MAIN and (found := self.newest(store, highest)):
            return found
        raise Missing("RevisionNotFound", f"{name} has no version {version[:200]}, or not any more")

    def newest(self, store: Storage, version: Names) -> Snapshot | None:
        """What a version holds now, None if nothing."""
        if not (found := store.index.fingerprint(version)):
            return None
        with self._locks[hash(version) % LOCKS]:    # read once, however many connections a client opens
            snapshot = self._newest.get(version)
            if not snapshot or snapshot.fingerprint != found:
                snapshot = take(store, version, found)
                self._keep(snapshot)
            return snapshot if snapshot.files else None

    def _keep(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._newest[snapshot.version], key = snapshot, (snapshot.version, snapshot.commit)
            if key not in self._kept:
                self._files += len(snapshot.files)
            self._kept[key] = snapshot
            while self._files > KEPT_FILES and len(self._kept) > 1:
                oldest = self._kept.pop(next(iter(self._kept)))
                self._files -= len(oldest.files)
                self._newest.pop(oldest.version, None)


def versions(store: Storage, repository: Names) -> Iterator[Names]:
    """The versions that hold a file: `main` first, and then from the highest one down."""
    names = store.index.below(repository)
    for name in sorted(names, key=lambda name: (name == MAIN[0], precedence(name)), reverse=True):
        if store.index.fingerprint((*repository, name)):
            yield (*repository, name)
