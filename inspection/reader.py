"""Reading what may be hostile: windows on a file, and what they unpack to, within one budget for all that is read."""

import bz2
import io
import lzma
import math
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, BinaryIO

MAX_BYTES = 96 << 20        # read or unpacked for one file: 0.3 s, and the pickles of models are smaller
OPCODE = 64                 # bytes that are read in the time of a simple opcode of a pickle
STEP = 7 * OPCODE           # and in that of a field, a key or a member
SLICE = 256 * 1024          # bytes, a millisecond, after which other threads are let in
PAUSE = 0.0001              # seconds for them
MAX_DICTIONARY = 128 << 20  # memory that an xz stream may ask for; its highest level asks for 65 MiB
BLOCK = 64 * 1024
NEAR = 2048                 # bytes read at once where most is skipped
UNPACKED = 8 * 1024         # bytes unpacked at once, so a bomb costs its budget and no memory
PACKED = 16 * 1024          # bytes read at once to be unpacked
BEGIN = 8                   # steps that the beginning of a packed stream costs
EMPTY_LZMA = 18             # zeros that are a whole .lzma file of no bytes, so that many of them are many
LZMA_HEADER = 13            # bytes: properties, size of the dictionary, size of what is packed
GZIP_HEADER = 10            # bytes, before the optional fields
LARGE = threading.Lock()    # so that one large file is looked at after the other: two would take the memory of two


class Malformed(Exception):
    """The bytes are not what they begin like."""


class BudgetExceeded(Exception):
    """The budget is used up; what was not looked at may be anything."""


class Budget:
    """What one file may cost, in bytes; as a context, in which a large file has its turn and lets other threads in."""

    def __init__(self, left: int = MAX_BYTES) -> None:
        self._left, self._slice, self._large = left, SLICE, False

    def take(self, count: int) -> None:
        self._left -= count
        self._slice -= count
        if self._left < 0:
            raise BudgetExceeded
        if self._slice < 0:
            self._slice, self._large = SLICE, self._large or LARGE.acquire()
            time.sleep(PAUSE)

    def step(self, count: int = 1) -> None:
        self.take(count * STEP)

    def __enter__(self) -> "Budget":
        return self

    def __exit__(self, *_: object) -> None:
        if self._large:
            LARGE.release()


class Window(io.RawIOBase):
    """A part of a file, as a file of its own that can be read from any place."""

    def __init__(self, file: BinaryIO, start: int, length: int, budget: Budget) -> None:
        self._file, self._start, self.length, self.budget = file, start, length, budget
        self._at = 0

    def part(self, start: int, length: int) -> "Window":
        return Window(self._file, self._start + start, max(0, min(length, self.length - start)), self.budget)

    def stream(self, size: int = NEAR) -> io.BufferedReader:
        return io.BufferedReader(self.part(0, self.length), size)

    def at(self, start: int, length: int) -> bytes:
        """These bytes, or fewer where the window ends; a `start` before it reads nothing."""
        return self.part(start, length).stream().read() if 0 <= start < self.length else b""

    def numbers(self, code: str, at: int = 0) -> tuple[Any, ...]:
        """What struct unpacks here; raises Malformed where the file ends before."""
        data = self.at(at, struct.calcsize(code))
        if len(data) < struct.calcsize(code):
            raise Malformed("it ends in the middle, or points beyond its end")
        return struct.unpack(code, data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.length - self._at)
        if wanted <= 0:
            return 0    # a file cannot be asked for places that no file has
        self.budget.take(wanted)
        self._file.seek(self._start + self._at)
        data = self._file.read(wanted)
        buffer[:len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.length)[whence]
        return self._at


class Blocks(io.RawIOBase):
    """Blocks of bytes, as a file that goes forward only."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._kept = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while len(self._kept) < len(buffer) and (block := next(self._blocks, None)) is not None:
            self._kept += block
        out, self._kept = self._kept[:len(buffer)], self._kept[len(buffer):]
        buffer[:len(out)] = out
        return len(out)


# What begins to unpack one stream, and what a byte of it costs, where one that is stored costs 1.
UNPACKERS: dict[str, tuple[Callable[[], Any], int]] = {
    "gzip": (lambda: zlib.decompressobj(31), 1), "zlib": (lambda: zlib.decompressobj(15), 1),
    "deflate": (lambda: zlib.decompressobj(-15), 1), "bzip2": (bz2.BZ2Decompressor, 22),
    "xz": (lambda: lzma.LZMADecompressor(memlimit=MAX_DICTIONARY), 11)}


class Packed:
    """What a part of a file unpacks to; each stream of it begins at the beginning and goes forward only.

    `damaged` is True once a stream of it has come to bytes that do not unpack, where it ends, or to a header that only
    some readers take. Up to there it gives all that any reader gets, however little that one asks for at a time.
    """

    def __init__(self, part: "Part", kind: str) -> None:
        self.part, self.kind, self.damaged = part, kind, False
        self.budget: Budget = part.budget

    def stream(self, size: int = UNPACKED) -> io.BufferedReader:
        return io.BufferedReader(Blocks(self._all()), size)

    def _all(self) -> Iterator[bytes]:
        calls = 0
        with suppress(Malformed):
            for block in self._calls():
                calls += 1
                yield block
            return
        self.damaged = True
        with suppress(Malformed):   # anew, and from the last call that went well on byte by byte
            yield from islice(self._calls(calls), calls, None)

    def _calls(self, quick: float = math.inf) -> Iterator[bytes]:
        """What each call of a decompressor gives, if anything, after `quick` calls byte by byte; raises Malformed."""
        source, cost, data, more = self.part.stream(PACKED), UNPACKERS[self.kind][1], b"", True
        while more:
            machine, used, quick = UNPACKERS[self.kind][0](), 0, quick - 1
            yield unpack(machine, self._header(source), UNPACKED)
            while not machine.eof:
                self.budget.step()
                quick -= 1
                if needed := getattr(machine, "needs_input", True):
                    self.budget.take(len(source.read(used)) * (cost - 1))
                    data = source.peek()[:PACKED if quick >= 0 else 1]
                    used = len(data)
                out = unpack(machine, data if needed else b"", UNPACKED if quick >= 0 else 1)
                self.budget.take(len(out))
                used -= len(machine.unused_data if machine.eof else getattr(machine, "unconsumed_tail", b""))
                if needed and not data and not out:
                    self.damaged = True     # it ends in the middle
                    return
                yield out
            source.read(used)
            more = self._follows(source)

    def _header(self, source: io.BufferedReader) -> bytes:
        """What a stream begins with, made a header that is taken; empty where it can stay as it is."""
        self.budget.step(BEGIN)
        head = b""
        if self.kind == "gzip":
            head, whole = gzip_header(source)
            self.damaged |= not whole
        elif self.kind == "xz" and is_lzma(head := source.read(LZMA_HEADER)):
            # A dictionary larger than all that is unpacked is never filled.
            head = head[:1] + min(int.from_bytes(head[1:5], "little"), MAX_BYTES).to_bytes(4, "little") + head[5:]
        return head

    def _follows(self, source: io.BufferedReader) -> bool:
        """Whether there is another stream: gzip, bzip2 and xz files may follow one another."""
        if piece := {"gzip": 1, "xz": EMPTY_LZMA}.get(self.kind):   # zeros, which the gzip module takes for padding
            while zeros := (len(data := source.peek()) - len(data.lstrip(b"\0"))) // piece * piece:
                source.read(zeros)
        if self.kind in ("deflate", "zlib"):
            self.damaged |= self.kind == "zlib" and bool(source.peek())
            return False
        return bool(source.peek())


Part = Window | Packed


def unpack(machine: Any, data: bytes, size: int) -> bytes:
    """The next bytes; raises Malformed for what does not unpack."""
    try:
        return bytes(machine.decompress(data, size))
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:    # bz2 has OSError for it
        raise Malformed("it does not unpack") from error


def gzip_header(source: io.BufferedReader) -> tuple[bytes, bool]:
    """Passes over a header as leniently as the gzip module (RFC 1952 2.3): gives one without optional fields.

    The other value is False where it has flags without a meaning, or a wrong check of its own.
    """
    head = source.read(GZIP_HEADER)
    flags, check = (head[3] if len(head) == GZIP_HEADER else 0), zlib.crc32(head)
    if flags & 4:
        length = source.read(2)
        check = zlib.crc32(length + source.read(int.from_bytes(length, "little")), check)
    for flag in 8, 16:      # a name and a comment, each with a zero at its end
        ended = not flags & flag
        while not ended and (data := source.peek()):
            ended = b"\0" in data
            check = zlib.crc32(source.read(data.index(b"\0") + 1 if ended else len(data)), check)
    right = (check & 0xFFFF).to_bytes(2, "little")
    return head[:3] + bytes(7), flags < 32 and (not flags & 2 or source.read(2) == right)


def is_lzma(head: bytes) -> bool:
    """Whether this begins as liblzma takes for the older format of .lzma files, which has no signature."""
    size, length = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:13], "little")
    top = 1 << max(0, size - 1).bit_length()
    return (len(head) >= LZMA_HEADER and head[0] < 225 and size in (0, top, top * 3 // 4, (1 << 32) - 1)
            and (length < 1 << 38 or length == (1 << 64) - 1))


def exactly(stream: io.BufferedReader, count: int) -> bytes:
    """The next bytes, of which there may be a few only; raises Malformed when it ends before."""
    data = stream.read(count)
    if len(data) < count:
        raise Malformed("it ends in the middle")
    return data


def skip(stream: io.BufferedReader, count: int) -> None:
    """Goes on so many bytes without reading them where that can be; the end of it shows with the next read."""
    if stream.seekable():
        if count >> 62:
            raise Malformed("it tells of more bytes than a file can have")
        stream.seek(count, io.SEEK_CUR)
        return
    while count > 0 and (data := stream.read(min(count, BLOCK))):
        count -= len(data)


def clip(text: str, length: int) -> str:
    """At most so many characters, each of them one that JSON in UTF-8 can hold."""
    return (text if len(text) <= length else text[:length - 1] + "…").encode("utf-8", "replace").decode()
