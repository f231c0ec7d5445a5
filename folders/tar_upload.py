"""A tar on its way to the models of a version: they are written, hashed and inspected while it arrives."""

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from folders.tar_reader import MAX_SHOWN, Member, TarCutter, exclude
from repository.drafts import StagedModel, VersionDraft
from repository.errors import InvalidName
from repository.model import Details, ModelKey, Names
from server.digests import Hashes
from server.errors import BadRequest, HttpError, TooLarge
from server.request import Services
from server.uploads import CHUNKED_STEP, Upload
from storage import Storage

COST = 64 << 10     # bytes that a file counts for in addition: to make and sync one takes as long as to write these
AT_ONCE = 16        # files that wait for inspection and sync; as many again may be known by then
RECORD = 512        # bytes of memory for what is kept of each file until all are there


@dataclass(eq=False)
class FileBegin:
    """A mark in the queues: the blocks of a file follow."""

    key: ModelKey
    hashes: Hashes = field(default_factory=Hashes)
    model: StagedModel | None = None    # once it is being written
    halves: int = 0     # 1 when all of it is written or hashed, 2 when it is both

    def __len__(self) -> int:
        return COST


@dataclass(eq=False)
class FileEnd:
    """A mark in the queues: the file is complete."""

    file: FileBegin

    def __len__(self) -> int:
        return 0


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
        super().__init__(store, services.intake, None, services.settings.max_size, self._algorithms)
        self.step = CHUNKED_STEP    # headers take time to parse
        self._examine, self._version, self._details = services.examine, version, details
        self._cutter = TarCutter()
        self._file: FileBegin | None = None         # the current one of the cutter, and of the two queues
        self._writing: FileBegin | None = None
        self._hashing: FileBegin | None = None
        self._files = self._sealing = 0     # files so far, and those that are being inspected and synced
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
        self.mark(FileEnd(self._file))

    def _count(self, size: int) -> None:
        with self._intake.changed:
            self._size += size

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

    def _begin(self, member: Member) -> FileBegin:
        self._files += 1
        shown = repr(member.name[:MAX_SHOWN])
        if self.limit is not None and member.size > self.limit:
            raise TooLarge(f"{shown} in the tar has {member.size} bytes, more than the {self.limit} that this server "
                           "accepts for a model (MODEL_MAX_SIZE)")
        try:
            return FileBegin(ModelKey.at((*self._version, member.name)))
        except InvalidName as error:
            raise BadRequest(f"{shown} in the tar cannot be stored: {error}. Or leave it out: tar c "
                             f"{exclude(member.name)}") from error

    @property
    def held(self) -> int:
        return self._cutter.held + RECORD * self._files

    def congested(self) -> bool:
        return super().congested() or self._pause(self._sealing > AT_ONCE)

    # ---- on the workers

    def write(self, batch: Sequence[Any]) -> None:
        self.version = self.version or self._store.version_draft(self._version)
        blocks: list[memoryview] = []
        for item in batch:
            if isinstance(item, memoryview):
                blocks.append(item)
                continue
            if self._writing and self._writing.model and blocks:
                self._writing.model.write(blocks)
                blocks = []
            if isinstance(item, FileBegin):
                self._writing, item.model = item, self.version.add(item.key)
            elif isinstance(item, FileEnd):
                self._half_done(item.file)
        if self._writing and self._writing.model and blocks:
            self._writing.model.write(blocks)

    def hash(self, batch: Sequence[Any]) -> None:
        for item in batch:
            if isinstance(item, Raw):
                self._digests.update(item.data)
            elif isinstance(item, FileBegin):
                self._hashing = item
            elif isinstance(item, FileEnd):
                self._half_done(item.file)
            elif self._hashing:
                self._hashing.hashes.update(item)

    def _half_done(self, file: FileBegin) -> None:
        """Has a file sealed once it is written and hashed, on any worker: a disk syncs several at once faster."""
        with self._intake.changed:
            file.halves += 1
            if file.halves < 2:
                return
            self._sealing += 1
        self._intake.submit(self._seal, file)

    def _seal(self, file: FileBegin) -> None:
        try:
            if not self.over and self.version and file.model:
                seen = file.model.examine(self._examine) if self._examine else None
                self.version.seal(file.model, file.key, file.hashes.digests()["sha256"], self._details, seen)
        except HttpError as error:
            self.refuse(type(error)(f"{file.key.model_name!r} in the tar: {error}"))
        except Exception as error:  # noqa: BLE001  kept, and raised when the upload is finished
            self.refuse(error)
        with self._intake.changed:
            self._sealing -= 1
            self._intake.changed.notify_all()
        self.advance()
        if self.over:
            self._writes.put(self)      # discards the draft, which could not be done while this was going on

    def discard(self) -> None:
        with self._intake.changed:
            if self._sealing:
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
        if self.refusal:
            raise self.refusal
        return self._digests.digests()

    def settle(self) -> None:
        super().settle()
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: not self._sealing)
        self._writes.join()
