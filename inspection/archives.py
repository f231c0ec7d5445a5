"""Where a file may have pickles: at its beginning, packed, in the members of a zip, in numpy's arrays of objects."""

import math
import re
import struct
import tarfile
from contextlib import suppress
from typing import Any, NamedTuple

from inspection.found import Found
from inspection.pickles import OPCODES, add_imports
from inspection.reader import LETTER, LZMA, STEP, UNPACKERS, BudgetExceeded, Malformed, Packed, Part, Stream, Window

HEAD = 512              # bytes that tell what begins here; of a tar they are its first header
MAX_DIRECTORY = 8 << 20     # bytes of a zip's central directory: 100,000 members, a shard of a model has 1,000
MEMBER = 16             # steps that a member costs
EXTRA = 192             # bytes that are read in the time that a field beside its name takes
MAX_DEPTH = 3           # containers in containers
TAIL = (1 << 16) + 22 + 20 + 56     # a zip's last records with the longest comment
MAX_NPY_HEADER = 64 * 1024  # numpy itself reads 10,000 characters
FIELDS = 20             # bytes that are read in the time that one of it takes, where it has many fields

# What begins how. What is in the sealed ones is not looked at, so nobody knows what it holds.
CONTAINERS = {kind: re.compile(begins, re.DOTALL) for kind, begins in {
    "zip": rb"\0{0,3}PK\x03\x04|PK\x05\x06",   # aligned, or empty
    "gzip": rb"\x1f\x8b\x08", "bzip2": rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)",     # and its first block, or its end
    "xz": rb"\xfd7zXZ\0|LZIP[\0\1]", "npy": rb"\x93NUMPY", "7z": rb"7z\xbc\xaf\x27\x1c", "zstd": rb"\x28\xb5\x2f\xfd",
    "lz4": rb"\x04\x22\x4d\x18", "rar": rb"Rar!\x1a\x07"}.items()}
# A zlib stream (RFC 1950 2.2) without a preset dictionary, which no reader has. In files of joblib before 0.9.3 it is
# behind ZF and its length in digits, with Python 2 one byte more.
ZLIB = re.compile(rb"(ZF.{19} ?)?(?:%b)" % b"|".join(
    re.escape(number.to_bytes(2)) for number in range(0, 1 << 16, 31) if number & 0x8F20 == 0x0800), re.DOTALL)
# Programs and libraries of Linux, Windows and macOS; those for several processors say how many, classes of Java do not.
NATIVE = re.compile(rb"\x7fELF|MZ[\x90xP]\0|[\xce\xcf]\xfa\xed\xfe|\xca\xfe\xba[\xbe\xbf]\0{3}[\1-\x2c]")
TFLITE = b"TFL3"        # from byte 4 on; its labels are in a zip behind it
SEALED = ("7z", "zstd", "lz4", "rar", "tar")
METHODS = {0: "", 8: "deflate", 12: "bzip2 in a zip"}    # of a zip's members
TOO_LARGE = 0xFFFFFFFF  # stands for a number of more bytes
# A type of numbers, texts or times, a shape of no more dimensions than numpy has, and a field of records of such.
TYPE = rb"'([<>|=]?([biufcSUVmM])([0-9]{1,9})(?:\[[0-9]*[A-Za-z]{1,2}\])?)'"
SHAPE = rb"\(((?:[0-9]{1,18}, ?){0,64}(?:[0-9]{1,18})?)\)"
FIELD = rb"\('[^'\\]*', %b(?:, %b)?\)" % (TYPE, SHAPE)
NUMERIC = re.compile(   # to the letter as numpy writes it: a dict may name a key twice
    rb"\{'descr': (?:%b|\[(?P<fields>%b(?:, %b)*)\]), 'fortran_order': (?:True|False), 'shape': (?P<shape>%b), \} *\n?"
    % (TYPE, FIELD, FIELD, SHAPE))


class Member(NamedTuple):
    """An entry of a zip's central directory, which is what torch and zipfile go by."""

    name: str
    method: int
    length: int     # readers differ in which of its sizes they go by: the largest
    offset: int


def kind_of(head: bytes) -> str:
    """The container that says by its first bytes that it is one; a tar by its checksum, as tarfile reads it."""
    if kind := next((kind for kind, begins in CONTAINERS.items() if begins.match(head)), ""):
        return kind
    with suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        return "tar"
    return ""


def search(part: Part, found: Found, depth: int, members: list[Member]) -> str:
    """Adds to `found` what unpickling this, or what is in it, would import, and the members of a zip to `members`.

    Says what container begins here. A zip at the end, by which some readers go, makes it incomplete, unless it has the
    labels of a TFLite model; in a container it is looked for without a comment. Raises BudgetExceeded.
    """
    kind = search_beginning(part, found, depth, members)
    if kind != "zip" and isinstance(part, Window) and (not depth or part.at(part.length - 22, 4) == b"PK\x05\x06"):
        behind = Found(complete=depth < MAX_DEPTH)
        if not behind.complete or search_zip(part, behind, depth, []):
            told = part.at(4, 4) == TFLITE and behind.pickled == bool(behind.imports)
            found.merge(Found(behind.imports, complete=behind.complete and told))
    return kind


def search_beginning(part: Part, found: Found, depth: int, members: list[Member]) -> str:
    """As search does, by the first bytes."""
    stream = part.stream()
    head = stream.ahead(HEAD)
    begins = kind = kind_of(head)
    found.native |= bool(NATIVE.match(head))
    if kind in SEALED or (kind and depth == MAX_DEPTH) or (kind == "zip" and isinstance(part, Packed)):
        found.complete = False
        return kind
    if kind in UNPACKERS or (not kind and depth < MAX_DEPTH):
        kind = search_packed(part, kind, head, found, depth)
    if kind == "zip" and isinstance(part, Window) and not search_zip(part, found, depth, members):
        kind = ""
    if kind == "npy":
        try:
            _, size = array_header(stream)
        except Malformed:
            return ""
        if size is None:
            add_imports(stream, inner := Found())
            found.merge(inner)
            found.complete &= inner.pickled     # else it has a size that is not known
        else:   # others may follow, with objects in them: numpy reads them one by one
            stream.skip(size)
            found.complete &= not stream.ahead(1)
    elif begins != "zip" and head[:1] in OPCODES:
        add_imports(stream, found)
    return kind


def search_packed(part: Part, kind: str, head: bytes, found: Found, depth: int) -> str:
    """As search does, for what is packed; without a `kind` it may be something else, of which no sense comes out."""
    zlib, inner = ZLIB.match(head), Found()
    if zlib and not kind:
        packed = Packed(part, "zlib", len(zlib[1] or b""))
    # Many tensors begin like this, so in a container it is to be what joblib takes for it, or as Python writes it.
    elif kind or (LZMA.match(head) and (not depth or head.startswith(b"\x5d\0") or head[5:13] == b"\xff" * 8)):
        packed = Packed(part, kind or "xz")
    else:
        return ""
    try:
        search(packed, inner, depth + 1, [])
    finally:
        found.merge(inner)
    if not kind and (depth or packed.damaged or not any(head)) and not inner.pickled and not inner.imports:
        return ""
    found.complete &= not packed.damaged and not isinstance(part, Packed)
    return packed.kind


def search_zip(window: Window, found: Found, depth: int, members: list[Member]) -> bool:
    """As search does, for a zip, which is read from its end; False where there is none."""
    try:
        found.complete &= read_directory(window, members)
    except Malformed:
        found.complete = False      # there may be a reader that does without the directory
        return False
    for member in members:
        try:
            part = open_member(window, member)
            search(part, found, depth + 1, [])
            found.complete &= not (isinstance(part, Packed) and part.damaged)
        except Malformed:
            found.complete = False
    return True


def read_directory(window: Window, members: list[Member]) -> bool:
    """Adds the members of a zip; False when other readers may find others; raises Malformed, and BudgetExceeded."""
    start = max(0, window.length - TAIL)
    tail = window.at(start, TAIL)
    at = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - 18))
    if at < 0:
        raise Malformed("it has no directory")
    count, length, offset = struct.unpack_from("<10xHII", tail, at)
    agreed = True
    if at >= 76 and tail.startswith(b"PK\x06\x07", at - 20):   # of zip64, where some readers look before it
        at -= 76
        agreed = tail.startswith(b"PK\x06\x06", at) and struct.unpack_from("<8xQ", tail, at + 56) == (start + at,)
        count, length, offset = struct.unpack_from("<32xQQQ", tail, at)
    begin = start + at - length
    if length > MAX_DIRECTORY:
        raise BudgetExceeded
    data = window.at(begin, length)
    if len(data) < length or not data.startswith(b"PK\x01\x02"[:length]):
        raise Malformed("its directory is not where it should be")
    at = 0
    while len(data) >= at + 46 and data.startswith(b"PK\x01\x02", at):
        flags, method, packed, size, *lengths, place = struct.unpack_from("<8xHH8xIIHHH8xI", data, at)
        window.budget.take(2 * STEP + LETTER * lengths[0])
        text, extra = data[at + 46:at + 46 + lengths[0]].decode("utf-8", "replace"), at + 46 + lengths[0]
        end, at = min(extra + lengths[1], len(data)), at + 46 + sum(lengths)
        numbers = [size, packed, place]     # in this order those that are too large come in a field of their own
        while extra <= end - 4:
            window.budget.take(EXTRA)
            identity, width = struct.unpack_from("<HH", data, extra)
            for value in range(extra + 4, extra + 4 + min(width, 24), 8) if identity == 1 else ():
                if TOO_LARGE in numbers:
                    numbers[numbers.index(TOO_LARGE)] = int.from_bytes(data[value:value + 8], "little")
            extra += 4 + width
        members.append(Member(text, method, max(numbers[:2]), numbers[2] + begin - offset))
        agreed &= not flags & 1     # encrypted, by a flag that torch does not look at
    return agreed and begin == offset and at == length and count == len(members)


def open_member(window: Window, member: Member) -> Part:
    """The bytes of a member; raises Malformed."""
    window.budget.step(MEMBER)
    local = window.at(member.offset, 30)
    if len(local) < 30 or not local.startswith(b"PK\x03\x04") or member.method not in METHODS:
        raise Malformed("it has a member that cannot be read")
    start = member.offset + 30 + sum(struct.unpack_from("<HH", local, 26))
    sizes = [size % TOO_LARGE for size in struct.unpack_from("<II", local, 18)]
    part = window.part(start, max(member.length, *sizes))
    return Packed(part, METHODS[member.method]) if member.method else part


def array_header(stream: Stream) -> tuple[dict[str, Any], int | None]:
    """Details of an .npy file, and the bytes of its array, None for one of objects; raises Malformed."""
    major = stream.exactly(8)[6]
    length = int.from_bytes(stream.exactly(2 if major == 1 else 4), "little")
    if length > MAX_NPY_HEADER:     # which numpy takes where it may unpickle
        stream.skip(length - 1)
        length = 1
    stream.budget.take(FIELDS * length)
    if not (header := NUMERIC.fullmatch(stream.exactly(length))):
        return {}, None
    shape, fields = dimensions(header["shape"]), header["fields"] or b"('', '%b')" % header[1]
    size = sum(int(width) * (4 if code == b"U" else 1) * math.prod(dimensions(each))
               for _, code, width, each in re.findall(FIELD, fields))
    return {} if header["fields"] else {"dtype": header[1].decode(), "shape": shape}, math.prod(shape) * size


def dimensions(shape: bytes) -> list[int]:
    return [int(size) for size in shape.strip(b"()").split(b",") if size.strip()]
