"""How models lie in a tar: which bytes are where, from their names and sizes alone. Pure functions, no files.

An archive is a header, the bytes and the padding of each member, and two empty blocks (POSIX.1-2017, pax, "ustar
Interchange Format"). Nothing in it depends on the server or the time, so the same models give the same bytes.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from tarfile import BLOCKSIZE, LENGTH_NAME, PAX_FORMAT, TarInfo
from typing import NamedTuple

END = 2 * BLOCKSIZE     # bytes of zeros, which tell that nothing follows
LARGE = 8 << 30         # bytes: from here on a size takes more than the 11 octal digits of a plain header
MODE = 0o644


class Member(NamedTuple):
    """A file in a tar: its path, its size in bytes, and the time it shows, in seconds since 1970."""

    name: str
    size: int
    mtime: int


class Part(NamedTuple):
    """Bytes `start` to `stop` of the member with this number."""

    number: int
    start: int
    stop: int


def header_of(member: Member) -> bytes:
    """What stands before the bytes of a file: one block, or three where it takes a pax header."""
    info = TarInfo(member.name)
    info.size, info.mtime, info.mode = member.size, member.mtime, MODE
    return info.tobuf(PAX_FORMAT, "ascii")


def header_size(member: Member) -> int:
    """len(header_of()), mostly without making it: that would take a third of a second for 10,000 files."""
    plain = len(member.name) <= LENGTH_NAME and member.size < LARGE and 0 <= member.mtime < LARGE
    return BLOCKSIZE if plain else len(header_of(member))


class Layout:
    """The bytes of a tar with these members, in this order; `size` says how many there are."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        lengths = (header_size(member) + member.size + padding(member.size) for member in members)
        self._starts = list(accumulate(lengths, initial=0))
        self.size = self._starts[-1] + END

    def pieces(self, start: int, stop: int) -> Iterator[bytes | Part]:
        """The bytes from `start` to `stop`: those of the archive itself, and which of a member belong between them."""
        for number in range(max(0, bisect_right(self._starts, start) - 1), len(self._members)):
            first, member = self._starts[number], self._members[number]
            if first >= stop:
                return
            header = header_of(member)
            begins = first + len(header)
            ends = begins + member.size
            yield header[max(0, start - first) : max(0, stop - first)]
            yield Part(number, clamp(start - begins, member.size), clamp(stop - begins, member.size))
            yield bytes(clamp(stop - ends, padding(member.size)) - clamp(start - ends, padding(member.size)))
        yield bytes(clamp(stop - self._starts[-1], END) - clamp(start - self._starts[-1], END))


def padding(size: int) -> int:
    """Bytes behind so many, up to the next block."""
    return -size % BLOCKSIZE


def clamp(position: int, length: int) -> int:
    return max(0, min(position, length))
