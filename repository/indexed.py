"""What the index knows of one directory, and of all of them."""

import time
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Self

from repository import model
from repository.model import VERSION_DEPTH, Model, Names, Stamp

LINE_OVERHEAD = 200     # bytes that the cache needs for a line in addition: two dictionary entries, the object
KEPT_BYTES = 128 << 20  # of all lines in the cache: 100,000 ordinary models take some 85 MiB
KEPT_LARGEST = 32 * 1024    # bytes of a line, 40 times an ordinary one: a few larger ones could push out all others
WATCHED = 60.0          # seconds after the last list during which the directories are checked in the background
BATCH_MODELS = 100      # models that one request looks at: a page need not wait for all of a version with thousands
BATCH_BYTES = 128 * 1024    # of the lines in one batch, not counting the last one: 100 ordinary models have less
PAUSE = 0.001           # seconds of rest in the background, which let requests run
NO_LINES: dict[str, Any] = {}   # one for all directories without lines; never changed


class Batch(NamedTuple):
    """Some models of a version or of a folder in it: its names, and the models' lines by their last name, in order."""

    place: Names
    lines: dict[str, bytes]


class Signature(NamedTuple):
    """Identifies the state of a model's two files; `stamp` is that of the model. The same in every process."""

    state: int
    stamp: Stamp


class State(NamedTuple):
    """Identifies the state of a directory, and that it is the same one."""

    changed_ns: int     # -1 if it does not exist
    inode: int = 0
    generation: int = 0     # of a version: others with its inode have another one; 0 where the file system tells none


class ModelsIn(Protocol):
    """The models in one directory, by name. If read() returns None, `sign` and `find` give the answer."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def sign(self, name: str) -> Signature | None: ...
    def read(self, name: str) -> tuple[Signature, Model] | None: ...


class Disk(Protocol):
    """The tree as the index asks for it: see repository/reading.py."""

    def subdirectories(self, *names: str) -> list[str]: ...
    def changed(self, names: Names) -> State: ...
    def is_unchanged(self, names: Names, state: State) -> bool: ...
    def unchanged(self, place: Names, states: Mapping[str, int]) -> list[str]: ...
    def sign(self, names: Names) -> Signature | None: ...
    def models_in(self, place: Names) -> ModelsIn: ...


class Total(NamedTuple):
    """Sums over the models in a part of the tree."""

    models: int
    size: int   # bytes


@dataclass(slots=True)
class Directory:
    """What a directory contained when it was looked at; another look replaces it as a whole.

    `total` is None if it has to be computed again. With many models, lines are added to `lines`; otherwise these are in
    order, and only replaced as a whole.
    """

    children: tuple[str, ...] = ()  # names, in order, of models and of directories
    models: tuple[str, ...] = ()    # those that are models; the same tuple if all are
    size: int = 0                   # bytes of the models
    fingerprint: int = 0            # of the models' files; 0 if there is no model
    state: State | None = None      # None if nobody has looked yet
    stamp: int = 0                  # state.changed_ns; 0 if the directory may have changed since without a new one
    checked: float = 0.0            # when the state was last the same; 0 if it has to be checked again in any case
    total: Total | None = None
    since: float = 0.0              # when it was first seen: another directory can have the inode of one that is gone
    compared: float = 0.0           # when the lines were last compared with the models' files
    # the same for some of those in a large one, by the first of them: up to which, and when
    batches: dict[str, tuple[str, float]] = field(default_factory=lambda: NO_LINES)
    lines: dict[str, bytes] = field(default_factory=lambda: NO_LINES)
    states: dict[str, int] = field(default_factory=lambda: NO_LINES)    # of the files that the lines were read from
    held: int = 0                   # bytes of memory that the lines take

    @property
    def folders(self) -> Sequence[str]:
        """The names in it that are not models, in order."""
        if self.models is self.children or not self.models:
            return self.children if not self.models else ()
        models = set(self.models)
        return [name for name in self.children if name not in models]

    def leads_to(self, name: str) -> bool:
        """Whether it contains a directory of this name that is no model."""
        return is_in(self.children, name) and not is_in(self.models, name)

    @property
    def is_large(self) -> bool:
        """Whether to look at all of it takes longer than one request should."""
        return len(self.children) > BATCH_MODELS

    @property
    def listed(self) -> float:
        """When some of its lines were last compared, that is, needed; 0 if they never were."""
        return max(self.compared, *(moment for _, moment in self.batches.values()), 0.0)

    @property
    def is_one_batch(self) -> bool:
        """Whether it holds nothing but models, all their lines are known, and one batch has room for them."""
        return (self.models is self.children and 0 < len(self.lines) == len(self.children) <= BATCH_MODELS
                and self.held <= BATCH_BYTES)

    def without(self, names: Collection[str]) -> "Directory":
        """The same without the lines of these models, to be looked at again."""
        other = replace(self, checked=0.0, stamp=0)
        other.hold({name: line for name, line in self.lines.items() if name not in names}, self.states)
        return other

    def hold(self, lines: dict[str, bytes], states: dict[str, int]) -> None:
        """Replaces its lines; `states` has one for each, and may have more."""
        self.lines = lines or NO_LINES
        self.states = {name: states[name] for name in lines} or NO_LINES
        self.held = size_of(lines)


def is_in(names: Sequence[str], name: str) -> bool:
    """Whether a name is among these, which are in order."""
    index = bisect_left(names, name)
    return index < len(names) and names[index] == name


def identity_of(state: State | None) -> tuple[int, int]:
    return (state.inode, state.generation) if state else (0, 0)


def size_of(lines: dict[str, bytes]) -> int:
    """Bytes of memory that these lines take in the cache."""
    return sum(map(len, lines.values())) + LINE_OVERHEAD * len(lines)


class Known(dict[Names, Directory]):
    """Directories by their names. `held` are the bytes of memory that all lines take. Not safe for threads."""

    held = 0
    is_full = False     # whether there was no room when it was last needed

    def put(self, names: Names, directory: Directory) -> None:
        """Adds a directory that is not in it, with its lines if there is room."""
        if not self.has_room(directory.held):
            directory.hold(NO_LINES, NO_LINES)
        self[names] = directory
        self.held += directory.held

    def learn(self, names: Names, before: Directory, found: Directory) -> None:
        """Replaces a directory in it by what a look has found, if it exists, with what does not hold any more below."""
        is_other = len(names) == VERSION_DEPTH and identity_of(before.state) != identity_of(found.state)
        folders = set(() if is_other else found.folders)
        for name in before.folders:
            if name not in folders:
                self.drop((*names, name))
            elif len(names) >= VERSION_DEPTH:   # it may be another one all the same, where an inode is used again
                self.doubt((*names, name))
        for depth in range(len(names)):
            if above := self.get(names[:depth]):
                above.total = None
        self.held -= self.pop(names).held
        if found.state and found.state.changed_ns >= 0:
            self.put(names, found)

    def drop(self, names: Names) -> None:
        """Removes a directory and all those below it."""
        if directory := self.pop(names, None):
            self.held -= directory.held
            for name in directory.folders:
                self.drop((*names, name))

    def outdate(self, names: Names) -> None:
        """Makes the next list check a model, or a directory, and those above it; what is known stays until then."""
        for depth in range(len(names) + 1):
            if directory := self.get(names[:depth]):
                # the files of a model can change without its directory, also if others have made a folder of a model
                is_same = depth < len(names) - 1 and not is_in(directory.models, names[depth])
                # a new object, so that a look that has begun does not count
                self[names[:depth]] = replace(directory, checked=0.0, compared=0.0, total=None,
                                              stamp=directory.stamp if is_same else 0)

    def exchange(self, names: Names, directory: Directory) -> None:
        """Puts what is known now in place of what was known before."""
        self.held += directory.held - self[names].held
        self[names] = directory

    def doubt(self, names: Names) -> None:
        """Makes the next list check a directory and those below it; what is known of them stays until then."""
        if directory := self.get(names):
            self[names] = replace(directory, checked=0.0)
            for name in directory.folders:
                self.doubt((*names, name))

    def expire(self, names: Names) -> None:
        """doubt() for these names, and the directories above them."""
        for above in (names[:depth] for depth in range(len(names))):
            if directory := self.get(above):
                self[above] = replace(directory, checked=0.0)
        self.doubt(names)

    def after_change(self, before: Directory, name: str, signature: Signature | None, line: bytes | None, state: State,
                     ) -> Directory | None:
        """What a directory contains after a change of one model, of which this is known now; None if that takes a look.

        It will be looked at again nevertheless, because others may have changed it as well.
        """
        at, is_known = bisect_left(before.models, name), is_in(before.models, name)
        if before.models is not before.children or identity_of(before.state) != identity_of(state) or (
                is_known and name not in before.lines):
            return None
        models = (*before.models[:at], *([name] if signature else []), *before.models[at + is_known:])
        size = before.size + (signature.stamp.size if signature else 0)
        lines, states = dict(before.lines), dict(before.states)
        if is_known:
            size -= model.told_by(lines.pop(name))["size"]
        if signature and line and len(line) <= KEPT_LARGEST and self.has_room(len(line) + LINE_OVERHEAD):
            lines[name], states[name] = line, signature.state
        if len(models) <= BATCH_MODELS:     # it was a large one, whose lines are in any order
            lines = {name: lines[name] for name in models if name in lines}
        changed = replace(before, children=models, models=models, size=size, state=state, stamp=0, total=None,
                          fingerprint=hash((before.fingerprint, name, signature)))
        changed.hold(lines, states)
        return changed

    def add(self, directory: Directory, moment: float, lines: dict[str, bytes], states: dict[str, int]) -> bool:
        """Whether there is room for lines that were read from files in these `states` since this moment; adds them."""
        new = {name: lines[name] for name in states.keys() - directory.lines.keys()
               if len(lines[name]) <= KEPT_LARGEST}
        if not new or not self.has_room(size := size_of(new)):
            return False
        directory.compared = directory.compared if directory.lines else moment
        if not directory.is_large or not directory.lines:
            merged, states = directory.lines | new, directory.states | states
            self.replace(directory, {name: merged[name] for name in directory.models if name in merged}, states)
        else:
            directory.states.update({name: states[name] for name in new})
            directory.lines.update(new)
            directory.held += size
            self.held += size
        return True

    def replace(self, directory: Directory, lines: dict[str, bytes], states: dict[str, int]) -> None:
        """Replaces the lines of a directory in it."""
        self.held -= directory.held
        directory.hold(lines, states)
        self.held += directory.held

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes of lines fit in."""
        self.is_full = self.held + size > KEPT_BYTES
        return not self.is_full

    def make_room(self, lock: AbstractContextManager[object]) -> None:
        """Drops lines that no list needed recently if others did not fit in; holds `lock` for each directory alone."""
        known, self.is_full = list(self) if self.is_full else [], False
        oldest = time.monotonic() - WATCHED
        for names in known:
            with lock:
                if (directory := self.get(names)) and directory.listed < oldest:
                    self.replace(directory, NO_LINES, NO_LINES)
