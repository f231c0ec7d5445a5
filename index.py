"""A cache of the tree for lists: what each directory held when it was last looked at. May be dropped at any time.

A directory is looked at again when it is asked for and was not looked at for FRESH seconds: one stat tells whether it
changed. What this process changes is forgotten at once. Nothing of it is ever written to disk.
"""

import json
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from models import NAME_FIELDS, Model, ModelKey

Names = tuple[str, ...]
Signature = int | None      # of the two files of a model; None: there is no model

FRESH = 0.9     # seconds; twice that and a pass over 100,000 models stay below the two seconds that we promise
RACY = 2.0      # seconds in which a directory may change again without a new mtime, on the coarsest file system
WATCHED = 60.0  # seconds after the last list for which the directories are watched
DEPTH = len(NAME_FIELDS) - 1


@dataclass(slots=True)
class Directory:
    """`children` are in order; `count` is of the models below, None when it must be added up again."""

    children: list[str] = field(default_factory=list)
    stamp: int = 0              # mtime in ns of what `children` tells; 0 when that may have changed since
    checked: float = 0.0
    count: int | None = None
    looked: float = 0.0         # when the entries were last compared with their files
    entries: dict[str, tuple[int, bytes]] = field(default_factory=dict)


class Index:
    """`children(names)` lists a directory, `sign(names)` signs a model's files, `find` reads a model."""

    def __init__(self, root: str, children: Callable[..., list[str]], sign: Callable[[Names], Signature],
                 find: Callable[[ModelKey], Model | None]) -> None:
        self._root, self._children, self._sign, self._find = root, children, sign, find
        self._lock = threading.RLock()
        self._directories: dict[Names, Directory] = {}
        self._refreshed = self._asked = 0.0
        self._closed = threading.Event()

    def lines(self, names: Names, after: Names = ()) -> Iterator[tuple[Names, bytes]]:
        """The models below `names` beyond `after`, in order: their four names and their JSON without the last brace."""
        self._asked = time.monotonic()
        if self._reaches(names):
            for place in self._places(names, after):
                yield from self._lines_in(place, after)

    def total(self, names: Names) -> int:
        """How many models are below `names`."""
        if time.monotonic() - self._refreshed > 2 * FRESH:
            self._refresh()
        return self._total(names) if self._reaches(names) else 0

    def forget(self, key: ModelKey) -> None:
        """Looks again at what this process has just changed."""
        with self._lock:
            for depth in range(DEPTH + 1):
                if directory := self._directories.get(key.names[:depth]):
                    directory.checked = directory.looked = directory.stamp = 0

    def watch(self) -> None:
        """Reads the tree once, then follows it while lists are asked for; returns after close()."""
        self.total(())
        while not self._closed.wait(FRESH):
            if time.monotonic() - self._asked < WATCHED:
                self._refresh()

    def close(self) -> None:
        self._closed.set()

    def _reaches(self, names: Names) -> bool:
        """Whether these directories are there, none of them a link."""
        return all(names[depth] in self._look(names[:depth]).children for depth in range(len(names)))

    def _places(self, names: Names, after: Names) -> Iterator[Names]:
        """The directories of versions below `names`, in order, from that of `after` on."""
        depth = len(names)
        if depth == DEPTH:
            yield names
            return
        first = after[depth] if after[:depth] == names and depth < len(after) else ""
        children = self._look(names).children
        for name in children[bisect_left(children, first):]:
            yield from self._places((*names, name), after)

    def _total(self, names: Names) -> int:
        directory = self._directories.get(names) or self._look(names)
        if directory.count is None:
            directory.count = (len(directory.children) if len(names) == DEPTH else
                               sum(self._total((*names, name)) for name in directory.children))
        return directory.count

    def _refresh(self) -> None:
        """Looks at every directory known; the files of each model are looked at when it is asked for."""
        started = time.monotonic()
        for names in list(self._directories):
            self._look(names)
        self._refreshed = started

    def _look(self, names: Names) -> Directory:
        """The directory as it is, or was less than FRESH ago."""
        with self._lock:
            directory = self._directories.setdefault(names, Directory())
            moment = time.monotonic()
            if directory.checked and moment - directory.checked < FRESH:
                return directory
            try:
                mtime = os.lstat("/".join((self._root, *names))).st_mtime_ns
            except (FileNotFoundError, NotADirectoryError):
                mtime = -1
            if mtime != directory.stamp or mtime == 0:
                self._read(names, directory, mtime)
            directory.checked = moment
            if mtime < 0:
                del self._directories[names]
            return directory

    def _read(self, names: Names, directory: Directory, mtime: int) -> None:
        children = self._children(*names) if mtime >= 0 else []
        if len(names) == DEPTH:
            children = [name for name in children if self._sign((*names, name)) is not None]
            directory.looked = 0.0
        directory.stamp = mtime if abs(time.time_ns() - mtime) > RACY * 1e9 else 0
        if children != directory.children:
            for gone in set(directory.children).difference(children):
                self._drop((*names, gone))
                directory.entries.pop(gone, None)
            directory.children = children
            for depth in range(len(names) + 1):
                if above := self._directories.get(names[:depth]):
                    above.count = None

    def _drop(self, names: Names) -> None:
        if directory := self._directories.pop(names, None):
            for name in directory.children:
                self._drop((*names, name))

    def _lines_in(self, place: Names, after: Names) -> Iterator[tuple[Names, bytes]]:
        directory = self._look(place)
        moment, entries = time.monotonic(), directory.entries
        if moment - directory.looked > FRESH:
            changed = [name for name, entry in list(entries.items()) if entry[0] != self._sign((*place, name))]
            for name in changed:
                entries.pop(name, None)
            directory.looked = moment
        for name in directory.children:
            model = (*place, name)
            if model > after and (entry := entries.get(name) or self._read_model(model, entries)):
                yield model, entry[1]

    def _read_model(self, names: Names, entries: dict[str, tuple[int, bytes]]) -> tuple[int, bytes] | None:
        signature, found = self._sign(names), self._find(ModelKey(*names))  # in this order: a change shows next time
        if signature is None or found is None:
            return None     # deleted just now
        document = {**found.as_json(), "path": f"{found.key}/model"}
        entry = entries[names[-1]] = signature, json.dumps(document)[:-1].encode()
        return entry
