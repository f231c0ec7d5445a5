"""Where a file may have pickles: at its beginning, packed, in the members of a zip, in numpy's arrays of objects."""

import io
import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from inspection import pickles
from inspection.pickles import Found
from inspection.reader import UNPACKERS, BudgetExceeded, Malformed, Packed, Part, Window, exactly

HEAD = 512              # bytes that tell what begins here; of a tar they are its first header
MAX_DIRECTORY = 8 << 20     # bytes of a zip's central directory: 100,000 members, a shard of a model has 1,000
MEMBER = 10             # steps that a member costs
MAX_DEPTH = 3           # containers in containers
TAIL = (1 << 16) + 22 + 20 + 56     # a zip's last records with the longest comment
MAX_NPY_HEADER = 64 * 1024  # numpy itself reads 10,000 characters

# What begins how. What is in the sealed ones is not looked at, so nobody knows what it holds.
SIGNATURES = ((b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"), (b"\x1f\x8b\x08", "gzip"), (b"BZh", "bzip2"),
              (b"\xfd7zXZ\0", "xz"), (b"\x5d\0\0", "xz"), (b"\x78\x01", "zlib"), (b"\x78\x5e", "zlib"),
              (b"\x78\x9c", "zlib"), (b"\x78\xda", "zlib"), (b"\x93NUMPY", "npy"), (b"7z\xbc\xaf\x27\x1c", "7z"),
              (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x04\x22\x4d\x18", "lz4"), (b"Rar!\x1a\x07", "rar"))
SEALED = ("7z", "zstd", "lz4", "rar", "tar")
METHODS = {0: "", 8: "deflate", 12: "bzip2"}    # of a zip's members
NUMERIC = re.compile(   # to the letter as numpy writes it: a dict may name a key twice
    rb"\{'descr': '([<>|=]?[biufcSU][0-9]{1,9})', 'fortran_order': (?:True|False), 'shape': \(([0-9, ]*)\), \} *\n?")


@dataclass
class Contents:
    """What was found in a file: the container that it is, the names in a zip, what it would unpickle."""

    kind: str = ""
    members: list["Member"] = field(default_factory=list)
    found: Found = field(default_factory=Found)


class Member(NamedTuple):
    """An entry of a zip's central directory, which is what torch and zipfile go by."""

    name: str
    method: int
    encrypted: bool
    packed: int
    size: int
    offset: int


def kind_of(head: bytes) -> str:
    for signature, kind in SIGNATURES:
        if head.startswith(signature):
            return kind
    return "tar" if is_tar_header(head) else ""


def is_tar_header(head: bytes) -> bool:
    """By its checksum, because the oldest tars have no signature."""
    stored = head[148:156].strip(b" \0")
    if len(head) < HEAD or not re.fullmatch(rb"[0-7]{1,7}", stored):
        return False
    return int(stored, 8) == sum(head[:148]) + 8 * ord(" ") + sum(head[156:])


def contents(window: Window) -> Contents:
    """What is in a file, as far as the budget goes."""
    result = Contents(kind_of(window.head(HEAD)))
    try:
        result.kind = search(window, result.found, 0, result.members)
    except Malformed:
        result.kind = ""
    except BudgetExceeded:
        result.found.complete = False
    return result


def search(part: Part, found: Found, depth: int, members: list[Member]) -> str:
    """Adds to `found` what unpickling this, or what is in it, would import, and the members of a zip to `members`.

    Says what container it is. Raises BudgetExceeded, and Malformed for what does not unpack.
    """
    stream = part.stream()
    head = stream.peek(HEAD)[:HEAD]
    kind = kind_of(head)
    if kind in SEALED or (kind and depth == MAX_DEPTH) or (kind in ("zip", *UNPACKERS) and isinstance(part, Packed)):
        found.complete = False
        return kind
    if kind == "npy":
        if not NUMERIC.fullmatch(array_header(stream)):
            pickles.look(stream, found, part.budget)
        return kind
    if kind in UNPACKERS and isinstance(part, Window):
        try:
            search(Packed(part, UNPACKERS[kind]), found, depth + 1, [])
            return kind
        except Malformed:
            kind = ""
    if isinstance(part, Window) and (kind == "zip" or depth == 0):
        kind = search_zip(part, found, depth, members, begins=kind == "zip")
    if kind_of(head) != "zip" and head[:1] in pickles.OPERATIONS:
        pickles.look(stream, found, part.budget)
    return kind


def search_zip(window: Window, found: Found, depth: int, members: list[Member], begins: bool) -> str:
    try:
        agreed = read_directory(window, members)
    except Malformed:
        found.complete = found.complete and not begins  # there may be one who reads it without its directory
        return ""
    found.complete = found.complete and agreed and begins
    for member in members:
        window.budget.step(MEMBER)
        if member.encrypted:    # torch does not look at this flag
            found.complete = False
        try:
            search(open_member(window, member), found, depth + 1, [])
        except Malformed:
            found.complete = False
    return "zip"


def read_directory(window: Window, members: list[Member]) -> bool:
    """Adds the members of a zip; False when other readers may find other ones.

    Raises Malformed for what is no zip, and BudgetExceeded.
    """
    start = max(0, window.length - TAIL)
    tail = window.at(start, TAIL)
    at = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - 18))
    if at < 0:
        raise Malformed("it has no directory")
    end = start + at
    count, length, offset = struct.unpack_from("<10xHII", tail, at)
    agreed = True
    if at >= 20 and tail.startswith(b"PK\x06\x07", at - 20):
        place, = struct.unpack_from("<8xQ", tail, at - 20)
        record = window.at(place, 56)
        if len(record) == 56 and record.startswith(b"PK\x06\x06"):
            agreed, end = place == end - 76, place
            count, length, offset = struct.unpack_from("<32xQQQ", record)
    begin = end - length
    if length > MAX_DIRECTORY:
        raise BudgetExceeded
    data = window.at(begin, length)
    if len(data) < length or (length and not data.startswith(b"PK\x01\x02")):
        raise Malformed("its directory is not where it should be")
    at = 0
    while len(data) >= at + 46 and data.startswith(b"PK\x01\x02", at):
        window.budget.step()
        at = read_entry(data, at, begin - offset, members)
    return agreed and begin == offset and at == length and count == len(members)


def read_entry(data: bytes, at: int, shift: int, members: list[Member]) -> int:
    """Adds the member whose entry is here; says where the next one is."""
    entry: tuple[int, ...] = struct.unpack_from("<8xHH8xIIHHH8xI", data, at)
    flags, method, packed, size, name_length, extra_length, comment_length, offset = entry
    at += 46 + name_length
    name = data[at - name_length:at].decode("utf-8", "replace")
    extra, wide = data[at:at + extra_length], {"size": size, "packed": packed, "offset": offset}
    while len(extra) >= 4:
        identity, length = struct.unpack_from("<HH", extra)
        if identity == 1:
            values = [int.from_bytes(extra[i:i + 8], "little") for i in range(4, min(4 + length, len(extra)), 8)]
            for key in [key for key, value in wide.items() if value == 0xFFFFFFFF][:len(values)]:
                wide[key] = values.pop(0)
        extra = extra[4 + length:]
    members.append(Member(name, method, bool(flags & 1), wide["packed"], wide["size"], wide["offset"] + shift))
    return at + extra_length + comment_length


def open_member(window: Window, member: Member) -> Part:
    """The bytes of a member; raises Malformed."""
    local = window.at(member.offset, 30)
    if len(local) < 30 or not local.startswith(b"PK\x03\x04") or member.method not in METHODS:
        raise Malformed("it has a member that cannot be read")
    start = member.offset + 30 + sum(struct.unpack_from("<HH", local, 26))
    if not member.method:
        return window.part(start, max(member.packed, member.size))  # readers differ in which of them they go by
    return Packed(window.part(start, member.packed), UNPACKERS[METHODS[member.method]])


def array_header(stream: io.BufferedReader) -> bytes:
    """The dict that an .npy file begins with, as text; raises Malformed."""
    major = exactly(stream, 8)[6]
    length = int.from_bytes(exactly(stream, 2 if major == 1 else 4), "little")
    if length > MAX_NPY_HEADER:
        raise Malformed("its header is too long")
    return exactly(stream, length)
