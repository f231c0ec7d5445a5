"""A tar on its way to the models of a version: they are written, hashed and inspected while it arrives."""

import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from folders.tar_reader import MAX_NAME_SHOWN, Member, TarCutter, exclude
from repository.drafts import StagedModel, VersionDraft
from repository.errors import InvalidName
from repository.model import Details, ModelKey, Names
from server.digests import Hashes
from server.errors import BadRequest, HttpError, TooLarge
from server.request import Services
from server.uploads import CHUNKED_STEP, SerialQueue, Upload
from storage import Storage

COST = 64 << 10     # bytes that a file counts for in addition: to make and sync one takes as long as to write these
SYNCED = 32         # files that are synced at once: what the first of them commits to the journal is that of all
EACH = 4            # of them that one worker syncs, so that all workers have some
AT_ONCE = 3 * SYNCED    # files on their way, of up to three descriptors each; as many as may wait for others, and more
RECORD = 512        # bytes of memory for what is kept of each file until all are there


@dataclass(eq=False)
class File:
    """A mark in the queues, before the blocks of a file and behind them."""

    key: ModelKey
    hashes: Hashes = field(default_factory=Hashes)
    model: StagedModel | None = None    # once it is being written
    halves: int = 0     # 1 when all of it is written or hashed, 2 when it is both

    def __len__(self) -> int:
        return COST // 2


@dataclass(eq=False)
class Raw:
    """A mark in the queues: some of the tar itself, to hash that too."""

    data: memoryview

    def __len__(self) -> int:
        return 0


class TarUpload(Upload):
    """A tar that is being uploaded to a version. `details` are those of each model, `algorithms` of claims for the tar.

    MODEL_MAX_SIZE counts for each model, as if it came alone.
    """

    def __init__(self, store: Storage, services: Services, version: Names, details: Details,
                 algorithms: Iterable[str]) -> None:
        self._algorithms = [*algorithms]
        super().__init__(store, services.intake, None, None, self._algorithms)
        self._largest = services.settings.max_size
        self.step = CHUNKED_STEP    # headers take time to parse
        self._examine, self._version, self._details = services.examine, version, details
        self._cutter = TarCutter()
        self._files = 0
        # the current one of the cutter, and of the two queues
        self._file: File | None = None
        self._writing: File | None = None
        self._hashing: File | None = None
        self._ends = SerialQueue(services.intake, type(self)._complete)
        self._at_work = 0       # files that are being inspected or synced, or wait for a worker
        self._unsynced: list[StagedModel] = []
        self.version: VersionDraft | None = None

    # ---- on the network thread

    def _take(self, data: bytes | memoryview) -> None:
        if self._algorithms:
            self.mark(Raw(memoryview(data)))
        for event in self._cutter.feed(data):
            if isinstance(event, memoryview):
                self._keep(event)
            elif isinstance(event, Member):
                self._file = self._begin(event)
                self.mark(self._file)
                with self._intake.changed:
                    self._landing.begin_file()
            else:
                self._end_file()

    def _end_file(self) -> None:
        assert self._file
        self.mark(self._file)

    @property
    def lands(self) -> bool:
        return self._cutter.left > 0 and not self._algorithms

    def room(self) -> memoryview | None:
        room = super().room()
        return room[:self._cutter.left] if room is not None else None

    def _settle_in(self, slab: mmap.mmap, begin: int, end: int) -> None:
        super()._settle_in(slab, begin, end)
        for _ in self._cutter.skip(end - begin):
            self._end_file()

    def _begin(self, member: Member) -> File:
        self._files += 1
        shown = repr(member.name[:MAX_NAME_SHOWN])
        if self._largest is not None and member.size > self._largest:
            raise TooLarge(f"{shown} in the tar has {member.size} bytes, more than the {self._largest} that this "
                           "server accepts for a model (MODEL_MAX_SIZE)")
        try:
            return File(ModelKey.at((*self._version, member.name)))
        except InvalidName as error:
            raise BadRequest(f"{shown} in the tar cannot be stored: {error}. Or leave it out: tar c "
                             f"{exclude(member.name)}") from error

    @property
    def held(self) -> int:
        return self._cutter.held + RECORD * self._files

    def congested(self) -> bool:
        synced = len(self.version.models) if self.version else 0
        # once it is refused, no more files are synced, but its client still sends the rest
        return super().congested() or self._pause(not self.over and self._files - synced > AT_ONCE)

    # ---- on the workers

    def write(self, batch: Sequence[Any]) -> None:
        self.version = self.version or self._store.version_draft(self._version)
        blocks: list[memoryview] = []
        for item in (*batch, None):
            if isinstance(item, memoryview):
                blocks.append(item)
                continue
            if blocks and self._writing and self._writing.model:
                self._writing.model.write(blocks)
                blocks = []
            if isinstance(item, File):
                if item is self._writing:
                    self._half_done(item)
                else:
                    self._writing, item.model = item, self.version.add(item.key)

    def hash(self, batch: Sequence[Any]) -> None:
        for item in batch:
            if isinstance(item, Raw):
                self._digests.update(item.data)
            elif not isinstance(item, File):
                assert self._hashing
                self._hashing.hashes.update(item)
            elif item is self._hashing:
                self._half_done(item)
            else:
                self._hashing = item

    def _half_done(self, file: File) -> None:
        with self._intake.changed:
            file.halves += 1
            if file.halves < 2:
                return
            self._at_work += 1
        self._ends.put(self, file)

    def _complete(self, batch: Sequence[Any]) -> None:
        """Inspects files that are written and hashed; one after the other, because several would wait for Python."""
        with self._working(len(batch)):
            for file in batch:
                if self.over:
                    return
                try:
                    seen = file.model.examine(self._examine) if self._examine else None
                except HttpError as error:
                    raise type(error)(f"{file.key.model_name!r} in the tar: {error}") from error
                file.model.complete(file.key, file.hashes.digests()["sha256"], self._details, seen)
                file.model.begin_sync()
                self._unsynced.append(file.model)
                if len(self._unsynced) == SYNCED:
                    self._sync()

    def _sync(self) -> None:
        """Has all complete files synced: several at once, which is faster on any disk."""
        models, self._unsynced = self._unsynced, []
        with self._intake.changed:
            self._at_work += len(models)
        for start in range(0, len(models), EACH):
            self._intake.workers.submit(partial(self._sync_some, models[start : start + EACH]))

    def _sync_some(self, models: Sequence[StagedModel]) -> None:
        with self._working(len(models)):
            for model in models:
                if self.version and not self.over:
                    self.version.sync_model(model)

    @contextmanager
    def _working(self, files: int) -> Iterator[None]:
        """Counts that these are done with; what is raised meanwhile refuses the upload."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  kept, and raised when the upload is finished
            self.refuse(error)
        with self._intake.changed:
            self._at_work -= files
            self._intake.changed.notify_all()
        self.advance()
        if self.over:
            self._writes.put(self)      # discards the draft, which could not be done while this was going on

    def discard(self) -> None:
        with self._intake.changed:
            if self._at_work:
                return
        if self.version:
            self.version.discard()

    def finish(self) -> dict[str, str]:
        """Waits until all models are written and synced; returns the digests of the tar that are claimed.

        Raises what is wrong with the body.
        """
        if self.refusal is None:
            self._cutter.finish()
        self._end_landing()
        self.settle()
        self._sync()
        self.settle()
        if self.refusal:
            raise self.refusal
        return self._digests.digests()

    def settle(self) -> None:
        super().settle()
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: not self._at_work)
        self._writes.join()
