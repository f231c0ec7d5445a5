"""Bodies that are kept when they break off: parts of an upload, and uploads that may become one."""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from operator import itemgetter
from typing import Any, BinaryIO

from repository.model import ModelKey
from resumption.shelf import KeptDraft, Record, Shelf, Superseded
from server.digests import Hashes
from server.errors import BadRequest, CutShort
from server.uploads import READ_BLOCK, Intake, Upload
from storage import Draft, Storage

log = logging.getLogger("model_server.resumption")
KEPT_FROM = 8 << 20         # bytes of an ordinary upload from which on it is kept: less is soon sent again
HANDOVER = 512 << 10        # bytes gathered at most: those are lost to a client that continues while we wait for it
STATES = 24                 # digests of the last batches: more than fit into the backlog of one upload
TRACES = 256                # drafts whose digests are remembered, some 10 KiB each
SLICE = 32 << 20            # bytes read again before others have their turn: 20 ms
PAUSE = 0.03                # seconds without a byte after which nothing more is on its way
PATIENCE = 1.0              # seconds for a client that asks how much is here while that is still arriving
TOLD = 64 << 20             # bytes read again that the log tells of: from here on somebody may wait for seconds


@dataclass
class Trace:
    """Digests of the first bytes of a draft, by their number. Those of up to `on_disk` bytes are of what is there."""

    states: deque[tuple[int, Hashes]] = field(default_factory=lambda: deque([(0, Hashes())], STATES))
    on_disk: int = 0

    def latest(self, size: int) -> tuple[int, Hashes]:
        """The number of bytes, at most `size`, whose digest is known, and a copy of that."""
        known = [each for each in [*self.states] if each[0] <= min(size, self.on_disk)]
        number, state = max(known, key=itemgetter(0), default=(0, Hashes()))
        return number, state.copy()


class Writers:
    """What one process knows of the drafts that it writes: who does, and their digests so far."""

    def __init__(self) -> None:
        self._parts: dict[str, Kept] = {}
        self._traces: OrderedDict[str, Trace] = OrderedDict()

    def begin(self, part: "Kept", draft: KeptDraft, trace: Trace | None = None) -> Trace:
        """The trace of this draft; a new one begins where that of its last writer ends, who is superseded."""
        self.supersede(draft.ident)
        self._parts[draft.ident] = part
        last = self._traces.pop(draft.record.nonce, Trace())
        trace = trace or Trace(deque([last.latest(draft.size)], STATES), draft.size)
        self._traces[draft.record.nonce] = trace
        if len(self._traces) > TRACES:
            self._traces.popitem(last=False)
        return trace

    def end(self, part: "Kept", ident: str) -> None:
        if self._parts.get(ident) is part:
            del self._parts[ident]

    def supersede(self, ident: str) -> None:
        """Makes the connection that writes to this draft be closed."""
        if part := self._parts.get(ident):
            part.supersede()

    def settle(self, ident: str) -> None:
        """Waits until what has come of a draft is on the disk: a client that asks has probably lost its connection."""
        until = time.monotonic() + PATIENCE
        while (part := self._parts.get(ident)) and part.hurry() and time.monotonic() < until:
            pass

    def settle_all(self) -> None:
        """Waits until what has come of connections that are closed is on the disk."""
        for part in [*self._parts.values()]:
            if part.left:
                part.settle()


class Kept(Upload):
    """An upload that is kept if it breaks off, once its draft is a KeptDraft."""

    handover = HANDOVER

    def __init__(self, writers: Writers, store: Storage, intake: Intake, limit: int | None,
                 algorithms: Iterable[str] = (), *, start: int = 0) -> None:
        super().__init__(store, intake, None, limit, algorithms, start=start)
        self._writers, self._trace = writers, Trace()
        self._hashed = 0        # bytes whose digest is known
        self._hurried = False
        self.dropped = False    # whether nothing of it is to be kept

    @property
    def kept(self) -> bool:
        return isinstance(self.draft, KeptDraft) and not self.dropped

    def hurry(self) -> bool:
        """Waits until what has come is on the disk, and whether more has come meanwhile."""
        before, self._hurried = self.received, not self._closed
        self.wake()
        time.sleep(PAUSE)
        self._writes.join(PATIENCE)
        return self in self._intake.paused or self.received != before

    def attend(self) -> None:
        if self._hurried:
            self._hurried = False
            self._hand_over()

    @property
    def left(self) -> bool:
        """Whether its connection is closed, so that no more bytes come."""
        return self._closed

    @property
    def over(self) -> bool:
        return self.dropped and super().over

    def supersede(self) -> None:
        self.superseded = True
        self.wake()

    def refuse(self, error: Exception) -> None:
        if isinstance(error, Superseded):
            self.supersede()
        elif not isinstance(error, CutShort):
            self.dropped = True     # a part that cannot be stored, or a disk that is full or fails
        super().refuse(error)

    def close(self) -> None:
        if not (self._closed or self.dropped):
            self._hand_over()   # before it is closed: what is written after that is the last
        super().close()

    def write(self, batch: Sequence[Any]) -> None:
        if not self.superseded:
            super().write(batch)
            self._note()

    def _note(self) -> None:
        if isinstance(self.draft, KeptDraft):
            self._trace.on_disk = self.draft.size

    def hash(self, batch: Sequence[Any]) -> None:
        if batch:
            super().hash(batch)
            self._hashed += sum(map(len, batch))
            self._trace.states.append((self._hashed, self._digests.copy()))

    def _write(self, batch: list[Any]) -> None:
        super()._write(batch)
        if not self._closed or self._writes.waits:
            return
        if not isinstance(self.draft, KeptDraft):
            self.discard()
            return
        if not self.dropped and self.draft.keep():
            self._note()
        self._writers.end(self, self.draft.ident)


class Keeping(Kept):
    """An ordinary upload, of which the digest is known beforehand: from KEPT_FROM bytes on it is kept."""

    def __init__(self, shelf: Shelf, ident: str, record: Record, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._shelf, self._ident, self._record, self._from = shelf, ident, record, float(KEPT_FROM)

    def write(self, batch: Sequence[Any]) -> None:
        super().write(batch)
        if self.draft and not (self.kept or self.dropped) and self.draft.size >= self._from:
            self._adopt(self.draft)

    def _adopt(self, draft: Draft) -> None:
        if self._shelf.is_full(self._ident):
            self._from = inf
        elif adopted := self._shelf.adopt(draft, self._ident, self._record):
            self.draft = adopted
            self._note()
            self._writers.begin(self, adopted, self._trace)
        else:       # there is a longer one: this one is kept when it is longer than that
            known = self._shelf.find(self._ident)
            self._from = known.size + 1 if known else self._from

    def finish(self) -> dict[str, str]:
        self.dropped = True     # it has not broken off, and is answered
        digests = super().finish()
        if digests["sha256"] == self._record.sha256 and not isinstance(self.draft, KeptDraft):
            self._shelf.remove(self._ident)     # an earlier one that had come nearly as far
        return digests


class Part(Kept):
    """A part of an upload, which begins at `offset` of it; what is there of it already is skipped.

    `length` is that of the whole upload, None if it is not known; then it is complete with the part that is the `last`.
    """

    def __init__(self, draft: KeptDraft, offset: int, length: int | None, last: bool, writers: Writers, store: Storage,
                 intake: Intake, limit: int | None) -> None:
        self.start = draft.size
        super().__init__(writers, store, intake, limit, start=self.start)
        self.draft: KeptDraft = draft
        self.record = draft.record
        self.length, self._last, self._skip = length, last, self.start - offset
        self._read_again: BinaryIO | None = None
        self._trace = writers.begin(self, draft)
        self._hashed, self._digests = self._trace.latest(self.start)
        if self._hashed < self.start:
            self._read_again = draft.reader()
            self._read_again.seek(self._hashed)
            if self.start - self._hashed > TOLD:
                log.info("reading %d bytes of the upload of %s again, to continue its digest",
                         self.start - self._hashed, draft.record.model)
            self._hashes.put(self)

    @property
    def complete(self) -> bool:
        return self._last and not self._skip if self.length is None else self._size == self.length

    def _take(self, data: bytes | memoryview) -> None:
        block = memoryview(data)[self._skip:]
        self._skip -= len(data) - len(block)
        if block:
            self._keep(block)

    @property
    def lands(self) -> bool:
        return not self._skip

    def _count(self, size: int) -> None:
        super()._count(size)
        if self.length is not None and self._size > self.length:
            raise too_long(self.length)

    def congested(self) -> bool:
        # while it is read again, the rest of the digest would have to wait in memory
        return self._pause(True) if self._read_again else super().congested()

    def _hash(self, batch: list[Any]) -> None:
        if self._read_again:
            self._catch_up(self._read_again)
        super()._hash(batch)

    def _catch_up(self, file: BinaryIO) -> None:
        """Reads a slice of what is there again, and the next one when others have had their turn."""
        wanted = 0 if self._closed or self.refusal else min(SLICE, self.start - self._hashed)
        while wanted and (block := file.read(min(wanted, READ_BLOCK))):
            self._digests.update(block)
            self._hashed, wanted = self._hashed + len(block), wanted - len(block)
        if self._hashed < self.start and not wanted and not (self._closed or self.refusal):
            self._trace.states.append((self._hashed, self._digests.copy()))
            self._hashes.put(self)
        else:
            file.close()
            self._read_again = None


class Rest(Upload):
    """The end of an upload whose bytes are in the store: nothing. `draft` has them, which are those of `source`.

    `record` is what a draft of that upload, under the name `ident`, is or would be.
    """

    dropped = True      # nothing of it is ever kept

    def __init__(self, store: Storage, intake: Intake, draft: Draft, source: ModelKey, ident: str, record: Record,
                 ) -> None:
        super().__init__(store, intake, None, None)
        self.draft: Draft = draft
        self.source, self.ident, self.record = source, ident, record

    def _count(self, size: int) -> None:
        raise too_long(self.draft.size)

    def finish(self) -> dict[str, str]:
        super().finish()
        return {"sha256": self.record.sha256 or ""}


def too_long(length: int) -> BadRequest:
    return BadRequest(f"this is more than the {length} bytes of its Upload-Length")
