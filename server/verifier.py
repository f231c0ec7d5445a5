"""Whether what is stored is still what was uploaded: reads models again, slowly, and compares their digests.

What was found is in the metadata.json of each model, where every server on the storage sees it. Of each corrupt one
there is a mark besides, which the store keeps, so that nobody reads all the metadata to count them. The mark is made
first and asked about whenever it is counted, so it may be wrong and is never believed.
"""

import errno
import hashlib
import logging
import os
import threading
import time
from bisect import insort
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from operator import attrgetter
from typing import Any, BinaryIO, NamedTuple

from repository import filesystem
from repository.errors import InvalidMetadata, ModelNotFound, ReadOnly, StorageFailed, StorageFull, StoreError
from repository.model import NAME_FIELDS, Model, ModelKey, counted, now
from repository.reading import OpenModel
from server import threads
from server.errors import QueueFull
from server.metrics import Metrics
from storage import Storage

log = logging.getLogger("model_server.verification")
BLOCK = 1 << 20     # bytes of one read: at the default rate a hundred a second
MAX_WAITING = 16    # requests of one caller; whoever has more to ask for asks for the level above
MAX_SHOWN = 100     # corrupt models that the progress names; a list with ?corrupt=true has them all
MAX_ASKED = 1000    # marks that are looked into for one count, some ms; of a disk so broken the rest is believed
MAX_COUNTED = 10_000    # marks that are counted at all, each some 20 µs of a look at a directory
TOTAL_AGE = 60.0    # seconds: what others changed on disk may be missing in the totals so long, they cost no look at it
CATCH_UP = 0.1      # seconds of a sleep or a disk that took longer, after which it may go faster for a moment
LINGER = 1.0        # seconds that the end of the server waits for a read or a result under way


class Stopped(Exception):
    """The server ends."""


@dataclass
class Progress:
    """One verification of the models below some names. Skipped are those without a digest, or changed meanwhile."""

    below: str = ""
    total_models: int = 0
    total_bytes: int = 0
    done_models: int = 0
    done_bytes: int = 0
    skipped_models: int = 0
    corrupt_models: int = 0
    corrupt: list[str] = field(default_factory=list)
    started_at: str | None = None
    finished_at: str | None = None
    error: str | None = None


class Asked(NamedTuple):
    """A verification that a caller wants; those of one caller have consecutive turns, and callers share a turn."""

    turn: int
    caller: str
    names: tuple[str, ...]


class Verifier:
    """Does one verification after the other in a thread that lives while there is one. `rate` is in bytes a second."""

    def __init__(self, store: Storage, rate: int, metrics: Metrics) -> None:
        self._store, self._rate, self._metrics = store, rate, metrics
        self._block = max(1, min(BLOCK, rate // 10))
        self._due = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._queue: list[Asked] = []   # in the order of their turns; the first one is under way
        self._progress = Progress()
        self.last_corrupt = 0   # what corrupt() said last

    def ask(self, caller: str, *names: str) -> dict[str, Any]:
        """Verifies the models below these names, now or in the caller's turn; the progress. Raises QueueFull.

        A caller is a name of their own or that of all without one. There is no limit for all of them together, so
        that nobody can use it up: callers are as many as the operator gave tokens to.
        """
        begun = Progress("/".join(names), *self._total(names), started_at=now())
        with self._lock:
            if not self._queue:
                self._progress = begun
            waiting = self._queue[1:]
            if names not in (asked.names for asked in waiting):
                if sum(asked.caller == caller for asked in waiting) == MAX_WAITING:
                    raise QueueFull(f"{MAX_WAITING} verifications that {caller} asked for are waiting: ask again when "
                                    "GET /verify shows fewer")
                turns = [asked.turn for asked in self._queue if asked.caller == caller]
                turn = turns[-1] + 1 if turns else self._queue[0].turn if self._queue else 0
                insort(self._queue, Asked(turn, caller, names), key=attrgetter("turn"))
            if self._thread is None:
                try:
                    self._thread = threads.start("verification", self._run, self._metrics)
                except RuntimeError:
                    self._queue.clear()     # or it would wait for a thread that nobody starts
                    raise
            return self.progress()

    def progress(self) -> dict[str, Any]:
        """Of the verification that runs, or else of the last one."""
        queue = list(self._queue)
        waiting = ["/".join(asked.names) for asked in queue[1:]]
        return {"running": bool(queue), **asdict(self._progress), "waiting": waiting}

    def corrupt(self) -> int:
        """How many models are known to be corrupt; costs next to nothing while there is none."""
        with filesystem.own_words():
            marks = list(islice(self._store.marked(), MAX_COUNTED))
            found = {names for names, (_, _, corrupt) in list(self._store.verdicts.items())
                     if corrupt and self._is_corrupt(ModelKey(*names))}
            for key in marks[:MAX_ASKED]:
                if self._is_corrupt(key):
                    found.add(key.names)
                elif not self._store.read_only:
                    with suppress(StoreError):  # it is counted and looked at again
                        self._store.unmark(key)
            self.last_corrupt = len(found) + len(marks[MAX_ASKED:])
            return self.last_corrupt

    def stop(self) -> None:
        """Gives up what is under way and what waits."""
        self._stopping.set()
        if thread := self._thread:
            thread.join(LINGER)

    # ---- the thread

    def _run(self) -> None:
        """Verifies what is asked for until there is no more; called again after a fault, it goes on behind that."""
        while (names := self._next()) is not None:
            try:
                self._verify(names)
            finally:
                with self._lock:
                    del self._queue[0]
                    if self._queue:
                        self._progress = Progress("/".join(self._queue[0].names), started_at=now())

    def _next(self) -> tuple[str, ...] | None:
        with self._lock:
            if self._stopping.is_set():
                self._queue.clear()
            if not self._queue:
                self._thread = None     # under the lock: whoever asks now starts another
                return None
            return self._queue[0].names

    def _total(self, names: tuple[str, ...]) -> tuple[int, int]:
        if len(names) < len(NAME_FIELDS):
            return self._store.index.total(names, TOTAL_AGE)
        model = self._store.find(ModelKey(*names))
        return (1, model.size) if model else (0, 0)

    def _verify(self, names: tuple[str, ...]) -> None:
        progress = self._progress
        self._due = time.monotonic()
        try:
            progress.total_models, progress.total_bytes = self._total(names)
            for key in self._store.keys(*names):
                self._verify_model(key, progress)
        except Stopped:
            return
        except (StoreError, OSError) as error:
            progress.error = str(error)
            log.error("the verification of %s was given up: %s", progress.below or "all", error)
        except Exception:
            progress.error = "the server has a fault; its log tells more"
            raise
        finally:
            progress.finished_at = now()
        log.info("verified %s: %s, %d bytes, %d corrupt, %d skipped", progress.below or "all",
                 counted(progress.done_models, "model"), progress.done_bytes, progress.corrupt_models,
                 progress.skipped_models)

    def _verify_model(self, key: ModelKey, progress: Progress) -> None:
        self._pace(self._block)     # each costs a block more, for its result is written: small ones are many
        try:
            opened = self._store.open(key)
            with opened.file:       # open until all is done, so that no other file gets its inode
                if opened.model.sha256 or opened.model.promised:
                    damage = self._damage(opened, progress)
                    self._record(opened.model, corrupt=damage is not None)
                    if damage:
                        log.error("%s is corrupt: %s", key, damage)
                        progress.corrupt_models += 1
                        if len(progress.corrupt) < MAX_SHOWN:
                            progress.corrupt.append(str(key))
                else:
                    progress.skipped_models += 1
        except (StoreError, OSError) as error:
            log.warning("%s was not verified: %s", key, error)
            progress.skipped_models += 1
        progress.done_models += 1

    def _damage(self, opened: OpenModel, progress: Progress) -> str | None:
        """What is wrong with the bytes of a model; None when they are those that were uploaded."""
        model = opened.model
        if model.promised:
            return f"it has {model.size} bytes and not {model.promised['size']}, as its metadata.json says"
        try:
            sha256 = self._hash(opened.file, progress)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return f"it cannot be read: {error.strerror}"
        return None if sha256 == model.sha256 else f"its sha256 is {sha256} and not {model.sha256}"

    def _hash(self, file: BinaryIO, progress: Progress) -> str:
        descriptor, digest, position = file.fileno(), hashlib.sha256(), 0
        # It is the disk that may be broken, so what the page cache has of the file is dropped before it is read, and
        # behind it, since a terabyte read once would wash everything else out. A model in demand is cached again soon.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while block := os.pread(descriptor, self._block, position):
            digest.update(block)
            os.posix_fadvise(descriptor, position, len(block), os.POSIX_FADV_DONTNEED)
            position += len(block)
            progress.done_bytes += len(block)
            self._pace(len(block))
        return digest.hexdigest()

    def _pace(self, length: int) -> None:
        """Waits for the turn of so many bytes, which were or will be read. What took long is not made up for."""
        now = time.monotonic()
        if self._stopping.wait(max(0.0, self._due - now)):
            raise Stopped
        self._due = max(self._due, now - CATCH_UP) + length / self._rate

    # ---- what is kept of it

    def _record(self, model: Model, corrupt: bool) -> None:
        """Writes the result; raises ModelNotFound when it is another model by now."""
        moment = now()

        def change(current: Model) -> Model:
            if (current.stamp, current.sha256) != (model.stamp, model.sha256):
                raise ModelNotFound("it became another model while it was read")
            if corrupt:
                self._store.mark(model.key)
            return replace(current, verified_at=moment, corrupt=corrupt)

        try:
            self._store.amend(model.key, change)
        except (ReadOnly, StorageFull, StorageFailed, InvalidMetadata) as error:
            self._store.verdicts[model.key.names] = model.stamp, moment, corrupt
            self._store.index.forget(model.key)
            if not self._store.read_only:
                log.warning("%s: only this process knows the result, which cannot be written: %s", model.key, error)

    def _is_corrupt(self, key: ModelKey) -> bool:
        try:
            model = self._store.find(key)
        except StorageFailed:
            return True     # a disk that cannot even tell
        return model is not None and model.corrupt
