"""Reading what may be hostile: windows on a file, and what they unpack to, within one budget for all that is read."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_BYTES = 64 << 20        # read or unpacked for one file: under a second, and the pickles of models are smaller
MAX_STEPS = 500_000         # opcodes, keys and the like looked at for one file: a second of Python; models have 50,000
MAX_DICTIONARY = 128 << 20  # memory that an xz stream may ask for; its highest level asks for 65 MiB
BLOCK = 64 * 1024
NEAR = 1024                 # bytes read at once where most is skipped
UNPACKED = 8 * 1024         # bytes unpacked at once


class Malformed(Exception):
    """The bytes are not what they begin like."""


class BudgetExceeded(Exception):
    """The budget is used up; what was not looked at may be anything."""


@dataclass
class Budget:
    bytes: int = MAX_BYTES
    steps: int = MAX_STEPS

    def take(self, count: int) -> None:
        self.bytes -= count
        if self.bytes < 0:
            raise BudgetExceeded

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise BudgetExceeded


class Window(io.RawIOBase):
    """A part of a file, as a file of its own that can be read from any place."""

    def __init__(self, file: BinaryIO, start: int, length: int, budget: Budget) -> None:
        self._file, self._start, self.length, self.budget = file, start, length, budget
        self._at = 0

    def part(self, start: int, length: int) -> "Window":
        return Window(self._file, self._start + start, max(0, min(length, self.length - start)), self.budget)

    def stream(self) -> io.BufferedReader:
        return io.BufferedReader(self.part(0, self.length), NEAR)

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


class Packed:
    """What a window unpacks to; each stream of it begins at the beginning and goes forward only."""

    def __init__(self, window: Window, start: Callable[[], Any]) -> None:
        self._window, self._start, self.budget = window, start, window.budget

    def stream(self) -> io.BufferedReader:
        return io.BufferedReader(Unpacker(self._window, self._start), UNPACKED)


Part = Window | Packed


class Unpacker(io.RawIOBase):
    """Never unpacks more at a time than is asked for, so a bomb costs its budget and no memory."""

    def __init__(self, window: Window, start: Callable[[], Any]) -> None:
        self._packed, self._budget, self._start = window.stream(), window.budget, start
        self._machine, self._fed = start(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        done = 0
        while done < len(buffer) and (out := self._some(len(buffer) - done)):
            buffer[done:done + len(out)] = out
            done += len(out)
        return done

    def _some(self, most: int) -> bytes:
        out = b""
        while not out:
            if self._machine.eof:   # gzip, bzip2 and xz files may follow one another
                self._fed, self._machine = self._machine.unused_data, self._start()
            ended = False
            if not self._fed and getattr(self._machine, "needs_input", True):
                self._fed = self._packed.read(BLOCK)
                ended = not self._fed
            try:
                out = self._machine.decompress(self._fed, most)
            except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:    # bz2 has OSError for it
                raise Malformed(f"it does not unpack: {error}") from error
            self._fed = getattr(self._machine, "unconsumed_tail", b"")
            if ended:
                break
        self._budget.take(len(out))
        return out


UNPACKERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "zlib": lambda: zlib.decompressobj(15),
    "deflate": lambda: zlib.decompressobj(-15),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(memlimit=MAX_DICTIONARY),
}


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
