"""Verification: reads stored models again, at a limited rate, and compares their digests with those of the uploads.

The results are written to metadata.json, where every server on the storage sees them. The store also keeps a mark for
each corrupt model, so that they can be counted without reading all metadata. A mark is made before the metadata says
so, and checked against it whenever it is counted; so it may be out of date, but never hides a corrupt model.
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
from math import inf
from operator import attrgetter
from typing import Any, BinaryIO, NamedTuple

from repository import filesystem, metadata
from repository.errors import InvalidMetadata, ModelNotFound, ReadOnly, StorageFailed, StorageFull, StoreError
from repository.indexed import Total
from repository.model import VERSION_DEPTH, Model, ModelKey, Names, counted, now
from repository.reading import OpenModel
from server import threads
from server.errors import QueueFull
from server.metrics import Metrics
from storage import Storage

log = logging.getLogger("model_server.verification")
READ_BLOCK = 1 << 20    # bytes of one read: a hundred a second at the default rate
MAX_WAITING = 16    # requests of one caller that wait; with more, the caller should verify the level above
MAX_NAMED = 100     # corrupt models that the progress names; a list with ?corrupt=true has all of them
MAX_CHECKED = 1000  # marks that one count checks, which takes some ms; further ones are trusted
MAX_COUNTED = 10_000    # marks that are counted at all; each takes some 20 µs, to read a directory
TOTAL_AGE = 60.0    # seconds by which totals may be out of date, so that they need not read the disk
CATCH_UP = 0.1      # seconds of delay, by a slow disk or a long sleep, for which reading faster makes up
LAST_WAIT = 1.0     # seconds to wait at shutdown for a read or a result in progress


class Stopped(Exception):
    """The server is shutting down."""


@dataclass
class Progress:
    """One verification of the models below some names. Models without a digest, or changed meanwhile, are skipped."""

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
    """A verification that a caller asked for. Callers take turns: each turn has one verification of each caller."""

    turn: int
    caller: str
    names: Names


class Verifier:
    """Runs verifications one after the other, in a thread that lives while there are any; `rate` is in bytes/s."""

    def __init__(self, store: Storage, rate: int, metrics: Metrics) -> None:
        self._store, self._rate, self._metrics = store, rate, metrics
        self._block = max(1, min(READ_BLOCK, rate // 10))
        self._due = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._queue: list[Asked] = []   # in the order of turns; the first one is running
        self._progress = Progress()
        self.last_corrupt = 0   # the last result of corrupt()
        self._looked = -inf     # when that was; -inf again if this server has found a corrupt model since

    def ask(self, caller: str, *names: str) -> dict[str, Any]:
        """Queues a verification of the models below these names, and returns the progress; raises QueueFull.

        `caller` is the name of a token, or the one that all callers without a token share. The limit is for each of
        them: a limit for all could be used up by one, and there are only as many callers as tokens.
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
                    self._queue.clear()     # otherwise it would wait for a thread that nobody starts
                    raise
            return self.progress()

    def progress(self) -> dict[str, Any]:
        """The progress of the running verification, or the result of the last one, as the JSON of GET /verify."""
        queue = list(self._queue)
        waiting = ["/".join(asked.names) for asked in queue[1:]]
        return {"running": bool(queue), **asdict(self._progress), "waiting": waiting}

    def corrupt(self, at_most: float = 0.0) -> int:
        """The number of models known to be corrupt; cheap as long as there are none. Raises StorageFailed.

        What other servers found in the last `at_most` seconds may be missing.
        """
        moment = time.monotonic()
        if not self.last_corrupt and moment - self._looked < at_most:
            return 0
        self._looked = moment   # before looking: what is found meanwhile is then looked for again
        with filesystem.as_store_errors():
            marks = list(islice(self._store.marked(), MAX_COUNTED))
            corrupt = {names for names, verdict in list(self._store.verdicts.items())
                       if verdict.corrupt and self._is_corrupt(ModelKey.at(names))}
            for key in marks[:MAX_CHECKED]:
                if self._is_corrupt(key):
                    corrupt.add(key.names)
                elif not self._store.read_only:
                    with suppress(StoreError):  # the next count tries again
                        self._store.unmark(key)
            self.last_corrupt = len(corrupt) + len(marks[MAX_CHECKED:])
            return self.last_corrupt

    def stop(self) -> None:
        """Gives up the running verification and those that are waiting."""
        self._stopping.set()
        if thread := self._thread:
            thread.join(LAST_WAIT)

    # ---- the thread

    def _run(self) -> None:
        """Runs what is in the queue. After a fault it is called again, and continues with the next verification."""
        while (names := self._next()) is not None:
            try:
                self._verify(names)
            finally:
                with self._lock:
                    del self._queue[0]
                    if self._queue:
                        self._progress = Progress("/".join(self._queue[0].names), started_at=now())

    def _next(self) -> Names | None:
        """The names of the next verification; None when the thread has to end."""
        with self._lock:
            if self._stopping.is_set():
                self._queue.clear()
            if not self._queue:
                self._thread = None     # still under the lock: the next ask() starts another thread
                return None
            return self._queue[0].names

    def _total(self, names: Names) -> Total:
        """The number of models below these names, and their bytes."""
        model = self._store.find(ModelKey.at(names)) if len(names) > VERSION_DEPTH else None
        return Total(1, model.size) if model else self._store.index.total(names, TOTAL_AGE)

    def _verify(self, names: Names) -> None:
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
            progress.error = "internal error: see the server's log"
            raise
        finally:
            progress.finished_at = now()
        log.info("verified %s: %s, %d bytes, %d corrupt, %d skipped", progress.below or "all",
                 counted(progress.done_models, "model"), progress.done_bytes, progress.corrupt_models,
                 progress.skipped_models)

    def _verify_model(self, key: ModelKey, progress: Progress) -> None:
        self._pace(self._block)     # writing the result counts as a block, which matters for small models
        try:
            opened = self._store.open(key)
            with opened.file:       # stays open until the result is written, so that no other file gets its inode
                if opened.model.sha256 or opened.model.promised:
                    damage = self._damage(opened, progress)
                    self._record(opened.model, corrupt=damage is not None)
                    if damage:
                        log.error("%s is corrupt: %s", key, damage)
                        progress.corrupt_models += 1
                        if len(progress.corrupt) < MAX_NAMED:
                            progress.corrupt.append(str(key))
                else:
                    progress.skipped_models += 1
        except (StoreError, OSError) as error:
            log.warning("%s was not verified: %s", key, error)
            progress.skipped_models += 1
        progress.done_models += 1

    def _damage(self, opened: OpenModel, progress: Progress) -> str | None:
        """What is wrong with the bytes of a model; None if they are those that were uploaded."""
        model = opened.model
        if model.promised:
            return f"it has {model.size} bytes, and not the {model.promised['size']} of its metadata.json"
        try:
            sha256 = self._hash(opened.file, progress)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return f"it cannot be read: {error.strerror}"
        return None if sha256 == model.sha256 else f"its sha256 is {sha256}, and not {model.sha256}"

    def _hash(self, file: BinaryIO, progress: Progress) -> str:
        """The SHA-256 of a file as it is on the disk, in hex; raises OSError and Stopped."""
        descriptor, digest, position = file.fileno(), hashlib.sha256(), 0
        # The page cache would hide damage on the disk, so the file is dropped from it first, and again behind the read
        # position: otherwise reading a terabyte would evict everything else. Popular models are soon cached again.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while block := os.pread(descriptor, self._block, position):
            digest.update(block)
            os.posix_fadvise(descriptor, position, len(block), os.POSIX_FADV_DONTNEED)
            position += len(block)
            progress.done_bytes += len(block)
            self._pace(len(block))
        return digest.hexdigest()

    def _pace(self, length: int) -> None:
        """Sleeps as long as the rate demands for `length` bytes; raises Stopped at shutdown.

        Delays of more than CATCH_UP seconds are not made up for.
        """
        now = time.monotonic()
        if self._stopping.wait(max(0.0, self._due - now)):
            raise Stopped
        self._due = max(self._due, now - CATCH_UP) + length / self._rate

    # ---- results

    def _record(self, model: Model, corrupt: bool) -> None:
        """Writes the result to metadata.json; raises ModelNotFound if the model was replaced in the meantime."""
        moment = now()

        def change(current: Model) -> Model:
            if (current.stamp, current.sha256) != (model.stamp, model.sha256):
                raise ModelNotFound("it was replaced while it was read")
            if corrupt:
                self._store.mark(model.key)
                self._looked = -inf
            return replace(current, verified_at=moment, corrupt=corrupt)

        try:
            self._store.amend(model.key, change)
        except (ReadOnly, StorageFull, StorageFailed, InvalidMetadata) as error:
            self._store.verdicts[model.key.names] = metadata.Verdict(model.stamp, moment, corrupt)
            self._looked = -inf
            self._store.index.forget(model.key.names)
            if not self._store.read_only:
                log.warning("%s: only this process knows the result, which cannot be written: %s", model.key, error)

    def _is_corrupt(self, key: ModelKey) -> bool:
        """Whether the info of a model says that it is corrupt, or cannot be read."""
        try:
            model = self._store.find(key)
        except StorageFailed:
            return True
        return model is not None and model.corrupt
