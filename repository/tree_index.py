"""A cache of the tree for lists: what each directory held when it was last looked at. May be dropped at any time.

A directory is looked at again when it is asked for and was not looked at for FRESH seconds: one stat tells whether it
changed. What this process changes is forgotten at once. Nothing of it is ever written to disk.
"""

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from repository.model import NAME_FIELDS, Model, ModelKey

Names = tuple[str, ...]
Batch = tuple[Names, dict[str, bytes]]  # the names of a version, and the lines of models in it by their last name
Signature = tuple[int, int] | None      # of the two files of a model, and its bytes; None: there is no model
FRESH = 0.9     # seconds; twice that and a pass over 100,000 models stay below the two seconds that we promise
LOOKED = 1.8    # the same for the files of a model, which are many more, and which no pass looks at
RACY = 2.0      # seconds in which a directory may change again without a new mtime, on the coarsest file system
WATCHED = 60.0  # seconds after the last list for which the directories are watched
SOME = 100      # models in one batch: no page of a version with thousands waits for all of them
BATCH = 128 * 1024      # bytes of lines in one batch, but for the last of them: a hundred ordinary ones have less
KEPT_BYTES = 128 << 20  # of all lines that are kept: 100,000 ordinary models take some 85 MiB
KEPT_LARGEST = 32 * 1024    # bytes of a line that is kept, 40 times an ordinary one: a few could push out all others
OVERHEAD = 200          # bytes that keeping a line takes beside it: two entries of dictionaries, the object
DEPTH = len(NAME_FIELDS) - 1


@dataclass(slots=True)
class Directory:
    """`children` are in order; `total` is models and bytes below, None when it must be added up again."""

    children: list[str] = field(default_factory=list)
    stamp: int = 0              # mtime in ns of what `children` tells; 0 when that may have changed since
    checked: float = 0.0
    total: tuple[int, int] | None = None
    looked: float = 0.0         # when the lines were last compared with the models' files
    # In order too where there are at most SOME children; then it never changes, a new one takes its place.
    lines: dict[str, bytes] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)    # of the files that the lines tell of
    size: int = 0               # bytes that keeping the lines takes


class Index:
    """What it asks the store: the `children` of a directory, when that `changed` (its mtime in ns, -1: there is none),
    to `sign` the state of a model's files, and to `find` a model.
    """

    def __init__(self, children: Callable[..., list[str]], changed: Callable[[Names], int],
                 sign: Callable[[Names], Signature], find: Callable[[ModelKey], Model | None]) -> None:
        self._children, self._changed, self._sign, self._find = children, changed, sign, find
        self._lock = threading.RLock()
        self._directories: dict[Names, Directory] = {}
        self._refreshed = self._asked = self._cleared = 0.0
        self._kept = 0          # bytes that keeping all lines takes
        self._changes = 0       # of totals; one added up during a change is not kept
        self._closed = threading.Event()

    def lines(self, names: Names, after: Names = ()) -> Iterator[Batch]:
        """The models below `names` beyond `after`, in order, some of one version at a time: see Model.line."""
        self._asked = time.monotonic()
        if self.reaches(names):
            for place in self._places(names, after):
                yield from self._lines_in(place, after)

    def line(self, model: Names) -> bytes | None:
        """What a list says of one model, read from its files; None when it is not there."""
        found = self._find(ModelKey(*model))
        return found.line if found else None

    def total(self, names: Names = (), at_most: float = 2 * FRESH) -> tuple[int, int]:
        """How many models are below `names` and how many bytes they have, as of at most so many seconds ago."""
        if time.monotonic() - self._refreshed > at_most:
            self._refresh()
        return self._total(names) if self.reaches(names) else (0, 0)

    def forget(self, key: ModelKey) -> None:
        """Looks again at what this process has just changed."""
        with self._lock:
            self._changes += 1
            for depth in range(DEPTH + 1):
                if directory := self._directories.get(key.names[:depth]):
                    directory.checked = directory.looked = directory.stamp = 0
                    directory.total = None

    def watch(self) -> None:
        """Reads the tree once, then follows it while lists are asked for; returns after close(). Raises OSError."""
        self.total()
        while not self._closed.wait(FRESH):
            if time.monotonic() - self._asked < WATCHED:
                self._refresh(pause=0.001)

    def close(self) -> None:
        self._closed.set()

    def reaches(self, names: Names) -> bool:
        """Whether these directories are there, none of them a link."""
        for depth, name in enumerate(names):
            children = self._look(names[:depth]).children
            place = bisect_left(children, name)
            if place == len(children) or children[place] != name:
                return False
        return True

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

    def _total(self, names: Names) -> tuple[int, int]:
        directory = self._directories.get(names)
        if directory is None or directory.total is None:
            directory = self._look(names)
        if total := directory.total:
            return total
        if len(names) == DEPTH:     # another thread has forgotten it just now
            return self._total(names)
        changes = self._changes
        below = [self._total((*names, name)) for name in directory.children]
        total = sum(count for count, _ in below), sum(size for _, size in below)
        with self._lock:
            if changes == self._changes:
                directory.total = total
        return total

    def _refresh(self, pause: float = 0.0) -> None:
        """Looks at every directory known; the files of each model are looked at when it is asked for."""
        started = time.monotonic()
        for number, names in enumerate(list(self._directories)):
            self._look(names)
            if pause and number % 200 == 199:
                time.sleep(pause)   # requests go first
        self._refreshed = started

    def _fresh(self, names: Names) -> Directory | None:
        directory = self._directories.get(names)
        return directory if directory and directory.checked and time.monotonic() - directory.checked < FRESH else None

    def _look(self, names: Names) -> Directory:
        """The directory as it is, or was less than FRESH ago."""
        if directory := self._fresh(names):     # most are: a list asks for thousands
            return directory
        with self._lock:
            if directory := self._fresh(names):
                return directory
            directory, moment = self._directories.setdefault(names, Directory()), time.monotonic()
            mtime = self._changed(names)
            if mtime != directory.stamp:
                self._read(names, directory, mtime)
            directory.checked = moment
            if mtime < 0:
                del self._directories[names]
            return directory

    def _read(self, names: Names, directory: Directory, mtime: int) -> None:
        children = self._children(*names) if mtime >= 0 else []
        total = None
        if len(names) == DEPTH:
            signed = {name: self._sign((*names, name)) for name in children}
            sizes = {name: signature[1] for name, signature in signed.items() if signature}
            children, total, directory.looked = list(sizes), (len(sizes), sum(sizes.values())), 0.0
        for gone in set(directory.children).difference(children):
            self._drop((*names, gone))
        self._changes += directory.checked > 0      # the first look at it changes nothing that was added up
        directory.children, directory.stamp = children, mtime if abs(time.time_ns() - mtime) > RACY * 1e9 else 0
        for depth in range(len(names)):
            if above := self._directories.get(names[:depth]):
                above.total = None
        directory.total = total
        self._replace(directory, {name: directory.lines[name] for name in children if name in directory.lines})

    def _drop(self, names: Names) -> None:
        if directory := self._directories.pop(names, None):
            self._replace(directory, {})
            for name in directory.children:
                self._drop((*names, name))

    def _lines_in(self, place: Names, after: Names) -> Iterator[Batch]:
        directory = self._look(place)
        if time.monotonic() - directory.looked > LOOKED:
            self._compare(place, directory)
        names = directory.children
        if place == after[:DEPTH]:
            names = names[bisect_right(names, after[DEPTH]):]
        elif len(names) == len(directory.lines) <= SOME and directory.size <= BATCH:
            yield place, directory.lines
            return
        for start in range(0, len(names), SOME):
            for batch in self._read_models(place, directory, names[start : start + SOME]):
                yield place, batch

    def _compare(self, place: Names, directory: Directory) -> None:
        """Drops the lines of models that are not what they were."""
        with self._lock:
            moment = time.monotonic()
            signed = {name: self._sign((*place, name)) for name in directory.lines}
            same = {name for name, signature in signed.items() if signature and signature[0] == directory.states[name]}
            if len(same) < len(signed):
                self._replace(directory, {name: line for name, line in directory.lines.items() if name in same})
            directory.looked = moment

    def _read_models(self, place: Names, directory: Directory, names: list[str]) -> Iterator[dict[str, bytes]]:
        """The lines of these models, in batches; those that were read are kept where there is room."""
        looked, batch, size = directory.looked, dict[str, bytes](), 0
        states = dict[str, int]()   # of those that were read
        for name in names:
            line = directory.lines.get(name)
            if line is None:
                signature = self._sign((*place, name))
                line = self.line((*place, name))    # a change since then shows next time
                if not signature or line is None:   # it was deleted just now
                    continue
                states[name] = signature[0]
            batch[name] = line
            size += len(line)
            if size > BATCH:
                self._keep(place, directory, looked, batch, states)
                yield batch
                batch, states, size = {}, {}, 0
        self._keep(place, directory, looked, batch, states)
        yield batch

    # ---- what is kept

    def _keep(self, place: Names, directory: Directory, looked: float, batch: dict[str, bytes], states: dict[str, int],
              ) -> None:
        """Keeps the lines that were read since the directory was `looked` at; `states` are those of their files."""
        if not states:
            return
        with self._lock:    # not before: a disk that stalls would stop everybody who asks what is there
            if directory.looked != looked or self._directories.get(place) is not directory:
                return      # what was read may be forgotten already
            new = {name: batch[name] for name in states.keys() - directory.lines.keys()
                   if len(batch[name]) <= KEPT_LARGEST}
            size = size_of(new)
            if not new or not self._has_room(size):
                return
            directory.states |= {name: states[name] for name in new}
            if len(directory.children) <= SOME:
                known = directory.lines | new
                self._replace(directory, {name: known[name] for name in directory.children if name in known})
            else:
                directory.lines.update(new)
                directory.size += size
                self._kept += size

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more may be kept; what no list has asked for lately makes room for them."""
        moment = time.monotonic()
        if self._kept + size > KEPT_BYTES and moment - self._cleared > WATCHED:
            self._cleared = moment
            for directory in self._directories.values():
                if moment - directory.looked > WATCHED:
                    self._replace(directory, {})
        return self._kept + size <= KEPT_BYTES

    def _replace(self, directory: Directory, lines: dict[str, bytes]) -> None:
        """Keeps these lines of the directory alone, which are among those that it has."""
        size = size_of(lines)
        self._kept += size - directory.size
        directory.lines, directory.size = lines, size
        directory.states = {name: directory.states[name] for name in lines}


def size_of(lines: dict[str, bytes]) -> int:
    """Bytes that keeping these lines takes."""
    return sum(map(len, lines.values())) + OVERHEAD * len(lines)
