"""Where the bytes of uploads land: page-aligned slabs, from which they are hashed and written."""

import mmap
from collections import OrderedDict, deque
from collections.abc import Callable, Sized

from repository.filesystem import ALIGNMENT

SLAB = 2 << 20      # bytes of a slab, and so of a write: twice that is not faster, and exceeds the processor's caches
SLABS = 6           # for all uploads together, which is most of their memory: with 7, four at once were not faster
AHEAD = 4           # slabs of one upload that are hashed and written while it fills another: more were not faster
PLENTY = 3          # free slabs with which an upload gets one at once
ENOUGH = 128 << 10  # bytes after which it gets one otherwise: most slow uploads would keep theirs almost empty


class Slab:
    """Memory as direct I/O needs it. `map` can be searched; `memory` is a view of it."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, SLAB)
        self.memory = memoryview(self.map)


class Slabs:
    """The slabs of all uploads. Its methods, and those of each Landing, are called with one lock held."""

    def __init__(self) -> None:
        self._free = [Slab() for _ in range(SLABS)]
        self._holders: OrderedDict[Landing, None] = OrderedDict()   # in the order in which they last received bytes

    @property
    def available(self) -> bool:
        """Whether take() may return one."""
        return bool(self._free) or any(holder.rests for holder in self._holders)

    @property
    def plenty(self) -> bool:
        """Whether many are free."""
        return len(self._free) >= PLENTY

    @property
    def share(self) -> int:
        """Bytes that an upload may have handed over: together with the slab that it fills, its share of all slabs."""
        return SLAB * min(AHEAD, max(1, SLABS // max(1, len(self._holders)) - 1))

    def take(self, holder: "Landing") -> Slab | None:
        """A slab to fill, until leave(); None if all are in use. If need be, an upload that rests loses its own."""
        if not self._free and (resting := next((each for each in self._holders if each.rests), None)):
            resting.make_way()
        if not self._free:
            return None
        self._holders[holder] = None
        return self._free.pop()     # the one used last, which is in the processor's caches

    def used(self, holder: "Landing") -> None:
        self._holders.move_to_end(holder)

    def leave(self, holder: "Landing") -> None:
        del self._holders[holder]

    def give(self, slab: Slab) -> None:
        self._free.append(slab)


class Landing:
    """The bytes of one upload that have arrived and have not been handed over, and the marks between them.

    Unless many slabs are free, the first bytes are kept apart until they are ENOUGH, and so are those of an upload that
    has lost its slab to another. In a slab, a byte has the same position in its page as in the file, so that whole
    pages can be written past the page cache.
    `make_way` is called while this upload rests and another one needs its slab: it calls give_up() or leave().
    """

    def __init__(self, slabs: Slabs, make_way: Callable[[], None], at: int) -> None:
        self._slabs, self.make_way = slabs, make_way
        self._at = at           # where the next byte goes in the file
        self._slab: Slab | None = None
        self._begin = self._end = 0     # of what arrived in the slab since the last block
        self._apart = bytearray()
        self._since = 0         # bytes that arrived since it last had no slab
        self._blocks: list[memoryview | Sized] = []
        self.gathered = 0       # bytes that hand_over() would return
        self.full = False       # whether a slab was left, so that what is in it has to be handed over
        self.handed = 0         # bytes handed over so far
        self._done = 0          # bytes of them that were processed
        self._leaving: deque[tuple[int, Slab]] = deque()    # slabs, each free when so many bytes are processed
        self._filling = False   # whether room() was called, and received() not yet

    @property
    def fast(self) -> bool:
        """Whether bytes should be received in a slab."""
        return self._slab is not None or self._since >= ENOUGH or self._slabs.plenty

    @property
    def has_room(self) -> bool:
        """Whether there is a slab for them."""
        return self._slab is not None or self._slabs.available

    @property
    def idle(self) -> bool:
        """Whether all that was handed over is processed, and there is room for more; needs no lock."""
        return not self.behind and (self._slab is not None or self._since < ENOUGH)

    @property
    def rests(self) -> bool:
        """Whether its slab can be given to another upload."""
        return not self._filling and not self.behind

    def room(self) -> memoryview | None:
        """Where to receive the next bytes, then call received(); None if they have to go to put()."""
        if not (self.fast and self._has_slab()):
            return None
        assert self._slab
        self._filling = True
        return self._slab.memory[self._end:]

    def received(self, size: int) -> tuple[mmap.mmap, int, int] | None:
        """Ends what room() began: the slab, and where in it the received bytes begin and end; None if it was left."""
        self._filling = False
        return (self._slab.map, self._end, self._end + size) if self._slab else None

    def landed(self, size: int) -> None:
        """Takes so many of the bytes that were received; what follows them is overwritten."""
        self._end += size
        self._count(size)
        self._slabs.used(self)
        self._leave_if_full()

    def put(self, data: memoryview) -> None:
        """Takes bytes from elsewhere, which are copied."""
        while data:
            if self.fast and self._has_slab():
                assert self._slab
                part = data[:SLAB - self._end]
                self._slab.memory[self._end:self._end + len(part)] = part
                self.landed(len(part))
            else:
                part = data
                self._apart += part
                self._count(len(part))
            data = data[len(part):]

    def mark(self, mark: Sized) -> None:
        """Adds something that hand_over() returns between two blocks."""
        self._close()
        self._blocks.append(mark)
        self.gathered += len(mark)

    def begin_file(self) -> None:
        """Makes the next byte the first one of another file."""
        self._close()
        self._at = 0
        if self._slab:
            self._begin = self._end = self._end + -self._end % ALIGNMENT
            self._leave_if_full()

    def hand_over(self, all_of_it: bool) -> list[memoryview | Sized]:
        """The blocks and marks since the last call; their memory is not used again until advance() says so.

        In a slab, the last bytes are kept back if they do not fill a page, unless `all_of_it` is wanted.
        """
        kept = 0 if all_of_it or not self._slab else min(self._end % ALIGNMENT, self._end - self._begin)
        self._close(kept)
        blocks, self._blocks = self._blocks, []
        self.handed += self.gathered - kept
        self.gathered, self.full = kept, False
        return blocks

    def advance(self, done: int) -> None:
        """Frees the slabs that are not needed any more, now that so many bytes have been processed."""
        self._done = done
        while self._leaving and self._leaving[0][0] <= done:
            self._slabs.give(self._leaving.popleft()[1])

    @property
    def behind(self) -> int:
        """Bytes that were handed over and have not been processed."""
        return self.handed - self._done

    def end(self) -> None:
        """Leaves the slab, when everything was handed over and nothing more will arrive."""
        self.make_way = lambda: None    # the upload's method: without it, no cycle keeps the upload from being freed
        if self._slab:
            self.leave()
            self.advance(self._done)

    def leave(self) -> None:
        """Leaves the slab, which becomes free when what is in it has been handed over and processed."""
        assert self._slab
        self._close()
        self._leaving.append((self.handed + self.gathered, self._slab))
        self._slab, self._since, self.full = None, 0, True
        self._slabs.leave(self)

    def give_up(self) -> None:
        """Moves what is in the slab elsewhere, so that it becomes free at once."""
        assert self._slab
        self._apart = bytearray(self._slab.memory[self._begin:self._end])
        self._blocks = [memoryview(bytes(block)) if isinstance(block, memoryview) else block for block in self._blocks]
        self._slabs.leave(self)
        self._slabs.give(self._slab)
        self._slab, self._since = None, 0

    def _leave_if_full(self) -> None:
        if self._end == SLAB:
            self.leave()
            self._since = ENOUGH    # it continues in another one

    def _count(self, size: int) -> None:
        self._at += size
        self._since += size
        self.gathered += size

    def _has_slab(self) -> bool:
        if self._slab is None and (slab := self._slabs.take(self)):
            if len(self._apart) > SLAB // 2:
                self._close()
            self._slab = slab
            self._begin = (self._at - len(self._apart)) % ALIGNMENT
            self._end = self._begin + len(self._apart)
            slab.memory[self._begin:self._end] = self._apart
            self._apart = bytearray()
        return self._slab is not None

    def _close(self, kept: int = 0) -> None:
        """Makes a block of what arrived since the last one, except for the last `kept` bytes."""
        if self._slab and (end := self._end - kept) > self._begin:
            self._blocks.append(self._slab.memory[self._begin:end])
            self._begin = end
        elif self._apart:
            self._blocks.append(memoryview(self._apart))
            self._apart = bytearray()
