"""What the index knew when it was last saved, as text in `.staging/index`. After a start, lists use what they need.

The files on disk take precedence over it. A directory in it is checked like one that this process has seen: by its
state and, for each line, by the state of the two files that it was read from. It may be deleted at any time.
"""

import json
import sys
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path

from repository import indexed, metadata, model
from repository.indexed import NO_LINES, PAUSE, Directory, State
from repository.model import NAME, Names

TEXT_LINES = 16 << 20   # bytes of the lines of one directory that are saved, some 20,000: reading them takes 60 ms
PACKED_BLOCK = 64 * 1024    # bytes of text packed at once, some 20 versions of 5 models: lists wait for one
MAX_BLOCK = 64 << 20    # bytes of text in a block; more means that it is damaged
DAMAGED = (zlib.error, ValueError, TypeError, RecursionError)   # what reading a damaged block raises
AFTER_NAMES = "~"       # sorts after every name
MAX_NAMES = 4096        # bytes at the beginning of a block that are enough for the names of its first directory


class Recalled:
    """Packed blocks made by blocks_of(). A block is read when one of its directories is needed.

    `models` is the number of all models, when the top directory was in the state `top`; None if nothing is recalled.
    If another version of this server has written the blocks, only that is used.
    """

    def __init__(self, blocks: Iterable[bytes] = ()) -> None:
        self._firsts, self._blocks = list[Names](), list[bytes]()   # the names of the first directory in each block
        self._told = set[int]()     # the numbers of blocks
        self.models: int | None = None
        self.top: State | None = None
        each = iter(blocks)
        with suppress(*DAMAGED):    # what follows damage is left out
            by, self.models, self.top = heading_in(unpacked(next(each, b"")))
            for block in each if by == written_by() else ():
                self._firsts.append(first_in(block))
                self._blocks.append(block)

    @property
    def is_empty(self) -> bool:
        return not self._blocks

    def around(self, names: Names) -> Iterator[tuple[Names, Directory]]:
        """The directories in the block in which these names would be; nothing if it was read before."""
        number = bisect_right(self._firsts, names) - 1
        if number >= 0 and number not in self._told:
            self._told.add(number)
            yield from self._directories_in(number)

    def models_in(self, names: Names) -> int:
        """The number of models that were below these names, in all blocks."""
        begin, end = bisect_right(self._firsts, names) - 1, bisect_right(self._firsts, (*names, AFTER_NAMES))
        return sum(len(directory.models) for number in range(max(begin, 0), end)
                   for place, directory in self._directories_in(number) if place[: len(names)] == names)

    def _directories_in(self, number: int) -> Iterator[tuple[Names, Directory]]:
        with suppress(*DAMAGED):
            yield from directories_in(unpacked(self._blocks[number]))


@dataclass
class Remembered:
    """How many models there were before the start, and how many of them in versions that have changed since.

    If nothing but the number is recalled, it is good until something changes.
    """

    models: int
    recalled: Recalled
    changed: dict[Names, int] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return not (self.recalled.is_empty and self.changed)

    def note(self, version: Names) -> None:
        """Call it when a version has changed. What lists have seen of it since the start does not count."""
        if version not in self.changed:
            self.changed[version] = self.recalled.models_in(version)


def packed(text: bytes) -> bytes:
    return zlib.compress(text, 1)


def unpacked(block: bytes) -> bytes:
    """The text of a block; raises zlib.error or ValueError if it is damaged."""
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(block, MAX_BLOCK)
    if not unpacking.eof:
        raise ValueError("it has no end, where there is a checksum")
    return text


@cache
def written_by() -> str:
    """Differs between versions of Python, and of the modules that decide what a line contains."""
    sources = [Path(module.__file__ or "").read_bytes() for module in (metadata, model, indexed, sys.modules[__name__])]
    return f"{zlib.crc32(b''.join(sources)):08x} {sys.version}"


def heading(models: int, top: State) -> bytes:
    """The text of the first block: how many models there are, and the state of the top directory."""
    return json.dumps([written_by(), models, top]).encode()


def heading_in(text: bytes) -> tuple[str, int, State]:
    """The writer of a heading(), and what that was given; raises ValueError or TypeError for any other text."""
    by, models, top = json.loads(text)
    return str(by), int(models), State(*map(int, top))


def blocks_of(known: Mapping[Names, Directory], lock: AbstractContextManager[object], models: int, top: State,
              meanwhile: Callable[[], object]) -> Iterator[bytes]:
    """Everything that is known, in the order of the directories' names, in packed blocks to be read independently.

    `lock` is held while a directory is read; `meanwhile` is called between two blocks, of which there may be many.
    """
    yield packed(heading(models, top))
    texts, size = list[bytes](), 0
    for names, directory in in_order(known):
        if directory.state:
            with lock:
                texts.append(text_of(names, directory))
            size += len(texts[-1])
        if size > PACKED_BLOCK:
            yield packed(b"".join(texts))
            texts, size = [], 0
            time.sleep(PAUSE)
            meanwhile()
    if texts:
        yield packed(b"".join(texts))


def in_order(known: Mapping[Names, Directory], names: Names = ()) -> Iterator[tuple[Names, Directory]]:
    """The directories known at these names and below them, in the order of their names."""
    if directory := known.get(names):
        yield names, directory
        for name in directory.folders:
            yield from in_order(known, (*names, name))


def text_of(names: Names, directory: Directory) -> bytes:
    """A directory, as a line of JSON followed by the lines of its models."""
    lines = directory.lines if directory.held <= TEXT_LINES else NO_LINES
    models = None if directory.models is directory.children else directory.models
    head = [names, directory.state, directory.stamp, directory.children, models, directory.size, directory.fingerprint,
            [[name, directory.states[name]] for name in lines]]
    return b"\n".join((json.dumps(head).encode(), *lines.values(), b""))


def first_in(block: bytes) -> Names:
    """The names of the first directory in a packed block; raises zlib.error, ValueError or TypeError."""
    beginning = zlib.decompressobj().decompress(block, MAX_NAMES)
    names, _ = json.JSONDecoder().raw_decode(beginning.decode(errors="replace"), 1)
    return tuple(map(str, names))


def directories_in(text: bytes) -> Iterator[tuple[Names, Directory]]:
    """The directories in texts that follow one another; raises ValueError or TypeError if these are something else."""
    texts = iter(text.split(b"\n"))
    for head in texts:
        if not head:
            return
        names, state, stamp, children, models, size, fingerprint, states = json.loads(head)
        if not all(map(NAME.fullmatch, (*names, *children))):
            raise ValueError("there are names in it that no directory has")
        children = tuple(map(sys.intern, children))
        directory = Directory(
            children, children if models is None else tuple(map(sys.intern, models)), int(size), int(fingerprint),
            State(*map(int, state)), int(stamp))
        if states:
            of_lines = dict(states)
            directory.hold(dict(zip(of_lines, islice(texts, len(of_lines)), strict=True)), of_lines)
        yield tuple(map(sys.intern, names)), directory
