"""Bodies of requests as they arrive: uploads are written and hashed meanwhile, and refused as early as possible."""

import mmap
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from repository.errors import StoreError
from repository.filesystem import ALIGNMENT
from server.digests import Hashes
from server.errors import HttpError, TooLarge
from server.landing import ENOUGH, SLAB, Landing, Slabs
from server.metrics import Metrics
from server.multipart import MAX_PART_HEADERS, UploadForm
from server.threads import Workers
from storage import Draft, Storage

WORKERS = 8                 # four uploads write, hash and wait for the disk at once; more gain nothing on one disk
APART = 6 << 20             # bytes of all uploads without a slab before they are handed over; at worst three times that
READ_BLOCK = 1 << 20        # bytes of one read, from a connection or a file
STEP = 128 << 10            # bytes of a form read at once: each may have to be parsed, which takes 20 ms at worst
CHUNKED_STEP = 64 << 10     # bytes of a chunked body read at once, which take twice as long to parse
REQUEST = "model_server.request"    # in an environment: its Request and Route, as soon as they are known


class Intake:
    """What the uploads of a server share: worker threads, and the memory in which their bytes land.

    `changed` guards that memory, the counters of the intake, of its uploads and of their queues, and is notified of
    their changes.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.changed = threading.Condition()
        self.slabs = Slabs()
        self.in_flight = 0      # uploads begun and not closed
        self.paused = set["Upload"]()   # those of which no more bytes should be read for now
        self.workers = Workers("intake", WORKERS, metrics)

    @property
    def apart(self) -> int:
        """Bytes that an upload without a slab gathers before it hands them over."""
        return min(SLAB, APART // max(1, self.in_flight))

    def begin(self) -> None:
        """Counts an upload, until end()."""
        with self.changed:
            self.in_flight += 1

    def end(self) -> None:
        with self.changed:
            self.in_flight -= 1


class Mark(Protocol):
    """Something that the queues pass on between two blocks, such as that a file begins; it counts as so many bytes."""

    def __len__(self) -> int: ...


class SerialQueue:
    """Processes the blocks of one upload in order, in batches, on shared workers: not on a thread for each upload.

    The upload is an argument of put(), and an idle queue does not refer to it. So it is freed with the last reference
    to it, without waiting for the garbage collector.
    """

    def __init__(self, intake: Intake, work: Callable[[Any, list[memoryview | Mark]], None]) -> None:
        self._intake, self._work = intake, work
        self._waiting = deque[memoryview | Mark]()
        self._busy = self._again = False
        self.done = 0   # bytes that were processed, with or without an error

    def put(self, owner: "Upload", *blocks: memoryview | Mark) -> None:
        """Calls `work` with the owner and these blocks soon; without blocks, to let it notice a change of the owner."""
        with self._intake.changed:
            self._waiting += blocks
            self._again = True
            if self._busy:
                return
            self._busy = True
        self._intake.workers.submit(partial(self._run, owner))

    @property
    def waits(self) -> bool:
        """Whether there are blocks with which `work` has not been called yet."""
        with self._intake.changed:
            return bool(self._waiting)

    def _run(self, owner: "Upload") -> None:
        """Goes on while there is something to do and nobody waits, which saves waking a thread for each batch."""
        while self._run_batch(owner):
            if self._intake.workers.busy:   # behind the others: one fast upload must not starve them
                self._intake.workers.submit(partial(self._run, owner))
                break

    def _run_batch(self, owner: "Upload") -> bool:
        """Processes a batch; returns whether there is more to do."""
        with self._intake.changed:
            batch, size = list[memoryview | Mark](), 0
            while self._waiting and size < SLAB:    # no more: the memory of all is freed when the batch ends
                batch.append(self._waiting.popleft())
                size += len(batch[-1])
            self._again = bool(self._waiting)
        try:
            self._work(owner, batch)
        except Exception as error:  # noqa: BLE001  kept, and raised when the upload is finished
            owner.refuse(error)
        with self._intake.changed:
            self.done += size
        owner.advance()
        with self._intake.changed:
            self._busy = self._again
            self._intake.changed.notify_all()
            return self._busy

    def join(self, seconds: float | None = None) -> None:
        """Waits until the queue is empty, but at most so many seconds."""
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: not self._busy, seconds)


class Body:
    """The body of a request while it arrives; waitress calls append(), __len__(), getfile() and close().

    This class keeps up to `limit` bytes in memory; without a limit, it discards the body. A refusal is not raised at
    once: the rest of the body is read first, so that every client sees the answer.
    """

    step = STEP     # bytes to read at once
    superseded = False      # whether another client continues the upload, so that this connection has to be closed

    def __init__(self, refusal: Exception | None = None, limit: int | None = None) -> None:
        self.refusal, self.limit, self.received = refusal, limit, 0
        self.started = time.monotonic()
        self.data = bytearray()
        self.wake: Callable[[], None] = lambda: None    # called when congested() becomes false again

    def append(self, data: bytes | memoryview) -> None:
        """Takes the next bytes; what is wrong with them becomes the refusal."""
        self.received += len(data)
        if self.refusal is None:
            try:
                self._take(data)
            except (HttpError, StoreError) as error:
                self.refuse(error)

    def refuse(self, error: Exception) -> None:
        """Refuses the body with this error, unless it is refused already."""
        self.refusal = self.refusal or error

    def _take(self, data: bytes | memoryview) -> None:
        if self.limit is not None:
            if len(self.data) + len(data) > self.limit:
                self.data = bytearray()
                raise TooLarge(f"the document is longer than {self.limit} bytes")
            self.data += data

    @property
    def held(self) -> int:
        """Bytes of memory that the body takes until it is closed."""
        return len(self.data)

    @property
    def kept(self) -> bool:
        """Whether what has arrived is kept if its client leaves, so that the server need not wait for the rest."""
        return False

    def attend(self) -> None:
        """Called now and then between two calls of append(), by the same thread."""

    def congested(self) -> bool:
        """Whether the disk is so far behind that no more bytes should be read for now."""
        return False

    def room(self) -> memoryview | None:
        """Memory into which to receive the next bytes, then call landed(); None if they have to go to append()."""
        return None

    def landed(self, size: int) -> None:
        """Takes so many bytes that were received into room()."""

    def __len__(self) -> int:
        return self.received

    def getfile(self) -> "Body":
        return self

    def close(self) -> None:
        """Discards what was not published, without waiting, and forgets the refusal."""
        self.refusal = None     # its traceback refers to frames that refer to this body

    def settle(self) -> None:
        """Waits until no worker is busy with the body."""


class Upload(Body):
    """A model that is being uploaded: a raw body, or the file in a form, written to a draft and hashed as it arrives.

    A room whose uploads are more than one model overrides write(), hash() and discard().

    `content_type` is that of the form, None for a raw body. `limit` is the largest permitted model in bytes.
    `algorithms` are digests to compute in addition to SHA-256, see digests.SIZES. `start` is the position in the file
    of the first byte; what comes before it counts towards the limit.
    """

    handover = SLAB     # bytes gathered at most before they are handed over

    def __init__(self, store: Storage, intake: Intake, content_type: str | None, limit: int | None,
                 algorithms: Iterable[str] = (), *, start: int = 0) -> None:
        super().__init__(limit=limit)
        self._store, self._intake = store, intake
        self._form = None if content_type is None else UploadForm(content_type)
        self.step = ENOUGH // 2 if self._form is None else STEP
        self._closed = False
        self._digests = Hashes(algorithms)
        self._size = start      # bytes of the model that have arrived, with those that were there before
        self._writes, self._hashes = SerialQueue(intake, type(self)._write), SerialQueue(intake, type(self)._hash)
        self._landing = Landing(intake.slabs, self._make_way, start)
        self._begun = False     # whether any bytes have come
        self._beside = 0        # bytes of the form that do not belong to the model
        self._fields_held = self._fields_counted = 0    # bytes of memory, and number, of the fields so far
        self.draft: Draft | None = None
        intake.begin()

    def congested(self) -> bool:
        # most of many slow uploads are idle: taking the lock for each in each round of the loop would cost the most
        if self._landing.idle and self not in self._intake.paused:
            return False
        with self._intake.changed:
            behind = self._landing.behind
            if self._landing.fast:
                return self._pause(behind > self._intake.slabs.share or not self._landing.has_room)
            return self._pause(behind > 2 * self._intake.apart)

    def _pause(self, whether: bool) -> bool:
        """Notes whether the connection waits to be woken, and returns that."""
        with self._intake.changed:
            (self._intake.paused.add if whether else self._intake.paused.discard)(self)
        return whether

    def room(self) -> memoryview | None:
        if self.over or not self.lands:
            return None
        with self._intake.changed:
            return self._landing.room()

    @property
    def lands(self) -> bool:
        """Whether the bytes that come next, except perhaps the last of them, belong to the model."""
        return self._form is None or self._form.in_file

    def landed(self, size: int) -> None:
        self.received += size
        with self._intake.changed:
            landed = self._landing.received(size)
        if landed and self.refusal is None:
            try:
                self._settle_in(*landed)
            except (HttpError, StoreError) as error:
                self.refuse(error)

    def _settle_in(self, slab: mmap.mmap, begin: int, end: int) -> None:
        """Takes what was received between `begin` and `end` of a slab."""
        stop = end if self._form is None else self._form.end_of_content(slab, begin, end)
        rest = slab[stop:end]
        self._count(stop - begin)
        with self._intake.changed:
            self._landing.landed(stop - begin)
        self._hand_over_if_due()
        if rest:
            self._take(rest)

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
        # the model has a budget of its own, and nothing is kept of the end of a form
        text = self._form.pending if self._form else 0
        return min(self._beside, self._fields_held + text + MAX_PART_HEADERS)

    def _keep(self, block: memoryview) -> None:
        self._count(len(block))
        with self._intake.changed:
            self._landing.put(block)
        self._hand_over_if_due()

    def _count(self, size: int) -> None:
        """Counts bytes of the model; raises TooLarge."""
        if self.limit is not None and self._size + size > self.limit:
            raise TooLarge(f"the model is larger than the {self.limit} bytes that this server accepts (MODEL_MAX_SIZE)")
        self._size += size

    def mark(self, mark: Mark) -> None:
        """Passes this on to write() and hash(), between the bytes before it and those after it."""
        self._count(len(mark))
        with self._intake.changed:
            self._landing.mark(mark)
        self._hand_over_if_due()

    def _hand_over_if_due(self) -> None:
        most = min(self.handover, SLAB if self._landing.fast else self._intake.apart)
        # the draft with the first byte, and the first page at once, to find out early whether the disk accepts anything
        if not self._begun:
            self._begun = True
            self._writes.put(self, memoryview(b""))
        if self._landing.full or self._landing.gathered >= (most if self._landing.handed else ALIGNMENT):
            self._hand_over(all_of_it=False)

    def _hand_over(self, all_of_it: bool = True) -> None:
        with self._intake.changed:      # until it is in both queues: whoever needs the slab may do this too
            blocks = self._landing.hand_over(all_of_it)
            self._writes.put(self, *blocks)
            self._hashes.put(self, *blocks)

    def _make_way(self) -> None:
        """Leaves the slab to another upload; copies what is in it if that is less than uploads gather without one."""
        # otherwise it is written first: of four fast uploads, three may have to make way at once, with 1.5 MiB each
        if self._landing.gathered <= min(self._intake.apart, ENOUGH):
            self._landing.give_up()
        else:
            self._landing.leave()
            self._hand_over()

    def _end_landing(self) -> None:
        """Hands over what is left, and leaves the memory to others."""
        self._hand_over()
        with self._intake.changed:
            self._landing.end()

    @property
    def over(self) -> bool:
        """Whether nothing more will be stored."""
        return self._closed or self.refusal is not None

    def _write(self, batch: list[memoryview | Mark]) -> None:
        if self.over:
            self.discard()
        elif batch:
            self.write(batch)

    def _hash(self, batch: list[memoryview | Mark]) -> None:
        if not self.over:
            self.hash(batch)

    def write(self, batch: Sequence[Any]) -> None:
        """Writes blocks, on a worker; what it raises refuses the upload."""
        self.draft = self.draft or self._store.draft()
        self.draft.write(batch)

    def hash(self, batch: Sequence[Any]) -> None:
        """Hashes the same blocks, on another worker."""
        for block in batch:
            self._digests.update(block)

    def discard(self) -> None:
        """Discards what was written, on the worker that called write(): after a refusal, and at the end."""
        if self.draft:
            self.draft.discard()

    def advance(self) -> None:
        """Called after each batch: frees what both queues have processed, and wakes connections that wait."""
        with self._intake.changed:
            self._landing.advance(min(self._writes.done, self._hashes.done))
            paused = [*self._intake.paused]
        for upload in paused:
            if not upload.congested():
                upload.wake()

    def refuse(self, error: Exception) -> None:
        if self._closed:
            return
        super().refuse(error)
        self._writes.put(self)  # discards the draft, because a full disk needs its space now

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The fields of the form, in order; complete after finish()."""
        return self._form.fields if self._form else []

    @property
    def filename(self) -> str | None:
        """The name of the file in the form."""
        return self._form.filename if self._form else None

    def finish(self) -> dict[str, str]:
        """Waits until the whole model is written; returns its digests in hex, by algorithm. Raises the refusal.

        Call it once, when the whole body has arrived.
        """
        if self._form is not None and self.refusal is None:
            for block in self._form.finish():
                self._keep(block)
        self._end_landing()
        self.settle()
        if self.refusal:
            raise self.refusal
        self.draft = self.draft or self._store.draft()  # for an empty model, which was never written to
        return self._digests.digests()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._intake.end()
            super().close()
            self._end_landing()     # the queue discards the draft: a worker may be writing to it at this moment
            self._pause(False)

    def settle(self) -> None:
        self._writes.join()
        self._hashes.join()

    def wait_for_room(self) -> None:
        """Waits until the upload is not congested."""
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: not self.congested())
