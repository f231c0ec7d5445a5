"""Reading what may be hostile: windows on a file, and what they unpack to, within one budget for all that is read."""

import bz2
import io
import lzma
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_BYTES = 96 << 20        # read or unpacked for one file: 0.3 s, and the pickles of models are smaller
OPCODE = 64                 # bytes that are read in the time of a simple opcode of a pickle
STEP = 7 * OPCODE           # and in that of a field, a key or a member
SLICE = 256 * 1024          # bytes, a millisecond, after which other threads are let in
PAUSE = 0.0001              # seconds for them
MAX_DICTIONARY = 128 << 20  # memory that an xz stream may ask for; its highest level asks for 65 MiB
BLOCK = 64 * 1024
NEAR = 2048                 # bytes read at once where most is skipped
UNPACKED = 8 * 1024         # bytes unpacked at once
PACKED = 16 * 1024          # bytes read at once to be unpacked


class Malformed(Exception):
    """The bytes are not what they begin like."""


class BudgetExceeded(Exception):
    """The budget is used up; what was not looked at may be anything."""


LARGE = threading.Lock()    # so that one large file is looked at after the other: two would take the memory of two


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

    def head(self, length: int) -> bytes:
        return self.at(0, length)

    def at(self, start: int, length: int) -> bytes:
        """These bytes, or fewer where the window ends; a `start` before it reads nothing."""
        return self.part(start, length).stream().read() if 0 <= start < self.length else b""

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


@dataclass
class Packed:
    """What a part of a file unpacks to; each stream of it begins at the beginning and goes forward only.

    `damaged` is True once a stream of it has come to bytes that do not unpack: it ends there.
    """

    part: "Part"
    kind: str
    damaged: bool = False

    @property
    def budget(self) -> Budget:
        return self.part.budget

    def stream(self, size: int = UNPACKED) -> io.BufferedReader:
        return io.BufferedReader(Unpacker(self), size)


Part = Window | Packed

# What begins to unpack one stream, and what a byte of it and a byte from it cost, where one that is stored costs 1.
UNPACKERS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "gzip": (lambda: zlib.decompressobj(31), 1, 1),     # stricter than the gzip module: the rest counts as damaged
    "zlib": (lambda: zlib.decompressobj(15), 1, 1),
    "deflate": (lambda: zlib.decompressobj(-15), 1, 1),
    "bzip2": (bz2.BZ2Decompressor, 22, 1),
    "xz": (lambda: lzma.LZMADecompressor(memlimit=MAX_DICTIONARY), 11, 1),
}
UNPACKING_ERRORS = (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError)  # bz2 has OSError for it


class Unpacker(io.RawIOBase):
    """Never unpacks more at a time than `UNPACKED`, so a bomb costs its budget and no memory.

    Bytes that do not unpack are its end. Up to there it gives all that any reader gets, however little that one asks
    for at a time: it begins anew then and goes the last steps byte by byte.
    """

    def __init__(self, packed: Packed) -> None:
        self._source, self._kind = packed, packed.kind
        self._start, self._cost, self._gain = UNPACKERS[packed.kind]
        self._calls, self._kept, self._bytewise = 0, b"", False
        self._begin()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        done = 0
        while done < len(buffer) and (self._kept or self._some()):
            out = self._kept[:len(buffer) - done]
            self._kept = self._kept[len(out):]
            buffer[done:done + len(out)] = out
            done += len(out)
        return done

    def _some(self) -> bool:
        """Whether there is more, which is in `_kept` then."""
        while not self._kept and not self._over:
            try:
                self._kept = self._call()
                self._calls += 1
            except UNPACKING_ERRORS:
                if self._bytewise:
                    return self._end()
                self._begin()
                for _ in range(self._calls):
                    self._call()
                self._bytewise = True
        return bool(self._kept)

    def _begin(self) -> None:
        self._packed, self._used, self._over = self._source.part.stream(PACKED), 0, False
        self._next()

    def _end(self, damaged: bool = True) -> bool:
        self._over = True
        self._source.damaged |= damaged
        return False

    def _call(self) -> bytes:
        """The next bytes, if any; raises UNPACKING_ERRORS."""
        machine, data, budget = self._machine, b"", self._source.budget
        budget.step()
        needs = getattr(machine, "needs_input", True)
        if needs:
            self._consume()
            data = self._packed.peek()[:1 if self._bytewise else PACKED]
            self._used = len(data)
        out: bytes = machine.decompress(data, 1 if self._bytewise else UNPACKED)
        budget.take(len(out) * self._gain)
        self._used -= len(machine.unused_data if machine.eof else getattr(machine, "unconsumed_tail", b""))
        if machine.eof:
            self._consume()
            self._follow()
        elif needs and not data and not out:
            self._end()
        return out

    def _consume(self) -> None:
        self._source.budget.take(len(self._packed.read(self._used)) * (self._cost - 1))
        self._used = 0

    def _follow(self) -> None:
        """At the end of a stream: gzip, bzip2 and xz files may follow one another."""
        while self._kind == "gzip" and self._skip_zeros():  # which the gzip module takes for padding
            pass
        if self._kind == "xz":
            self._skip_zeros(EMPTY_LZMA)
        if self._kind == "deflate" or not self._packed.peek():
            self._end(damaged=False)
        elif self._kind == "zlib":
            self._end()
        else:
            self._next()

    def _skip_zeros(self, size: int = 1) -> int:
        """Passes over what is buffered of zeros, in pieces of this size; says how many bytes."""
        data = self._packed.peek()
        return len(self._packed.read((len(data) - len(data.lstrip(b"\0"))) // size * size))

    def _next(self) -> None:
        self._source.budget.step(NEXT)
        self._machine = self._start()
        head = self._packed.read(HEADERS.get(self._kind, 0))
        if self._kind == "gzip" and len(head) == HEADERS["gzip"]:   # the gzip module overlooks flags without a meaning
            self._source.damaged |= head[3] > 31
            head = head[:3] + bytes([head[3] & 31]) + head[4:]
        elif is_lzma(head):     # a dictionary larger than all that is unpacked is never filled
            size = min(int.from_bytes(head[1:5], "little"), MAX_BYTES)
            head = head[:1] + size.to_bytes(4, "little") + head[5:]
        try:
            if head:
                self._machine.decompress(head)
        except UNPACKING_ERRORS:
            self._end()


NEXT = 8            # steps that the beginning of a stream costs
EMPTY_LZMA = 18     # zeros that are a whole .lzma file of no bytes, so that many of them are many
LZMA_HEADER = 13    # bytes: properties, size of the dictionary, size of what is packed
HEADERS = {"gzip": 10, "xz": LZMA_HEADER}   # bytes that are looked at before they are unpacked


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
