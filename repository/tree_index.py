"""A cache of the tree for lists: the contents of each directory when it was last checked. It can be dropped any time.

When a directory is needed and its last check is more than FRESH seconds ago, one stat shows whether it has changed.
What this process changes itself is forgotten at once. What is known is kept on disk for the next start, which checks
it in the same way. No thread waits for another one's look: the lock is never held while the disk is asked.
"""

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice
from math import inf
from sys import intern

from repository import indexed
from repository.errors import StorageFailed, StoreError
from repository.indexed import BATCH_BYTES, BATCH_MODELS, WATCHED, Batch, Directory, Known, Signature, State, Total
from repository.looking import look
from repository.model import MAX_DEPTH, VERSION_DEPTH, Model, ModelKey, Names
from repository.recalled import Recalled, Remembered, blocks_of

FRESH = 0.9     # seconds; twice that, plus a pass over 100,000 models, is less than the promised two seconds
FRESH_LINES = 1.8       # seconds, for the files of models: there are many more, and no background pass checks them
POLLED = 60_000         # directories that are all checked within two seconds; 100,000 models have some 21,000
RARELY = 8              # times as much rest with more directories: a pass over 200,000 takes ten seconds and not three
FIRST_ASIDE, ASIDE = 10.0, FRESH / 2    # seconds for which the first pass, and each other one, waits for long lists
ASIDE_EACH = 0.02       # seconds, several batches of a list
LONG = 50               # batches after which a list is a long one
HELD_BYTES = 1 << 20    # of lines of a version, held back until it is certain that they are from one state of it
REMEMBERED = 10_000     # models that take about 0.2 s to count; with fewer, nothing is kept for the next start
REMEMBERED_EVERY = 60.0     # seconds between two times that it is written
REMEMBERED_SHARE = 50   # seconds of rest for each second of writing
TRIES = 50              # attempts to list a version that is replaced meanwhile
PATIENCE = 3            # attempts after which single models may change meanwhile


class Index:
    """The cache, kept up to date from `disk`; `find` gives a model, None if there is none."""

    def __init__(self, disk: indexed.Disk, find: Callable[[ModelKey], Model | None]) -> None:
        self._disk, self._find = disk, find
        self._lock = threading.RLock()      # of all that follows; lists read directories without it
        self._directories = Known()
        self._asked = self._walked = 0.0    # when there was a list, and a batch of a long one
        self._passing = threading.Lock()    # held during a pass over all directories
        self._refreshed = -inf  # when the last pass began
        self._changes = 0       # number of changes; a total computed while it grew is not kept
        self._reads = 0         # number of times that the disk was asked what is in a version
        self._news = self._written = 0  # number of times that something new was learnt, now and when it was written
        self._rested = -inf     # when it may be written again
        self._remembered: Remembered | None = None  # the number of all models, until they have been counted
        self._recalled = Recalled()     # what was known then and has not been taken over yet
        self._taking_over = threading.Lock()
        self._closed = threading.Event()
        # they keep blocks beyond the life of this process; those may get lost
        self.recall: Callable[[], Iterator[bytes]] = lambda: iter(())
        self.keep: Callable[[Iterator[bytes]], None] = lambda blocks: None
        self.settled: Callable[[], object] = lambda: None   # called when much was learnt that stays as it is
        # called with the names of a directory, and of models in it that may be new or have changed
        self.seen: Callable[[Names, list[str]], None] = lambda place, models: None

    def lines(self, names: Names, after: Names = (), enough: float = inf) -> Iterator[Batch]:
        """The models below `names` that come after `after`, in order, as batches of Model.line: Storage.lines()."""
        self._asked = time.monotonic()
        if self.reaches(names):
            for number, batch in enumerate(self._lines_in(names, after, enough)):
                if number > LONG:
                    self._walked = time.monotonic()
                yield batch

    def line(self, model: Names) -> bytes | None:
        """The line of one model, read from its files; None if there is no such model."""
        return stored.line if (stored := self._find(ModelKey.at(model))) else None

    def total(self, names: Names = (), at_most: float = 3 * FRESH) -> Total:
        """The number of models below `names` and their bytes, at most `at_most` seconds old.

        With more than POLLED directories, it is that of the last pass in the background.
        """
        if not self.reaches(names):
            return Total(0, 0)
        if names and self._refreshed == -inf and at_most < inf:
            deque(self._walk(names), 0)     # which is less than the first pass, for which this need not wait
        elif self._refreshed == -inf or len(self._directories) <= POLLED:
            self._refresh(at_most)
        return self._total(names)

    def count(self, names: Names) -> int:
        """total().models; while all models are first counted, their number before the start, and what changed since."""
        if names or not (remembered := self._remembered) or not remembered.is_good:
            return self.total(names).models
        return remembered.models + sum((self._total(version).models if self.reaches(version) else 0) - before
                                       for version, before in list(remembered.changed.items()))

    def below(self, names: Names) -> list[str]:
        """The names of the directories and models right below these names, in order; [] if that is no directory."""
        return [*self._checked(names).children] if self.reaches(names) else []

    def fingerprint(self, names: Names) -> int:
        """A number that changes when a model below these names is added, replaced or removed; 0 if there is none."""
        return self._fingerprint(names) if self.reaches(names) else 0

    def forget(self, names: Names, below: bool = False) -> None:
        """Makes the next list check this model and the directories above it; call it after each change of a model.

        With `below`, it also drops what is known below these names: the whole directory was replaced.
        """
        place, name, changed = names[:-1], names[-1], None
        now = None if below else self._found_in_large(names)
        if (remembered := self._remembered) and len(names) >= VERSION_DEPTH:    # else a place could not be read
            remembered.note(names[:VERSION_DEPTH])
        for depth in range(VERSION_DEPTH, len(names)):
            self._take_over(names[:depth])      # else a later list would do so, as if it had not changed
        with self._lock:
            self._changes += 1
            if below:
                self._directories.drop(names)
            elif now and (directory := self._fresh(place)):
                changed = self._directories.after_change(directory, intern(name), *now)
            self._directories.outdate(names)
            if changed:
                self._directories.exchange(place, changed)
        if not below and len(names) > VERSION_DEPTH:
            self.seen(place, [name])

    def expire(self, names: Names) -> None:
        """Makes the next list check all directories above and below these names, however fresh what is known is."""
        with self._lock:
            self._directories.expire(names)

    def _found_in_large(self, names: Names) -> tuple[Signature | None, bytes | None, State] | None:
        """What a model is now, and then a large directory around it that is known; None of others."""
        if len(names) > VERSION_DEPTH and (directory := self._fresh(names[:-1])) and directory.is_large:
            with suppress(OSError, StoreError):     # which the next list raises
                return self._disk.sign(names), self.line(names), self._disk.changed(names[:-1])
        return None

    def is_listed(self) -> bool:
        """Whether a long list is being made, beside which other threads had better not work on their own account."""
        return time.monotonic() - self._walked < 2 * ASIDE_EACH

    def known(self) -> list[tuple[Names, list[str]]]:
        """The directories with models in them, as they were when they were last checked, and the models' names."""
        return [(place, [*each.models]) for place, each in list(self._directories.items()) if each.models]

    def watch(self) -> None:
        """Reads the whole tree, then keeps checking it while lists are requested, until close(). Raises OSError."""
        try:
            self._refresh(pause=indexed.PAUSE)
            self.settled()
            self._keep_up()     # or the next page would do that, if the first pass took long
            self._total(())     # likewise, 0.5 s with a million models
        finally:
            self._remembered, self._recalled = None, Recalled()
        while True:
            self._write()
            self._directories.make_room(self._lock)
            if self._closed.wait(FRESH):
                return
            self._keep_up(0.0)

    def close(self) -> None:
        """Makes watch() return."""
        self._closed.set()

    def reaches(self, names: Names) -> bool:
        """Whether these nested directories exist, and none of them is a link or a model."""
        return all(self._checked(names[:depth]).leads_to(name) for depth, name in enumerate(names))

    # ---- from one start to the next

    def remember(self) -> None:
        """Reads what was known before the start, of which a list takes over what it needs. Call it before watch()."""
        recalled = Recalled(self.recall())
        if recalled.models is not None and recalled.top == self._disk.changed(()):  # else others changed the projects
            self._remembered = Remembered(recalled.models, recalled)
        self._recalled = recalled

    def _take_over(self, names: Names) -> None:
        """Takes over what was known of this directory and of its neighbours; each is checked before it is used."""
        if names in self._directories:
            return
        with self._taking_over:     # for milliseconds, in which the disk is not asked
            recalled = [*self._recalled.around(names)]
            for place, directory in recalled:
                with self._lock:
                    if place not in self._directories:
                        self._directories.put(place, directory)
                        self.seen(place, [*directory.models])
            if recalled:
                self.settled()

    def _write(self) -> None:
        """Writes what is known for the next start, if there is something new and the last time was long ago."""
        top, begun, news = self._directories.get(()), time.monotonic(), self._news
        if news == self._written or begun < self._rested or not top or not top.state:
            return
        if (models := self._total(()).models) >= REMEMBERED:
            self.keep(blocks_of(self._directories, self._lock, models, top.state, self._keep_up))
            self._written = news
            self._rested = begun + max(REMEMBERED_EVERY, REMEMBERED_SHARE * (time.monotonic() - begun))

    # ---- lists

    def _lines_in(self, names: Names, after: Names, enough: float) -> Iterable[Batch]:
        """_lines_below(); of a version or a folder in it, all lines are from before it was replaced, or all from after.

        Raises StorageFailed if that could only be found out when some were given away.
        """
        if len(names) < VERSION_DEPTH:
            return self._lines_below(names, self._checked(names), after, enough)
        if (names > after and (directory := self._fresh(names)) and directory.is_one_batch
                and not self._is_due(directory)):
            return (Batch(names, directory.lines),)     # most versions of a long list, which takes half the time so
        return self._lines_in_version(names, after, enough)

    def _lines_in_version(self, names: Names, after: Names, enough: float) -> Iterator[Batch]:
        version, given = names[:VERSION_DEPTH], False
        for attempt in range(TRIES):
            reads = self._reads     # before: another list may see the next version just when this one has been told
            directory, held, models, size = self._checked(version, reading=True), list[Batch](), 0, 0
            found = directory if names == version else self._checked(names)
            for batch in self._lines_below(names, found, after, enough):
                held.append(batch)
                models, size = models + len(batch.lines), size + sum(map(len, batch.lines.values()))
                if (models > enough or size > HELD_BYTES) and self._is_still(version, directory, reads, attempt):
                    yield from held
                    held, size, given = [], 0, True
            if self._is_still(version, directory, reads, attempt):
                yield from held
                return
            if given:
                break
            self.forget(version, below=True)
        raise StorageFailed(f"{'/'.join(version)} was replaced while it was listed: ask again")

    def _is_still(self, version: Names, before: Directory, reads: int = -1, attempt: int = 0) -> bool:
        """Whether the version is the directory that it was, as far as the disk was asked since `reads`."""
        if reads == self._reads or (before.state and self._disk.is_unchanged(version, before.state)):
            return True
        # Single models may change all the time, and need not be of one moment: a large one is not read again for that.
        now = self._directories.get(version)
        return indexed.identity_of(self._disk.changed(version)) == indexed.identity_of(before.state) and (
            attempt >= PATIENCE or (before.is_large and now is not None and now.since == before.since))

    def _lines_below(self, names: Names, directory: Directory, after: Names, enough: float) -> Iterator[Batch]:
        """The models below a directory that exists which come after `after`: runs of models, and what is in folders."""
        depth = len(names)
        if self._is_due(directory) and self._compared(names, directory, directory.models) is not directory:
            directory = self._checked(names, reading=True)  # the next list would do that; a model may be a folder now
        children = directory.children
        if after[:depth] == names and depth < len(after):
            children = children[bisect_left(children, after[depth]):]
            if children and children[0] == after[depth] and indexed.is_in(directory.models, after[depth]):
                children = children[1:]
        elif directory.is_one_batch:
            yield Batch(names, directory.lines)
            return
        folders = set(directory.folders)
        for are_folders, run in groupby(children, folders.__contains__):
            if are_folders:
                for name in run:
                    place = (*names, name)
                    yield from (self._lines_in(place, after, enough) if depth < VERSION_DEPTH
                                else self._lines_below(place, self._checked(place, reading=True), after, enough))
            else:
                while some := [*islice(run, BATCH_MODELS)]:
                    directory = self._compared(names, directory, some)
                    yield from self._read_models(names, directory, some)

    def _read_models(self, place: Names, directory: Directory, names: list[str]) -> Iterator[Batch]:
        """The lines of these models, cached if there is room; of one that has become a folder, those in it."""
        todo = deque(names)
        while todo:
            moment, size, gone = time.monotonic(), 0, Names()
            lines, states = dict[str, bytes](), dict[str, int]()    # the states are of those that were read
            version = self._directories.get(place[:VERSION_DEPTH], directory)
            with self._disk.models_in(place) as models:
                while todo and size <= BATCH_BYTES and not gone:
                    name = todo.popleft()
                    line = directory.lines.get(name)
                    if line is None:
                        self._reads += 1
                        if (found := self._read_line(models, (*place, name))) is None:
                            directory.stamp, gone = 0, (*place, name)   # its file may be all that was deleted
                            continue
                        states[name], line = found
                    lines[name] = line
                    size += len(line)
            if states and self._is_still(place[:VERSION_DEPTH], version):   # else another list could mix two versions
                with self._lock:
                    known = self._directories
                    if known.get(place) is directory and known.add(directory, moment, lines, states):
                        self._news += 1
            yield Batch(place, lines)
            if 0 < len(gone) < MAX_DEPTH:
                yield from self._lines_below(gone, self._checked(gone, reading=True), (), inf)

    def _read_line(self, models: indexed.ModelsIn, names: Names) -> tuple[int, bytes] | None:
        """The state of a model and its line, which is read later: if it changes in between, a comparison shows it."""
        if found := models.read(names[-1]):
            return found[0].state, found[1].line
        line = self.line(names) if (signature := self._disk.sign(names)) else None  # a closed one refuses no list
        return (signature.state, line) if signature and line is not None else None

    # ---- sums

    def _fingerprint(self, names: Names) -> int:
        directory = self._checked(names)
        if directory.models is directory.children:
            return directory.fingerprint
        inside = [self._fingerprint((*names, name)) for name in directory.folders]
        return hash((directory.fingerprint, *inside)) if directory.fingerprint or any(inside) else 0

    def _total(self, names: Names) -> Total:
        """The total of a directory that exists, computed from those below it unless it is cached."""
        if (directory := self._directories.get(names)) is None or not directory.checked:
            directory = self._checked(names)
        if total := directory.total:
            return total
        changes, known = self._changes, self._directories.get
        below = [each.total if (each := known((*names, name))) and each.checked and each.total      # most of a thousand
                 else self._total((*names, name)) for name in directory.folders]
        total = Total(len(directory.models) + sum(each.models for each in below),
                      directory.size + sum(each.size for each in below))
        with self._lock:
            if below and changes == self._changes:
                directory.total = total
        return total

    # ---- looking at directories

    def _refresh(self, at_most: float = 0.0, pause: float = 0.0) -> None:
        """Checks every directory, but not the files of the models, unless that was done in the last `at_most` seconds.

        One thread at a time does so; with a `pause` it rests now and then.
        """
        if self._is_recent(at_most):
            return
        with self._passing:
            started = time.monotonic()
            if self._is_recent(at_most):
                return
            first = self._refreshed == -inf
            aside = (FIRST_ASIDE if first else ASIDE) if pause else 0.0
            rest = pause * (RARELY if len(self._directories) > POLLED and not first else 1)
            for number, _ in enumerate(self._walk(())):
                if pause and number % 200 == 199:
                    time.sleep(rest)
                    if first:
                        self.settled()
                while aside > 0 and self.is_listed():
                    time.sleep(ASIDE_EACH)
                    aside -= ASIDE_EACH
            self._refreshed = started

    def _keep_up(self, at_most: float = 2 * FRESH) -> None:
        """_refresh() for lists that are requested; passes that take long begin with 0 alone, and make way for lists."""
        if (time.monotonic() - self._asked < WATCHED and (at_most == 0 or len(self._directories) <= POLLED)
                and not (self.is_listed() and self._is_recent(2 * FRESH))):
            self._refresh(at_most, indexed.PAUSE)

    def _is_recent(self, at_most: float) -> bool:
        """Whether the last pass began at most so many seconds ago."""
        return time.monotonic() - self._refreshed <= at_most

    def _walk(self, names: Names) -> Iterator[None]:
        for name in self._checked(names, in_pass=True).folders:
            yield from self._walk((*names, name))
        yield

    def _fresh(self, names: Names, in_pass: bool = False) -> Directory | None:
        """The directory if its last check is recent enough. Large ones, and all in long lists, are left to a pass."""
        if (directory := self._directories.get(names)) and directory.checked:
            age = time.monotonic() - directory.checked
            if age < FRESH or (age < 2 * FRESH and not in_pass and (directory.is_large or self.is_listed())):
                return directory
        return None

    def _is_due(self, directory: Directory) -> bool:
        """Whether a list has to compare its lines; then it checks the directory, too, and both hold equally long."""
        return bool(directory.lines) and time.monotonic() - directory.compared > FRESH_LINES and not directory.is_large

    def _checked(self, names: Names, in_pass: bool = False, reading: bool = False) -> Directory:
        """The directory as it is now, or was when it was fresh; with `reading`, a look also reads its models' lines."""
        if (directory := self._fresh(names, in_pass)) and not (reading and self._is_due(directory)):
            return directory    # the usual case: a list needs thousands
        self._take_over(names)
        with self._lock:
            before = self._directories.setdefault(names, Directory())
        moment = time.monotonic()
        if before.state and before.stamp and self._disk.is_unchanged(names, State(before.stamp, before.state.inode)):
            before.checked = moment     # which has no effect if it was forgotten meanwhile
            return before
        version = self._directories.get(names[:VERSION_DEPTH], before)
        found = self._look(names, before, reading)
        found.checked = moment
        # a folder of the next version would be mixed with the files of this one
        is_of_it = len(names) <= VERSION_DEPTH or self._is_still(names[:VERSION_DEPTH], version)
        with self._lock:
            if is_of_it and self._directories.get(names) is before:     # not forgotten or looked at meanwhile
                self._learn(names, before, found)
            else:
                self._changes += 1  # a total that this is part of may be older than what is known
        return found

    def _look(self, names: Names, before: Directory, reading: bool) -> Directory:
        """Reads a directory that has changed or was removed."""
        self._reads += 1
        found = look(self._disk, names, before, self._disk.changed(names), reading and not self._directories.is_full)
        if len(names) > VERSION_DEPTH and self._disk.sign(names) and (above := self._directories.get(names[:-1])):
            above.stamp = 0     # it has become a model
        return found

    def _learn(self, names: Names, before: Directory, found: Directory) -> None:
        """Replaces what is known of a directory by what a look has found."""
        self._directories.learn(names, before, found)
        known = set(before.models)
        self.seen(names, [name for name in found.models if name not in known])
        self._changes += before.state is not None   # the first look changes no total
        self._news += 1

    def _compared(self, place: Names, directory: Directory, names: Sequence[str]) -> Directory:
        """The directory without the lines of those of these models whose files have changed, by two looks for each.

        Names are in order, and all of those in a directory that is not large.
        """
        moment, (up_to, compared) = time.monotonic(), directory.batches.get(names[0], ("", 0.0))
        if moment - max(directory.compared, compared if names[-1] <= up_to else 0.0) < FRESH_LINES:
            return directory
        with self._lock:
            states = {name: directory.states[name] for name in names if name in directory.lines}
        changed = states.keys() - self._disk.unchanged(place, states)
        self._reads += bool(changed)    # else all lines are from the same time as before
        with self._lock:
            if not changed:
                if directory.is_large:
                    directory.batches = directory.batches | {names[0]: (names[-1], moment)}
                else:
                    directory.compared = moment
                return directory
            now = directory.without(changed)
            if len(changed) == len(states) > 1:
                now.since = moment  # no file is the same: it is another one, with the inode of one that is gone
            if self._directories.get(place) is directory:
                self._directories.exchange(place, now)
            return now
