"""A cache of the tree for lists: the contents of each directory when it was last checked. It can be dropped any time.

When a directory is needed and its last check is more than FRESH seconds ago, one stat shows whether it has changed.
What this process changes itself is forgotten at once. The cache is never written to disk.
"""

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Protocol, Self

from repository.errors import StorageFailed
from repository.model import MAX_DEPTH, VERSION_DEPTH, Model, ModelKey, Names, Stamp

FRESH = 0.9     # seconds; twice that, plus a pass over 100,000 models, is less than the promised two seconds
FRESH_LINES = 1.8       # seconds, for the files of models: there are many more, and no background pass checks them
RACY = 2.0      # seconds in which a directory can change again without a new mtime, on the coarsest file system
WATCHED = 60.0  # seconds after the last list during which the directories are checked in the background
BATCH_MODELS = 100      # models in one batch: a page of a version with thousands need not wait for all of them
BATCH_BYTES = 128 * 1024    # of the lines in one batch, not counting the last one: 100 ordinary models have less
HELD_BYTES = 1 << 20    # of lines of a version, held back until it is certain that they are from one state of it
REMEMBERED = 10_000     # models that take about 0.2 s to count; with fewer, the first page after a start waits for that
TRIES = 50              # attempts to list a version that is replaced meanwhile
PATIENCE = 3            # attempts after which single models may change meanwhile
KEPT_BYTES = 128 << 20  # of all lines in the cache: 100,000 ordinary models take some 85 MiB
KEPT_LARGEST = 32 * 1024    # bytes of a line, 40 times an ordinary one: a few larger ones could push out all others
LINE_OVERHEAD = 200     # bytes that the cache needs for a line in addition: two dictionary entries, the object


class Batch(NamedTuple):
    """Some models of a version or of a folder in it: its names, and the models' lines by their last name, in order."""

    place: Names
    lines: dict[str, bytes]


class Signature(NamedTuple):
    """Identifies the state of a model's two files; `stamp` is that of the model."""

    state: int
    stamp: Stamp


class ModelsIn(Protocol):
    """The models in one directory, by name. What read() has no answer to is asked for by `sign` and `find`."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def sign(self, name: str) -> Signature | None: ...
    def read(self, name: str) -> tuple[Signature, Model] | None: ...


class State(NamedTuple):
    """Identifies the state of a directory, and that it is the same one."""

    mtime_ns: int   # -1 if it does not exist
    inode: int = 0


class Total(NamedTuple):
    """Sums over the models in a part of the tree."""

    models: int
    size: int   # bytes


@dataclass(slots=True)
class Directory:
    """What is known about one directory. `total` is None if it has to be computed again."""

    children: list[str] = field(default_factory=list)   # names, in order, of models and of directories
    models: dict[str, int] = field(default_factory=dict)    # those that are models, and their sizes in bytes
    stamp: int = 0              # mtime in ns when `children` were read; 0 if they may have changed since
    fingerprint: int = 0        # of the models' files then; 0 if there is no model
    state: State | None = None  # then; it is never forgotten
    checked: float = 0.0
    total: Total | None = None
    compared: float = 0.0       # when the lines were last compared with the models' files
    # With at most BATCH_MODELS models it is in order and never changed, only replaced.
    lines: dict[str, bytes] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)    # of the files that the lines were read from
    size: int = 0               # bytes of memory that the lines take


class Index:
    """The cache, kept up to date from five functions of the store.

    `children` lists the names in a directory; `changed` returns its state; `sign` returns the signature of a model, and
    `find` the model, each None if there is none; `models_in` opens a directory for both.
    """

    def __init__(self, children: Callable[..., list[str]], changed: Callable[[Names], State],
                 sign: Callable[[Names], Signature | None], find: Callable[[ModelKey], Model | None],
                 models_in: Callable[[Names], ModelsIn]) -> None:
        self._children, self._changed, self._sign, self._find = children, changed, sign, find
        self._models_in = models_in
        self._lock = threading.RLock()
        self._directories: dict[Names, Directory] = {}
        self._refreshed = self._asked = self._cleared = 0.0
        self._kept = 0          # bytes of memory that all lines take
        self._changes = 0       # number of changes; a total computed while it grew is not kept
        self._reads = 0         # number of times that the disk was asked what is in a version
        self._remembered: int | None = None     # the number of all models, from before the start
        self._closed = threading.Event()
        # they keep a text beyond the life of this process; it may get lost
        self.recall: Callable[[], str] = lambda: ""
        self.keep: Callable[[str], None] = lambda text: None
        # called with the names of a directory, and of models in it that may be new or have changed
        self.seen: Callable[[Names, list[str]], None] = lambda place, models: None

    def lines(self, names: Names, after: Names = ()) -> Iterator[Batch]:
        """The models below `names` that come after `after`, in order, as batches of Model.line."""
        self._asked = time.monotonic()
        if self.reaches(names):
            yield from self._lines_in(names, after)

    def line(self, model: Names) -> bytes | None:
        """The line of one model, read from its files; None if there is no such model."""
        stored = self._find(ModelKey.at(model))
        return stored.line if stored else None

    def total(self, names: Names = (), at_most: float = 2 * FRESH) -> Total:
        """The number of models below `names` and their bytes, at most `at_most` seconds old."""
        if time.monotonic() - self._refreshed > at_most:
            self._refresh()
        return self._total(names) if self.reaches(names) else Total(0, 0)

    def count(self, names: Names) -> int:
        """total().models, but for all models that which was known before the start while they are first counted."""
        remembered = self._remembered
        return self.total(names).models if names or remembered is None else remembered

    def below(self, names: Names) -> list[str]:
        """The names of the directories and models right below these names, in order; [] if that is no directory."""
        return self._checked(names).children if self.reaches(names) else []

    def fingerprint(self, names: Names) -> int:
        """A number that changes when a model below these names is added, replaced or removed; 0 if there is none."""
        return self._fingerprint(names) if self.reaches(names) else 0

    def forget(self, names: Names, below: bool = False) -> None:
        """Makes the next list check this model and the directories above it; call it after each change of a model.

        With `below`, it also drops what is known below these names: the whole directory was replaced.
        """
        with self._lock:
            self._changes += 1
            self._remembered = None
            if below:
                self._drop(names)
            for depth in range(len(names) + 1):
                if directory := self._directories.get(names[:depth]):
                    directory.checked = directory.compared = directory.stamp = 0
                    directory.total = None
        if not below:
            self.seen(names[:-1], [names[-1]])

    def known(self) -> list[tuple[Names, list[str]]]:
        """The directories with models in them, as they were when they were last checked, and the models' names."""
        return [(place, [*each.models]) for place, each in list(self._directories.items()) if each.models]

    def watch(self) -> None:
        """Reads the whole tree, then keeps checking it while lists are requested, until close(). Raises OSError."""
        kept = self.recall()
        models, _, state = kept.partition(" of ")
        if models.isdigit() and state == str(self._changed(())):    # else projects came or went while nobody looked
            self._remembered = int(models)
        try:
            self.total()
        finally:
            self._remembered = None
        while True:
            total, top = self._total(()), self._directories.get(())
            if top and total.models >= REMEMBERED and (now := f"{total.models} of {top.state}") != kept:
                self.keep(now)
                kept = now
            if self._closed.wait(FRESH):
                return
            if time.monotonic() - self._asked < WATCHED:
                self._refresh(pause=0.001)

    def close(self) -> None:
        """Makes watch() return."""
        self._closed.set()

    def reaches(self, names: Names) -> bool:
        """Whether these nested directories exist, and none of them is a link or a model."""
        for depth, name in enumerate(names):
            directory = self._checked(names[:depth])
            index = bisect_left(directory.children, name)
            if index == len(directory.children) or directory.children[index] != name or name in directory.models:
                return False
        return True

    def _lines_in(self, names: Names, after: Names) -> Iterator[Batch]:
        """_lines_below(); of a version or a folder in it, all lines are from before it was replaced, or all from after.

        Raises StorageFailed if that could only be found out when some were given away.
        """
        if len(names) < VERSION_DEPTH:
            yield from self._lines_below(names, after)
            return
        version, given = names[:VERSION_DEPTH], False
        for attempt in range(TRIES):
            state, reads = self._checked(version).state, self._reads
            held, size = list[Batch](), 0
            for batch in self._lines_below(names, after):
                held.append(batch)
                size += sum(map(len, batch.lines.values()))
                if size > HELD_BYTES and self._is_still(version, state, reads, attempt):
                    yield from held
                    held, size, given = [], 0, True
            if self._is_still(version, state, reads, attempt):
                yield from held
                return
            if given:
                break
            self.forget(version, below=True)
        raise StorageFailed(f"{'/'.join(version)} was replaced while it was listed: ask again")

    def _is_still(self, version: Names, state: State | None, reads: int, attempt: int) -> bool:
        """Whether the version is the directory in this state, as far as the disk was asked since `reads`."""
        now = state if reads == self._reads else self._changed(version)
        # single models may be changed all the time, and need not be of one moment
        return now == state or (attempt >= PATIENCE and inode_of(now) == inode_of(state))

    def _lines_below(self, names: Names, after: Names) -> Iterator[Batch]:
        """The models below a directory that exists which come after `after`: runs of models, and what is in folders."""
        directory, depth = self._checked(names), len(names)
        if directory.models and time.monotonic() - directory.compared > FRESH_LINES:
            self._compare(names, directory)
        children, models = directory.children, directory.models
        if after[:depth] == names and depth < len(after):
            children = children[bisect_left(children, after[depth]):]
            if children and children[0] == after[depth] and children[0] in models:
                children = children[1:]
        elif len(models) == len(children) == len(directory.lines) <= BATCH_MODELS and directory.size <= BATCH_BYTES:
            if models:
                yield Batch(names, directory.lines)
            return
        for are_models, run in groupby(children, models.__contains__):
            if are_models:
                yield from self._read_run(names, directory, [*run])
            else:
                for name in run:
                    below = self._lines_in if len(names) < VERSION_DEPTH else self._lines_below
                    yield from below((*names, name), after)

    def _fingerprint(self, names: Names) -> int:
        directory = self._checked(names)
        if len(directory.models) == len(directory.children):
            return directory.fingerprint
        inside = [self._fingerprint((*names, name)) for name in directory.children if name not in directory.models]
        return hash((directory.fingerprint, *inside)) if directory.fingerprint or any(inside) else 0

    def _read_run(self, names: Names, directory: Directory, run: list[str]) -> Iterator[Batch]:
        for start in range(0, len(run), BATCH_MODELS):
            yield from self._read_models(names, directory, run[start : start + BATCH_MODELS])

    def _total(self, names: Names) -> Total:
        """The total of a directory that exists, computed from those below it unless it is cached."""
        directory = self._directories.get(names)
        if directory is None or directory.total is None:
            directory = self._checked(names)
        if total := directory.total:
            return total
        changes, models = self._changes, directory.models
        below = [self._total((*names, name)) for name in directory.children if name not in models]
        total = Total(len(models) + sum(each.models for each in below),
                      sum(models.values()) + sum(each.size for each in below))
        with self._lock:
            if changes == self._changes:
                directory.total = total
        return total

    def _refresh(self, pause: float = 0.0) -> None:
        """Checks every cached directory, but not the files of the models."""
        started = time.monotonic()
        for number, names in enumerate(list(self._directories)):
            self._checked(names)
            if pause and number % 200 == 199:
                time.sleep(pause)   # lets requests run
        self._refreshed = started

    def _fresh(self, names: Names) -> Directory | None:
        """The directory if its last check is recent enough."""
        directory = self._directories.get(names)
        return directory if directory and directory.checked and time.monotonic() - directory.checked < FRESH else None

    def _checked(self, names: Names) -> Directory:
        """The directory as it is now, or was less than FRESH seconds ago."""
        if directory := self._fresh(names):     # the usual case, so without the lock: a list needs thousands
            return directory
        with self._lock:
            if directory := self._fresh(names):
                return directory
            directory, moment = self._directories.setdefault(names, Directory()), time.monotonic()
            state = self._changed(names)
            if directory.state is None or state != (directory.stamp, directory.state.inode):
                self._read(names, directory, state)
                if len(names) > VERSION_DEPTH and self._sign(names) and (above := self._directories.get(names[:-1])):
                    above.stamp = 0     # it has become a model
            directory.checked = moment
            if state.mtime_ns < 0:
                del self._directories[names]
            return directory

    def _read(self, names: Names, directory: Directory, state: State) -> None:
        """Reads a directory that has changed or was removed."""
        mtime, moment = state.mtime_ns, time.monotonic()
        self._reads += 1
        children = self._children(*names) if mtime >= 0 else []
        models, lines = {}, {}
        if len(names) >= VERSION_DEPTH:
            found = {name: each for name, each in self._signatures(names, children).items() if each}
            models = {name: signature.stamp.size for name, signature in found.items()}
            lines = {name: directory.lines[name] for name, signature in found.items()
                     if signature.state == directory.states.get(name)}
            directory.fingerprint = hash(tuple(found.items())) if models else 0
            directory.compared = moment
            children = list(models) if len(names) == MAX_DEPTH - 1 else children
        is_other = len(names) == VERSION_DEPTH and inode_of(directory.state) != state.inode
        folders = set[str]() if is_other else set(children).difference(models)
        for name in directory.children:
            if name not in folders and name not in directory.models:
                self._drop((*names, name))
            elif len(names) >= VERSION_DEPTH:   # it may be another one all the same, where an inode is used again
                self._doubt((*names, name))
        self.seen(names, [name for name in models if name not in directory.models])
        self._changes += directory.checked > 0      # the first check changes no total
        directory.children, directory.models, directory.state = children, models, state
        directory.stamp = mtime if abs(time.time_ns() - mtime) > RACY * 1e9 else 0
        for depth in range(len(names) + 1):
            if above := self._directories.get(names[:depth]):
                above.total = None
        if len(models) == len(children) and len(names) >= VERSION_DEPTH:
            directory.total = Total(len(models), sum(models.values()))
        self._replace(directory, lines)

    def _doubt(self, names: Names) -> None:
        """Makes the next list check a directory and those below it; what is known of them stays until then."""
        if directory := self._directories.get(names):
            directory.checked -= FRESH
            for name in directory.children:
                self._doubt((*names, name))

    def _drop(self, names: Names) -> None:
        """Removes a directory and all those below it from the cache."""
        if directory := self._directories.pop(names, None):
            self._replace(directory, {})
            for name in directory.children:
                if name not in directory.models:
                    self._drop((*names, name))

    def _compare(self, place: Names, directory: Directory) -> None:
        """Drops the cached lines of models whose files have changed, by one signature for each."""
        with self._lock:
            moment = time.monotonic()
            self._reads += 1
            signatures = self._signatures(place, directory.lines)
            same = {name for name, signature in signatures.items()
                    if signature and signature.state == directory.states[name]}
            if len(same) < len(signatures):
                self._replace(directory, {name: line for name, line in directory.lines.items() if name in same})
            directory.compared = moment

    def _signatures(self, place: Names, names: Iterable[str]) -> dict[str, Signature | None]:
        with self._models_in(place) as models:
            return {name: models.sign(name) for name in names}

    def _read_models(self, place: Names, directory: Directory, names: list[str]) -> Iterator[Batch]:
        """The lines of these models, from the cache or from their files; those read are cached if there is room."""
        todo = deque(names)
        while todo:
            compared, lines, size = directory.compared, dict[str, bytes](), 0
            states = dict[str, int]()   # of the models that were read
            with self._models_in(place) as models:
                while todo and size <= BATCH_BYTES:
                    name = todo.popleft()
                    line = directory.lines.get(name)
                    if line is None:
                        self._reads += 1
                        if (found := self._read_line(models, (*place, name))) is None:
                            continue    # it has just been deleted
                        states[name], line = found
                    lines[name] = line
                    size += len(line)
            self._keep(place, directory, compared, lines, states)
            yield Batch(place, lines)

    def _read_line(self, models: ModelsIn, names: Names) -> tuple[int, bytes] | None:
        """The state of a model and its line, which is read later: if it changes in between, a comparison shows it."""
        if found := models.read(names[-1]):
            return found[0].state, found[1].line
        signature, line = self._sign(names), self.line(names)
        return (signature.state, line) if signature and line is not None else None

    # ---- the memory for lines

    def _keep(self, place: Names, directory: Directory, compared: float, lines: dict[str, bytes],
              states: dict[str, int]) -> None:
        """Caches lines that were read from files in these `states`, unless the directory changed since `compared`."""
        if not states:
            return
        with self._lock:    # not while reading: a stalled disk would block every other list
            if directory.compared != compared or self._directories.get(place) is not directory:
                return      # what was read may be out of date
            new = {name: lines[name] for name in states.keys() - directory.lines.keys()
                   if len(lines[name]) <= KEPT_LARGEST}
            size = size_of(new)
            if not new or not self._has_room(size):
                return
            directory.states |= {name: states[name] for name in new}
            if len(directory.models) <= BATCH_MODELS:
                merged = directory.lines | new
                self._replace(directory, {name: merged[name] for name in directory.models if name in merged})
            else:
                directory.lines.update(new)
                directory.size += size
                self._kept += size

    def _has_room(self, size: int) -> bool:
        """Whether `size` more bytes fit into the cache; lines that no list needed recently are dropped for them."""
        moment = time.monotonic()
        if self._kept + size > KEPT_BYTES and moment - self._cleared > WATCHED:
            self._cleared = moment
            for directory in self._directories.values():
                if moment - directory.compared > WATCHED:
                    self._replace(directory, {})
        return self._kept + size <= KEPT_BYTES

    def _replace(self, directory: Directory, lines: dict[str, bytes]) -> None:
        """Replaces the cached lines of a directory; `states` must have one for each of them."""
        size = size_of(lines)
        self._kept += size - directory.size
        directory.lines, directory.size = lines, size
        directory.states = {name: directory.states[name] for name in lines}


def inode_of(state: State | None) -> int:
    return state.inode if state else 0


def size_of(lines: dict[str, bytes]) -> int:
    """Bytes of memory that these lines take in the cache."""
    return sum(map(len, lines.values())) + LINE_OVERHEAD * len(lines)
