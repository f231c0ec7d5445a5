"""Reading models from the tree without locks while they are being replaced and removed."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property, partial
from math import inf
from typing import Any, BinaryIO, NamedTuple, Self, TypeVar

from repository import filesystem, metadata
from repository.directories import REACHED, Directory, Tree
from repository.errors import ModelUnreadable, absent
from repository.indexed import Signature, State
from repository.model import RESERVED_PROJECTS, VERSION_DEPTH, Model, ModelKey, Names, Stamp, can_be_model
from repository.staging import REPLACED, REPLACED_VERSIONS, STAGING, Staging

log = logging.getLogger("model_server.storage")
T = TypeVar("T")

MAX_TOLD = 100          # links that are logged; more would only fill the log
TOLD_AGAIN = 3600.0     # seconds until the log says again what cannot be read: each list tries to read it
TRIES = 50              # attempts to read a model whose directory is being replaced


class OpenModel(NamedTuple):
    """A model and its bytes, open for reading at their beginning. The caller closes `file`."""

    model: Model
    file: BinaryIO


class ModelReader:
    """Reads the models of a tree. `verdicts` are results of verifications that could not be written to disk."""

    def __init__(self, tree: Tree, staging: Staging, verdicts: dict[Names, metadata.Verdict]) -> None:
        self._tree, self._staging, self._verdicts = tree, staging, verdicts
        self._recent = metadata.Recent()
        # what could not be read: no stamp changes when it becomes readable
        self._unreadable: set[Names] = set()    # models
        self._closed: set[Names] = set()        # other directories
        tree.unreadable = partial(self._cannot_read, self._closed)
        self._told: dict[Names, float] = {}     # when the log last said of each that it cannot be read
        self._links: set[tuple[str, ...]] = set()
        tree.linked = self.passes_over

    def open(self, key: ModelKey) -> OpenModel:
        """Opens a model; bytes and metadata belong to the same upload.

        Raises ModelNotFound, ModelUnreadable, StorageFailed.
        """
        return self._read_stable(key, self._open_in)

    def info(self, key: ModelKey, keep: bool) -> Model:
        """The info of one model, which enters the cache if `keep` is true; raises what open() raises."""
        return self._read_stable(key, partial(self._model_in, keep=keep))

    def is_cached(self, key: ModelKey) -> bool:
        """Whether info() will probably answer from the cache."""
        return self._recent.get(key) is not None

    def retry_unreadable(self) -> Iterator[Names]:
        """Forgets which directories were unreadable; yields each, for the index to forget as well."""
        for place in list(self._closed):
            self._closed.discard(place)
            yield place

    def is_lost(self) -> bool:
        """Whether even the top cannot be read, so that the whole storage has failed and not just one model."""
        try:
            with os.scandir(f"{self._tree.top}/.") as entries:     # the dot: its entries have to be reached as well
                next(entries, None)
        except OSError:
            return True
        return False

    def _read_stable(self, key: ModelKey, read: Callable[[Directory, ModelKey], T | None]) -> T:
        """Calls `read` with the directory of a model, again if it returns None because it was replaced meanwhile."""
        with filesystem.as_store_errors():
            for _ in range(TRIES):
                try:
                    if (result := self._read_in(key, read)) is not None:
                        return result
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno not in filesystem.OF_ONE or self.is_lost():
                        raise
                    log.error("%s cannot be read: %s", key, error)
                    raise ModelUnreadable(
                        f"{key} cannot be read on the server's disk ({error.strerror}): correct its permissions, "
                        "repair the disk, or delete the model and upload it again") from error
        raise absent(key.names)

    def _read_in(self, key: ModelKey, read: Callable[[Directory, ModelKey], T | None]) -> T | None:
        # without RENAME_EXCHANGE, what is being replaced is set aside for a moment: see replacement.py
        for base in ((), (STAGING, REPLACED), (STAGING, REPLACED_VERSIONS)) * 2:
            try:
                with self._tree.reach(*base, *key.names) as directory:
                    if base[1:] == (REPLACED_VERSIONS,) and self._is_there(key.names[:VERSION_DEPTH]):
                        continue    # the new version is in place, and may not have this model
                    if (result := read(directory, key)) is not None or not self._is_folder(directory, base + key.names):
                        return result
            except OSError as error:
                if error.errno not in filesystem.ABSENT:
                    raise
        raise FileNotFoundError

    def _is_there(self, names: Names) -> bool:
        """Whether this directory exists at its place in the tree."""
        try:
            self._tree.reach(*names).close()
        except OSError as error:
            if error.errno not in filesystem.ABSENT:
                raise
            return False
        return True

    def _reach(self, names: Names) -> Directory:
        """Opens a directory to read it, even while it or its version is being replaced. Raises OSError."""
        with suppress(FileNotFoundError):
            return self._tree.reach(*names)
        if len(names) >= VERSION_DEPTH:
            with suppress(FileNotFoundError):
                aside = self._tree.reach(STAGING, REPLACED_VERSIONS, *names)
                if not self._is_there(names[:VERSION_DEPTH]):
                    return aside
                aside.close()
        if len(names) > VERSION_DEPTH:
            with suppress(FileNotFoundError):
                return self._tree.reach(STAGING, REPLACED, *names)
        return self._tree.reach(*names)

    def _is_folder(self, directory: Directory, names: Names) -> bool:
        """Whether a directory has no model, and is still the one at these names: not replaced or removed meanwhile."""
        if filesystem.stamp(filesystem.MODEL, directory.descriptor):
            return False
        with self._tree.reach(*names) as now:
            return os.path.samestat(os.fstat(now.descriptor), os.fstat(directory.descriptor))

    def _open_in(self, directory: Directory, key: ModelKey) -> OpenModel | None:
        try:
            file = filesystem.open_regular(filesystem.MODEL, directory.descriptor)
        except FileNotFoundError:
            return None
        with ExitStack() as undo:
            undo.callback(file.close)
            status = os.fstat(file.fileno())
            model = self._model_in(directory, key)
            if model is None or model.stamp != filesystem.stamp_of(status):
                return None     # it was changed in the meantime
            undo.pop_all()
            return OpenModel(model, file)

    def _model_in(self, directory: Directory, key: ModelKey, keep: bool = True) -> Model | None:
        # The model last: a directory that is being removed loses it first, so metadata is never read without its model.
        written = filesystem.stamp(filesystem.METADATA, directory.descriptor)
        stamp = filesystem.stamp(filesystem.MODEL, directory.descriptor)
        if stamp is None:
            return None
        cached, state = self._recent.get(key), (written, stamp, self._verdicts.get(key.names))
        if cached and cached[0] == state:
            return cached[1]
        if self.model_above(key.names):
            raise FileNotFoundError(errno.ENOENT, "it is in another model, where somebody has put it")
        model = self.described(directory.descriptor, key, stamp)
        if model and keep and key.names not in self._unreadable:
            self._recent.keep(key, state, model, written.size if written else 0)
        return model

    def described(self, directory: int, key: ModelKey, stamp: Stamp) -> Model | None:
        """The model in a directory, None if its file is not in the state of this stamp any more. Raises OSError."""
        document = self._read_metadata(directory, key)
        if filesystem.stamp(filesystem.MODEL, directory) != stamp:
            return None
        model = metadata.described(key, document or {}, stamp, self._verdicts.get(key.names))
        if document is None:    # it could have said that the model is corrupt, so the mark decides
            model = replace(model, readable=False, corrupt=model.corrupt or self._staging.is_marked(key))
        return model

    def sign(self, names: Names) -> Signature | None:
        """The signature of a model, which changes with either file; None if there is no model or it is unreadable."""
        try:
            with self._reach(names) as directory:
                return self.signature(directory.descriptor, names)
        except PermissionError as error:
            self._cannot_read(self._closed, names[:-1], error)
        except OSError as error:
            if error.errno not in filesystem.ABSENT:
                raise
        return None

    def signature(self, directory: int, names: Names, inside: str = "") -> Signature | None:
        """The signature of the model in a directory, None if there is no model. Raises OSError.

        `inside` is the path from an open directory around it, with a slash at its end. It may lead over a link.
        """
        stamp = filesystem.stamp(inside + filesystem.MODEL, directory)
        if stamp is None or not can_be_model(names):
            return None     # in the second case, it was put there by hand
        written = filesystem.stamp(inside + filesystem.METADATA, directory)
        again = time.monotonic() if names in self._unreadable else 0    # never the same, so that it is read again
        # () and not None, whose hash differs between processes
        return Signature(hash((stamp, written or (), self._verdicts.get(names) or (), again)), stamp)

    def models_in(self, place: Names) -> "ModelsIn":
        """The models right below these names; close it."""
        return ModelsIn(self, place)

    def directory_of(self, place: Names) -> Directory | None:
        """The directory at these names, open; None if there cannot be models in it or it cannot be opened."""
        with suppress(OSError):     # it is raised again for each of the models
            if not self.model_above((*place, "")):
                return self._reach(place)
        return None

    def _cannot_read(self, places: set[Names], names: Names, error: OSError) -> None:
        """Remembers that this model or directory has to be read again, and logs the error, but not each time.

        Raises StorageFailed if the whole storage is lost: otherwise all models would seem to have been deleted.
        """
        if self.is_lost():
            raise filesystem.failed(error) from error
        places.add(names)
        if (moment := time.monotonic()) - self._told.get(names, -inf) > TOLD_AGAIN:
            self._told[names] = moment
            log.warning("%s cannot be read: %s", "/".join(names), error)

    def passes_over(self, link: Names) -> None:
        """Logs once that a symbolic link among the directories is not followed."""
        if link[0] != STAGING and link not in self._links and len(self._links) < MAX_TOLD:
            self._links.add(link)
            log.warning("%s is a symbolic link, which is never followed, so nothing behind it is served: mount the "
                        "directory there instead (mount --bind)", "/".join(link))

    def model_above(self, names: Names) -> Names | None:
        """The model on the way to these names, below which there can be none."""
        for depth in range(VERSION_DEPTH + 1, len(names)):
            if self.sign(names[:depth]):
                return names[:depth]
        return None

    def changed(self, names: Names) -> State:
        """The state of a directory; that of none if it cannot be reached."""
        try:
            with self._reach(names) as directory:
                state = state_of(os.fstat(directory.descriptor))
                # ext4 gives a new directory the inode of the one that was removed last
                generation = filesystem.generation(directory.descriptor) if len(names) == VERSION_DEPTH else 0
                return state._replace(generation=generation)
        except PermissionError as error:
            self._cannot_read(self._closed, names[:-1], error)
        except OSError as error:
            if error.errno not in filesystem.ABSENT:
                raise
        return State(-1)

    def is_unchanged(self, names: Names, state: State) -> bool:
        """Whether a directory is still in this state, by one system call: opening each took most of a pass.

        This follows a link on the way, which leads to another directory, or shows when the one around it is checked.
        """
        with suppress(OSError):
            now = state_of(os.lstat("/".join(names) or ".", dir_fd=self._tree.kept_top().descriptor))
            return now[:2] == state[:2]
        return False

    def unchanged(self, place: Names, states: Mapping[str, int]) -> list[str]:
        """Those of the models right below these names whose files are still in these states, as in is_unchanged()."""
        top, way, same = self._tree.kept_top(), "/".join(place), list[str]()
        for name, state in states.items():
            try:
                signature = self.signature(top.descriptor, (*place, name), f"{way}/{name}/")
            except OSError:
                continue
            if signature and signature.state == state:
                same.append(name)
        return same

    def subdirectories(self, *names: str) -> list[str]:
        """The names below these names, in order, without projects that no model can have."""
        children = self._tree.subdirectories(*names)
        if len(names) == VERSION_DEPTH - 1 or (len(names) >= VERSION_DEPTH and not children):
            aside = self._tree.subdirectories(STAGING, REPLACED_VERSIONS, *names)
            # read again: a version that was missing may have been put back before the other directory was read
            children = sorted({*children, *aside, *self._tree.subdirectories(*names)})
        if len(names) >= VERSION_DEPTH and self._is_any_aside():
            children = sorted({*children, *self._tree.subdirectories(STAGING, REPLACED, *names)})
        return children if names else [name for name in children if name not in RESERVED_PROJECTS]

    def _is_any_aside(self) -> bool:
        """Whether any model is set aside: one system call, where a look for those of each directory would be many."""
        with suppress(OSError):
            return bool(os.lstat(f"{STAGING}/{REPLACED}", dir_fd=self._tree.kept_top().descriptor))
        return False

    def _read_metadata(self, directory: int, key: ModelKey) -> dict[str, Any] | None:
        """The document; {} if there is none, None if it cannot be read."""
        self._unreadable.discard(key.names)
        try:
            return metadata.read(directory, key)
        except OSError as error:
            if error.errno not in filesystem.OF_ONE:
                raise
            self._cannot_read(self._unreadable, key.names, error)
            return None


def state_of(status: os.stat_result) -> State:
    """The state of the directory with this status; not only its mtime, which tools set back and chmod leaves alone."""
    return State(max(status.st_mtime_ns, status.st_ctime_ns), status.st_ino)


class ModelsIn:
    """The models in a directory, which is opened once for all: finding each from the top took most of a list."""

    def __init__(self, reader: ModelReader, place: Names) -> None:
        self._reader, self._place, self._opened = reader, place, ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @cached_property
    def _directory(self) -> Directory | None:
        """Opened when it is first needed: most lists know all models in it."""
        directory = self._reader.directory_of(self._place)
        return directory and self._opened.enter_context(directory)

    def sign(self, name: str) -> Signature | None:
        """ModelReader.sign() of the model of this name, for which its directory need not be opened.

        A link that was just put in place of that, which this follows, shows when the directory around it is looked at.
        """
        names = (*self._place, name)
        with suppress(OSError):
            if self._directory and (found := self._reader.signature(self._directory.descriptor, names, f"{name}/")):
                return found
        return self._reader.sign(names)

    def read(self, name: str) -> tuple[Signature, Model] | None:
        """The model of this name and its signature; None if it has to be looked for from the top, as when it moves."""
        return self._look(name, self._read_in)

    def _read_in(self, directory: int, names: Names) -> tuple[Signature, Model] | None:
        signature = self._reader.signature(directory, names)
        model = signature and self._reader.described(directory, ModelKey.at(names), signature.stamp)
        return (signature, model) if signature and model else None

    def _look(self, name: str, look: Callable[[int, Names], T | None]) -> T | None:
        """Calls `look` with the directory of a model, open, and its names; None if that raises OSError."""
        if self._directory is None:
            return None
        try:
            descriptor = os.open(name, REACHED, dir_fd=self._directory.descriptor)
        except OSError:
            return None
        try:
            return look(descriptor, (*self._place, name))
        except OSError:
            return None
        finally:
            os.close(descriptor)
