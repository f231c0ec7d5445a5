"""Reading what may be hostile: windows on a file, and what they unpack to, within one budget for all that is read."""

import bz2
import lzma
import math
import re
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from typing import Any, BinaryIO

MAX_BYTES = 96 << 20        # read or unpacked for one file: 0.3 s, and the pickles of models are smaller
FOR_DETAILS = 8 << 20       # of these, where looking for pickles took the rest
PER_SECOND = 2 * MAX_BYTES  # taken for unpacking of any kind: a few bytes can ask for new tables or a new dictionary
STEP = 448                  # bytes that are unpacked in the time of a few lines of Python, about a microsecond
LETTER = 4                  # and of a name, as it may be no UTF-8
READ = 512                  # and in that of a read, however short it is
SLICE = 256 * 1024          # bytes, a millisecond, after which other threads are let in
PAUSE = 0.0001              # seconds for them
MAX_DICTIONARY = 128 << 20  # memory that an xz stream may ask for; its highest level asks for 65 MiB
READ_BLOCK = 64 * 1024      # bytes of one read, at most
NEAR = 2048                 # bytes read at once where most is skipped
UNPACKED = 8 * 1024         # bytes unpacked at once, so a bomb costs its budget and no memory
PACKED = 16 * 1024          # bytes read at once to be unpacked
BEGIN = 12                  # steps that the beginning of a packed stream costs
PADDING = {"gzip": 1, "xz": 18}     # zeros behind a stream: the gzip module takes any, and 18 are an empty .lzma file
GZIP_HEADER = 10            # bytes, before the optional fields
# What liblzma takes for the older format of .lzma files, which has no signature: properties, size of the dictionary
# (2^n, 2^n + 2^(n-1)), size of what is packed.
LZMA = re.compile(rb"([\0-\xe0])(%b)(.{4}[\0-\x3f]\0{3}|\xff{8})" % b"|".join(
    re.escape(size.to_bytes(4, "little")) for n in range(32) for size in (0, 1 << n, (3 << n) // 2, (1 << 32) - 1)),
    re.DOTALL)
LARGE = threading.Lock()    # so that one large file is looked at after the other: two would take the memory of two


class Malformed(Exception):
    """The bytes are not what they begin like."""


class BudgetExceeded(Exception):
    """The budget is used up; what was not looked at may be anything."""


class Budget(ExitStack[None]):
    """What one file may cost, in bytes; as a context, in which a large file has its turn and lets other threads in."""

    def __init__(self) -> None:
        super().__init__()
        self._left, self._slice, self._large = MAX_BYTES, SLICE, False

    def refill(self) -> None:
        """Lets the details be read, whatever was spent before."""
        self._left = max(self._left, FOR_DETAILS)

    def take(self, count: int) -> None:
        self._left -= count
        self._slice -= count
        if self._left < 0:
            raise BudgetExceeded
        if self._slice < 0:
            self._slice, self._large = SLICE, self._large or self.enter_context(LARGE)
            time.sleep(PAUSE)

    def step(self, count: int = 1) -> None:
        self.take(count * STEP)


class Window:
    """A part of a file, whose bytes are read from any place."""

    def __init__(self, file: BinaryIO, start: int, length: int, budget: Budget) -> None:
        self._file, self._start, self.length, self.budget = file, start, length, budget

    def part(self, start: int, length: int) -> "Window":
        return Window(self._file, self._start + start, max(0, min(length, self.length - start)), self.budget)

    def at(self, start: int, length: int) -> bytes:
        """These bytes, or fewer where the window ends; a `start` before it reads nothing."""
        length = min(length, self.length - start)
        if start < 0 or length <= 0:
            return b""
        self.budget.take(READ + length)
        self._file.seek(self._start + start)
        return self._file.read(length)

    def numbers(self, code: str, at: int = 0) -> tuple[Any, ...]:
        """What struct unpacks here; raises Malformed where the file ends before."""
        data = self.at(at, struct.calcsize(code))
        if len(data) < struct.calcsize(code):
            raise Malformed("it ends in the middle, or points beyond its end")
        return struct.unpack(code, data)

    def blocks(self, at: int = 0) -> Iterator[bytes]:
        """All bytes from here on: few at first, as there may be a leap ahead."""
        size = NEAR
        while data := self.at(at, size):
            yield data
            at, size = at + len(data), min(2 * size, READ_BLOCK)

    def stream(self) -> "Stream":
        return Stream(self)


class Stream:
    """The bytes of a part in their order. Those in `data` from `at` on are here already."""

    def __init__(self, part: "Part") -> None:
        self.part, self.budget, self.data, self.at = part, part.budget, b"", 0
        self._blocks, self._read = part.blocks(), 0

    def tell(self) -> int:
        return self._read - len(self.data) + self.at

    def ahead(self, count: int) -> bytes:
        """The next bytes, which stay; fewer where it ends."""
        if (here := len(self.data) - self.at) < count:
            pieces = [self.data[self.at:]]
            while here < count and (block := next(self._blocks, None)) is not None:
                pieces.append(block)
                here, self._read = here + len(block), self._read + len(block)
            self.data, self.at = b"".join(pieces), 0
        return self.data[self.at:self.at + count]

    def read(self, count: int) -> bytes:
        """The next bytes, or fewer where it ends."""
        data = self.ahead(count)
        self.at += len(data)
        return data

    def exactly(self, count: int) -> bytes:
        """The next bytes, of which there may be a few only; raises Malformed when it ends before."""
        if len(data := self.read(count)) < count:
            raise Malformed("it ends in the middle")
        return data

    def until(self, end: bytes) -> Iterator[bytes]:
        """What comes up to a byte like `end` and with it, or to the end of all, in pieces."""
        found = 0
        while not found and self.ahead(1):
            found = self.data.find(end, self.at) + 1
            piece = self.data[self.at:found or None]
            self.at += len(piece)
            yield piece

    def line(self, kept: int) -> bytes:
        """The next line up to its end, or what is kept of it, but its last byte."""
        line = b""
        for piece in self.until(b"\n"):
            line = (line + piece)[:kept + 1]
        return line[:-1]

    def skip(self, count: int) -> None:
        """Goes on so many bytes, without reading them where that can be; the end shows with the next read."""
        missing = self.at + count - len(self.data)
        if missing <= 0:
            self.at += count
        elif isinstance(self.part, Window):
            self.data, self.at, self._read = b"", 0, self._read + missing
            self._blocks = self.part.blocks(self._read)
        else:
            self.at = len(self.data)
            while missing > 0 and (data := self.read(min(missing, READ_BLOCK))):
                missing -= len(data)


# What begins to unpack one stream, and what a byte of it and one that comes out cost, where one that is stored costs 1.
UNPACKERS: dict[str, tuple[Callable[[], Any], float, int]] = {
    "gzip": (lambda: zlib.decompressobj(31), 1.5, 1), "zlib": (lambda: zlib.decompressobj(15), 1.5, 1),
    "deflate": (lambda: zlib.decompressobj(-15), 1.5, 1), "bzip2": (bz2.BZ2Decompressor, 22, 4),
    "bzip2 in a zip": (bz2.BZ2Decompressor, 22, 4),     # which is one stream
    "xz": (lambda: lzma.LZMADecompressor(memlimit=MAX_DICTIONARY), 12, 2)}


class Packed:
    """What a part of a file unpacks to; each stream of it begins at the beginning and goes forward only.

    It ends, `damaged`, with bytes that do not unpack, and gives all that any reader gets up to there. A header that
    only some readers take is damage, too.
    """

    def __init__(self, part: "Part", kind: str, start: int = 0) -> None:
        self.part, self.kind, self.start, self.damaged = part, kind, start, False
        self.budget: Budget = part.budget

    def stream(self) -> Stream:
        return Stream(self)

    def blocks(self) -> Iterator[bytes]:
        calls = 0
        try:
            for block in self._calls():
                calls += 1
                yield block
        except Malformed:
            self.damaged = True
            with suppress(Malformed):   # anew, and from the last call that went well on byte by byte
                yield from islice(self._calls(calls), calls, None)

    def _calls(self, quick: float = math.inf) -> Iterator[bytes]:
        """What each call of a decompressor gives, if anything, after `quick` calls byte by byte; raises Malformed."""
        source, (begin, cost, gained), more = self.part.stream(), UNPACKERS[self.kind], True
        source.skip(self.start)
        while more:
            self.budget.step(BEGIN)
            machine, data = begin(), b""
            if self.kind == "gzip":
                data, whole = gzip_header(source)
                self.damaged |= not whole
            elif self.kind == "xz" and (header := LZMA.match(source.ahead(13))):
                source.skip(len(header[0]))     # and of a dictionary larger than all bytes no more is filled
                data = header[1] + min(int.from_bytes(header[2], "little"), MAX_BYTES).to_bytes(4, "little") + header[3]
            while not machine.eof:
                self.budget.step()
                quick -= 1
                if (hungry := getattr(machine, "needs_input", True)) and source.ahead(1):
                    data += source.read(min(PACKED, len(source.data) - source.at) if quick >= 0 else 1)
                begun = time.thread_time()
                try:
                    out = machine.decompress(data, UNPACKED if quick >= 0 else 1)
                except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:    # bz2 has OSError for it
                    raise Malformed("it does not unpack") from error
                source.at -= len(machine.unused_data if machine.eof else getattr(machine, "unconsumed_tail", b""))
                self.budget.take(int(max(gained * len(out) + len(data) * (cost - 1),
                                         (time.thread_time() - begun) * PER_SECOND)))
                if hungry and not data and not out:
                    self.damaged = True     # it ends in the middle
                    return
                yield out
                data = b""
            piece = PADDING.get(self.kind)
            while piece and (zeros := (len(ahead := source.ahead(PACKED)) - len(ahead.lstrip(b"\0"))) // piece * piece):
                source.skip(zeros)
                self.budget.take(zeros)
            self.damaged |= self.kind == "zlib" and bool(source.ahead(1))
            more = self.kind in ("gzip", "bzip2", "xz") and bool(source.ahead(1))   # which may follow one another


Part = Window | Packed


def gzip_header(source: Stream) -> tuple[bytes, bool]:
    """Passes over a header as leniently as the gzip module (RFC 1952 2.3): gives one without optional fields.

    The other value is False where it has flags without a meaning, or a wrong check of its own.
    """
    head = source.read(GZIP_HEADER)
    flags, check = (head[3] if len(head) == GZIP_HEADER else 0), zlib.crc32(head)
    if flags & 4:
        length = source.read(2)
        check = zlib.crc32(length + source.read(int.from_bytes(length, "little")), check)
    for flag in 8, 16:      # a name and a comment, each with a zero at its end
        for piece in source.until(b"\0") if flags & flag else ():
            check = zlib.crc32(piece, check)
    right = (check & 0xFFFF).to_bytes(2, "little")
    return head[:3] + bytes(7), flags < 32 and (not flags & 2 or source.read(2) == right)


def clip(text: str, length: int) -> str:
    """At most so many characters, each of them one that JSON in UTF-8 can hold."""
    return (text if len(text) <= length else text[:length - 1] + "…").encode("utf-8", "replace").decode()
