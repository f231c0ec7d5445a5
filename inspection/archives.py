"""Where a file may have pickles: at its beginning, packed, in the members of a zip, in numpy's arrays of objects."""

import math
import re
import struct
import tarfile
from contextlib import suppress
from typing import NamedTuple

from inspection.found import Found
from inspection.pickles import OPCODES, look
from inspection.reader import UNPACKERS, Budget, BudgetExceeded, Malformed, Packed, Part, Stream, Window, is_lzma

HEAD = 512              # bytes that tell what begins here; of a tar they are its first header
MAX_DIRECTORY = 8 << 20     # bytes of a zip's central directory: 100,000 members, a shard of a model has 1,000
MEMBER = 14             # steps that a member costs
EXTRA = 128             # bytes that are read in the time that a field beside its name takes
MAX_DEPTH = 3           # containers in containers
TAIL = (1 << 16) + 22 + 20 + 56     # a zip's last records with the longest comment
MAX_NPY_HEADER = 64 * 1024  # numpy itself reads 10,000 characters

# What begins how. What is in the sealed ones is not looked at, so nobody knows what it holds.
SIGNATURES = {kind: re.compile(begins, re.DOTALL) for kind, begins in {
    "zip": rb"\0{0,3}PK\x03\x04|PK\x05\x06",   # aligned, or empty
    "gzip": rb"\x1f\x8b\x08", "bzip2": rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)",     # and its first block, or its end
    "xz": rb"\xfd7zXZ\0|LZIP[\0\1]", "npy": rb"\x93NUMPY", "7z": rb"7z\xbc\xaf\x27\x1c", "zstd": rb"\x28\xb5\x2f\xfd",
    "lz4": rb"\x04\x22\x4d\x18", "rar": rb"Rar!\x1a\x07"}.items()}
ZFILE = 21              # bytes before the zlib stream in a file of joblib before 0.9.3: ZF and its length in digits
# Programs and libraries of Linux, Windows and macOS.
NATIVE = (b"\x7fELF", b"MZ\x90\0", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
TFLITE = b"TFL3"        # from byte 4 on; its labels are in a zip behind it
SEALED = ("7z", "zstd", "lz4", "rar", "tar")
METHODS = {0: "", 8: "deflate", 12: "bzip2"}    # of a zip's members
NUMERIC = re.compile(   # to the letter as numpy writes it: a dict may name a key twice
    rb"\{'descr': '([<>|=]?([biufcSU])([0-9]{1,9}))', 'fortran_order': (?:True|False), "
    rb"'shape': \(((?:[0-9]{1,18}, ?){0,64}(?:[0-9]{1,18})?)\), \} *\n?")    # of more dimensions it has no array


class Member(NamedTuple):
    """An entry of a zip's central directory, which is what torch and zipfile go by."""

    name: str
    method: int
    encrypted: bool
    packed: int
    size: int
    offset: int


class Array(NamedTuple):
    """Of numbers or of texts, as numpy writes it into a file."""

    dtype: str
    shape: list[int]
    item_size: int


def kind_of(head: bytes) -> str:
    """The container that says by its first bytes that it is one.

    A tar says it by its checksum, because the oldest have no signature, as tarfile reads it: as text or as binary.
    """
    if kind := next((kind for kind, begins in SIGNATURES.items() if begins.match(head)), ""):
        return kind
    with suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        return "tar"
    return ""


def maybe_packed(head: bytes, depth: int) -> str:
    """What would unpack this, which has no signature: by chance the raw bytes of tensors begin so, and text."""
    if is_zlib(head) or is_zlib(zfile(head)):
        return "zlib"
    # The first numbers of many tensors look like this, so in a container it is to be what joblib takes for it.
    return "xz" if is_lzma(head) and (not depth or head.startswith(b"\x5d\0")) else ""


def is_zlib(head: bytes) -> bool:
    """RFC 1950 2.2, without a preset dictionary, which no reader has."""
    return len(head) > 1 and head[0] & 0x8F == 8 and not head[1] & 0x20 and not int.from_bytes(head[:2]) % 31


def zfile(head: bytes) -> bytes:
    """What comes behind the head of a file of joblib before 0.9.3, which with Python 2 is a space longer."""
    return head[ZFILE:].removeprefix(b" ") if head.startswith(b"ZF") else b""


def contents(window: Window) -> tuple[str, list[Member], Found]:
    """The container that a file is, the members of a zip, and what it would unpickle, as far as the budget goes."""
    kind, members, found = kind_of(window.at(0, HEAD)), list[Member](), Found()
    begins = kind == "zip"
    try:
        kind = search(window, found, 0, members)
        behind = Found()    # what stands first decides, but some readers go by what a file ends with
        if not begins and search_zip(window, behind, 0, []):
            found.merge(Found(behind.imports, complete=behind.complete and window.at(4, 4) == TFLITE))
    except BudgetExceeded:
        found.complete = False
    return kind, members, found


def search(part: Part, found: Found, depth: int, members: list[Member]) -> str:
    """Adds to `found` what unpickling this, or what is in it, would import, and the members of a zip to `members`.

    Says what container begins here; what stands behind it makes it incomplete. Raises BudgetExceeded.
    """
    stream = part.stream()
    head = stream.ahead(HEAD)
    kind = kind_of(head)
    found.native |= head.startswith(NATIVE)
    if kind in SEALED or (kind and depth == MAX_DEPTH) or (kind == "zip" and isinstance(part, Packed)):
        found.complete = False
        return kind
    if kind in UNPACKERS or (not kind and depth < MAX_DEPTH and maybe_packed(head, depth)):
        kind = search_packed(part, kind, head, found, depth)
    if kind == "zip" and isinstance(part, Window) and not search_zip(part, found, depth, members):
        kind = ""
    if kind == "npy":
        try:
            array = array_header(stream)
        except Malformed:
            return ""
        if not array:
            look(stream, found)
        else:   # others may follow, with objects in them: numpy reads them one by one
            stream.skip(math.prod(array.shape) * array.item_size)
            found.complete &= not stream.ahead(1)
    elif not head.startswith((b"PK\x03\x04", b"PK\x05\x06")) and head[:1] and head[0] in OPCODES:
        look(stream, found)
    return kind


def search_packed(part: Part, kind: str, head: bytes, found: Found, depth: int) -> str:
    """As search does, for what is packed; without a `kind` it may be something else, of which no sense comes out."""
    inner, packed = Found(), Packed(part, kind or maybe_packed(head, depth))
    if packed.kind == "zlib" and not is_zlib(head):
        if isinstance(part, Packed):    # no reader looks for it there
            return ""
        packed.part = part.part(len(head) - len(zfile(head)), part.length)
    try:
        search(packed, inner, depth + 1, [])
    finally:
        found.merge(inner)
    if not kind and (packed.damaged or not any(head)) and not inner.pickled and not inner.imports:
        return ""
    found.complete = found.complete and not packed.damaged and not isinstance(part, Packed)
    return packed.kind


def search_zip(window: Window, found: Found, depth: int, members: list[Member]) -> bool:
    """As search does, for a zip, which is read from its end; False where there is none."""
    try:
        agreed = read_directory(window, members)
    except Malformed:
        found.complete = False      # there may be a reader that does without the directory
        return False
    found.complete &= agreed and not any(member.encrypted for member in members)    # a flag that torch does not look at
    for member in members:
        try:
            part = open_member(window, member)
            search(part, found, depth + 1, [])
            found.complete &= not (isinstance(part, Packed) and part.damaged)
        except Malformed:
            found.complete = False
    return True


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
        window.budget.step(2)
        at = read_entry(data, at, begin - offset, members, window.budget)
    return agreed and begin == offset and at == length and count == len(members)


def read_entry(data: bytes, at: int, shift: int, members: list[Member], budget: Budget) -> int:
    """Adds the member whose entry is here; says where the next one is."""
    entry: tuple[int, ...] = struct.unpack_from("<8xHH8xIIHHH8xI", data, at)
    flags, method, packed, size, name_length, extra_length, comment_length, offset = entry
    at += 46 + name_length
    name = data[at - name_length:at].decode("utf-8", "replace")
    extra, place, wide = data[at:at + extra_length], 0, {"size": size, "packed": packed, "offset": offset}
    while place <= len(extra) - 4:
        budget.take(EXTRA)
        identity, length = struct.unpack_from("<HH", extra, place)
        begin, place = place + 4, place + 4 + length
        if identity == 1:
            values = [int.from_bytes(extra[i:i + 8], "little") for i in range(begin, min(place, len(extra)), 8)]
            for key in [key for key, value in wide.items() if value == 0xFFFFFFFF][:len(values)]:
                wide[key] = values.pop(0)
    members.append(Member(name, method, bool(flags & 1), wide["packed"], wide["size"], wide["offset"] + shift))
    return at + extra_length + comment_length


def open_member(window: Window, member: Member) -> Part:
    """The bytes of a member; raises Malformed."""
    window.budget.step(MEMBER)
    local = window.at(member.offset, 30)
    if len(local) < 30 or not local.startswith(b"PK\x03\x04") or member.method not in METHODS:
        raise Malformed("it has a member that cannot be read")
    start = member.offset + 30 + sum(struct.unpack_from("<HH", local, 26))
    # Readers differ in which of these sizes they go by; the highest number stands for one in the extra field.
    packed, size = (number % 0xFFFFFFFF for number in struct.unpack_from("<II", local, 18))
    if not member.method:
        return window.part(start, max(member.packed, member.size, packed, size))
    return Packed(window.part(start, max(member.packed, packed)), METHODS[member.method])


def array_header(stream: Stream) -> Array | None:
    """What an .npy file begins with, None for an array of objects or of records; raises Malformed."""
    major = stream.exactly(8)[6]
    length = int.from_bytes(stream.exactly(2 if major == 1 else 4), "little")
    if length > MAX_NPY_HEADER:     # which numpy takes where it may unpickle
        stream.skip(length - 1)
        stream.exactly(1)
        return None
    if not (header := NUMERIC.fullmatch(stream.exactly(length))):
        return None
    shape = [int(size) for size in header[4].split(b",") if size.strip()]
    return Array(header[1].decode(), shape, int(header[3]) * (4 if header[2] == b"U" else 1))
