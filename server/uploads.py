"""A body on its way to a draft: written and hashed while it arrives, refused as early as can be."""

import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from repository.errors import StoreError
from server.digests import Hashes
from server.errors import BadRequest, TooLarge
from server.multipart import MAX_PART_HEADERS, UploadForm
from server.process import trim
from storage import Draft, Storage

WORKERS = 8     # four uploads write, hash and wait for the disk at once; more gain nothing on one disk
TRIMMED = 512 << 20     # bytes received between two trims, which take 1 to 4 ms of a worker


class Intake:
    """What all uploads of one server share: the workers, and the count of bytes that wait for them."""

    def __init__(self) -> None:
        self.workers = ThreadPoolExecutor(WORKERS, "intake")
        self.changed = threading.Condition()
        self.backlog = 0
        self.in_flight = 0      # uploads begun and not closed
        self._untrimmed = 0

    def take(self, size: int) -> None:
        """Counts bytes that have come; to be called with `changed` held."""
        self.backlog += size
        self._untrimmed += size
        if self._untrimmed > TRIMMED:
            self._untrimmed = 0
            self.workers.submit(trim)


class Lane:
    """Does its work in batches, in order, on shared workers: a thread each would be two for each slow upload.

    It belongs to what is given to put(), and does not refer to it while it has nothing to do: the owner goes with the
    last who needs it, and not when the collector of cycles comes by.
    """

    def __init__(self, intake: Intake, work: Callable[[Any, list[memoryview]], None]) -> None:
        self._intake, self._work = intake, work
        self._waiting: list[memoryview] = []
        self._busy = self._again = False

    def put(self, owner: Any, *blocks: memoryview) -> None:
        with self._intake.changed:
            self._waiting += blocks
            self._again = True      # without blocks too: it is to look whether the upload was closed or refused
            if self._busy:
                return
            self._busy = True
        self._intake.workers.submit(self._run, owner)

    def _run(self, owner: Any) -> None:
        with self._intake.changed:
            batch, self._waiting, self._again = self._waiting, [], False
        try:
            self._work(owner, batch)
        except Exception as error:  # noqa: BLE001  kept, and raised where the upload is finished
            owner.refuse(error)
        with self._intake.changed:
            self._busy = again = self._again
            self._intake.changed.notify_all()
        if again:   # at the end of the queue: one fast upload must not starve the others
            self._intake.workers.submit(self._run, owner)

    def join(self) -> None:
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: not self._busy)


OWN_BACKLOG = 8 << 20           # bytes of one upload received and not yet written and hashed: some ms of a disk
HANDOVER = 2 << 20              # bytes given to the workers at once: less costs switches, more leaves the caches
ALL_BACKLOG = 12 << 20          # of all of them: four were no faster with 24, and took 11 MiB more memory at the peak
BLOCK = 1 << 20                 # bytes read at once: 256 KiB cost 4 times the polls, and 20 % more CPU
STEP = 128 << 10                # of a form, in which each byte may cost: some 20 ms at the worst
CHUNKED_STEP = 64 << 10         # of a chunked body, in which each costs twice as much
REQUEST = "model_server.request"    # in an environment: what was made of it to decide which thread answers
SMALL = 16 << 10                # bytes of a block below which it is copied to its neighbours: 1 byte alone takes 200


class Body:
    """A request's body while it arrives. append, __len__, getfile, close are waitress' words for what it does with it.

    This one keeps up to `limit` bytes in memory, without a limit none. A refusal is kept until somebody asks, so that
    the rest of the body can be read and every client sees the answer.
    """

    step = STEP     # bytes of it that are read at once

    def __init__(self, refusal: Exception | None = None, limit: int | None = None) -> None:
        self.refusal, self.limit, self.received = refusal, limit, 0
        self.started = time.monotonic()
        self.data = bytearray()
        self.wake: Callable[[], None] = lambda: None    # called when congested() turns false

    def append(self, data: bytes | memoryview) -> None:
        self.received += len(data)
        if self.refusal is None:
            try:
                self._take(data)
            except (BadRequest, StoreError) as error:
                self.refuse(error)

    def refuse(self, error: Exception) -> None:
        self.refusal = self.refusal or error

    def _take(self, data: bytes | memoryview) -> None:
        if self.limit is not None:
            if len(self.data) + len(data) > self.limit:
                self.data = bytearray()
                raise TooLarge(f"the document is longer than {self.limit} bytes")
            self.data += data

    @property
    def held(self) -> int:
        """Bytes of memory that it keeps for as long as it is not closed."""
        return len(self.data)

    def congested(self) -> bool:
        """Whether more bytes have arrived than the disk has taken; no more should be read then."""
        return False

    def __len__(self) -> int:
        return self.received

    def getfile(self) -> "Body":
        return self

    def close(self) -> None:
        """Gives up what was not published, without waiting for it; what was wrong with it is not known any more."""
        self.refusal = None     # its traceback holds the calls that led to it, and they hold this body

    def settle(self) -> None:
        """Waits until nothing of it is under way."""


class Upload(Body):
    """One model on its way in: a form's file part or a raw body, written to a draft and hashed while it arrives.

    `content_type` is the form's, None for a raw body; `limit` is the largest model in bytes; `algorithms` are those of
    the digests that are wanted beside its SHA-256, see digests.SIZES.
    """

    def __init__(self, store: Storage, intake: Intake, content_type: str | None, limit: int | None,
                 algorithms: Iterable[str] = ()) -> None:
        super().__init__(limit=limit)
        self._store, self._intake = store, intake
        self._form = None if content_type is None else UploadForm(content_type)
        self.step = BLOCK if self._form is None else STEP
        self._closed = self._paused = False
        self._digests = Hashes(algorithms)
        self._backlog = self._size = self._written = self._hashed = 0
        self._writes, self._hashes = Lane(intake, Upload._write), Lane(intake, Upload._hash)
        self._gathered: list[memoryview] = []   # and then what is in _small
        self._small = bytearray()
        self._gathering = 0     # bytes in both
        self._beside = self._fields_held = self._fields_counted = 0
        self.draft: Draft | None = None
        with intake.changed:
            intake.in_flight += 1

    def congested(self) -> bool:
        self._paused = self._backlog > OWN_BACKLOG or (self._intake.backlog > ALL_BACKLOG and self._backlog > 0)
        return self._paused

    def _take(self, data: bytes | memoryview) -> None:
        if self._form is None:
            self._keep(memoryview(data))
            return
        before = self._size
        for block in self._form.feed(bytes(data)):
            self._keep(block)
        self._beside += len(data) - (self._size - before)
        for part, text in self._form.parts[self._fields_counted:]:
            self._fields_counted += 1
            self._fields_held += sys.getsizeof(part.name) + sys.getsizeof(text)

    @property
    def held(self) -> int:
        # blocks of the model have a budget of their own; of what ends a form nothing is kept
        text = self._form.pending if self._form else 0
        return min(self._beside, self._fields_held + text + MAX_PART_HEADERS)

    def _keep(self, block: memoryview) -> None:
        self._size += len(block)
        if self.limit is not None and self._size > self.limit:
            raise TooLarge(f"the model is larger than the {self.limit} bytes this server takes (MODEL_MAX_SIZE)")
        with self._intake.changed:
            self._backlog += len(block)
            self._intake.take(len(block))
        self._gather(block)
        share = min(HANDOVER, ALL_BACKLOG // 2 // self._intake.in_flight)
        # the first at once: a disk that takes nothing shows now
        if self._written == 0 or self._gathering >= share:
            self._hand_over()

    def _gather(self, block: memoryview) -> None:
        self._gathering += len(block)
        if len(block) < SMALL:
            self._small += block
        if self._small and (len(block) >= SMALL or len(self._small) >= STEP):
            self._gathered.append(memoryview(self._small))
            self._small = bytearray()
        if len(block) >= SMALL:
            self._gathered.append(block)

    def _hand_over(self) -> None:
        blocks = [*self._gathered, memoryview(self._small)] if self._small else self._gathered
        self._gathered, self._small, self._gathering = [], bytearray(), 0
        self._writes.put(self, *blocks)
        self._hashes.put(self, *blocks)

    def _write(self, batch: list[memoryview]) -> None:
        try:
            if self._closed or self.refusal:
                if self.draft:
                    self.draft.discard()
            elif batch:
                self.draft = self.draft or self._store.draft()
                self.draft.write(batch)
        finally:
            self._advance(written=sum(map(len, batch)))

    def _hash(self, batch: list[memoryview]) -> None:
        for block in () if self._closed or self.refusal else batch:
            self._digests.update(block)
        self._advance(hashed=sum(map(len, batch)))

    def _advance(self, written: int = 0, hashed: int = 0) -> None:
        paused = self._paused
        with self._intake.changed:
            before = min(self._written, self._hashed)
            self._written += written
            self._hashed += hashed
            done = min(self._written, self._hashed) - before
            self._backlog -= done
            self._intake.backlog -= done
            self._intake.changed.notify_all()
        if paused and not self.congested():
            self.wake()

    def refuse(self, error: Exception) -> None:
        if self._closed:
            return
        super().refuse(error)
        self._writes.put(self)  # which discards the draft: a full disk wants its space back now

    @property
    def fields(self) -> list[tuple[str, str]]:
        return self._form.fields if self._form else []

    @property
    def filename(self) -> str | None:
        return self._form.filename if self._form else None

    def finish(self) -> dict[str, str]:
        """The digests of the model in hex by algorithm, all of it written; raises what was wrong with the body."""
        if self._form is not None and self.refusal is None:
            for block in self._form.finish():
                self._keep(block)
        self._hand_over()
        self.settle()
        if self.refusal:
            raise self.refusal
        self.draft = self.draft or self._store.draft()  # of an empty file nothing was written
        return self._digests.digests()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            with self._intake.changed:
                self._intake.in_flight -= 1
            super().close()
            self._hand_over()   # the lane discards it: a worker may be writing to it just now

    def settle(self) -> None:
        self._writes.join()
        self._hashes.join()

    def wait_for_room(self) -> None:
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: not self.congested())
