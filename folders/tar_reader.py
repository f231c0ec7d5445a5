"""A tar while it arrives: bytes in, the files in it out. No files, no sockets.

POSIX.1-2017, "pax Interchange Format" and "ustar Interchange Format"; the GNU tar manual, "Basic Tar Format".
"""

import re
import shlex
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from folders.layout import padding
from repository.model import MAX_PARTS, MAX_PATH, NAME, NAME_RULE
from server.errors import BadRequest, UnsupportedMediaType

BLOCK = tarfile.BLOCKSIZE
MAX_FILES = 10_000              # of one version; each takes several system calls and a sync of the disk
MAX_HEADERS = 8 * MAX_FILES     # with those of directories, long names and attributes, which bring no file
MAX_EXTENDED = 256 << 10        # bytes of one extended header: an extended attribute of Linux has at most 64 KiB
MAX_AFTER_END = 64 << 20        # bytes of zeros after the end: GNU tar pads to its record, of 10 KiB unless told so
MAX_NAME_SHOWN = 255            # characters of a name in a message; Linux has no longer ones
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x1f\x9d": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"LZIP": "lzip",
              b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}    # \x1f\x9d is that of compress
PAX, PAX_GLOBAL, LONG_NAME = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME
EXTENDED = (*PAX, PAX_GLOBAL, LONG_NAME, tarfile.GNUTYPE_LONGLINK)
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
LINK = "a link: tar ch --hard-dereference stores what links point at"
SPARSE = "a sparse file: leave out --sparse"
KINDS = {tarfile.LNKTYPE: LINK, tarfile.SYMTYPE: LINK, tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device",
         tarfile.FIFOTYPE: "a fifo", tarfile.GNUTYPE_SPARSE: SPARSE}
LEADING = re.compile(r"\A(?:\./+)+")     # at once: a long header has room for 100,000 of them
PAX_RECORD = re.compile(rb"([1-9][0-9]{0,8}) ([^=]+)=")


class Member(NamedTuple):
    """Where a file begins: its name without a leading `./`, and its size in bytes."""

    name: str
    size: int


class MemberEnd(NamedTuple):
    """Where a file ends."""


Event = Member | memoryview | MemberEnd


class TarCutter:
    """Cuts a tar while it arrives: bytes in, events out. Raises BadRequest, and UnsupportedMediaType if compressed.

    The names of files and directories follow the grammar, and no file stands where a directory or another one does.
    """

    def __init__(self) -> None:
        self._gathered, self._wanted = bytearray(), BLOCK   # of a header
        self.left = self._padding = 0       # bytes of a file and behind it that are still to come
        self._extending: tarfile.TarInfo | None = None      # the extended header whose text is being gathered
        self._pax = dict[str, bytes]()      # what extended headers say of the next file
        self._zeros = self._headers = self._position = 0
        self._files, self._folders = set[str](), {""}
        self.held = 0                       # bytes of memory that the names take

    def feed(self, data: bytes | memoryview) -> Iterator[Event]:
        data = memoryview(data)
        while data:
            if self.left:
                block = data[: self.left]
                self.left -= len(block)
                yield block
                if not self.left:
                    yield MemberEnd()
            elif self._padding:
                block = data[: self._padding]
                self._padding -= len(block)
            else:
                block = data[: self._wanted - len(self._gathered)]
                self._gathered += block
                if len(self._gathered) == self._wanted:
                    whole, self._gathered, self._wanted = bytes(self._gathered), bytearray(), BLOCK
                    if self._extending:
                        self._extended(self._extending, whole)
                    else:
                        yield from self._header(whole)
            data = data[len(block):]
            self._position += len(block)

    def skip(self, size: int) -> Iterator[Event]:
        """Takes so many bytes of the current file, which it need not be given."""
        self.left -= size
        self._position += size
        if not self.left:
            yield MemberEnd()

    def finish(self) -> None:
        """Raises BadRequest unless the tar has come to its end, and has a file."""
        if not self._headers and not self._zeros:
            raise not_a_tar(bytes(self._gathered))
        if not self._zeros or self._gathered:
            raise BadRequest(f"the tar ends early, after {self._position} bytes: it was cut short, send it again")
        if not self._files:
            raise BadRequest("the tar has no file: a version has at least one")

    def _header(self, block: bytes) -> Iterator[Event]:
        if not block.strip(b"\0"):      # two of them end a tar; of one that is all that comes, GNU tar says no more
            self._zeros += 1
            if self._pax or self._zeros * BLOCK > MAX_AFTER_END:
                raise BadRequest("the tar ends with the attributes of a file that is missing" if self._pax else
                                 f"more than {MAX_AFTER_END} zeros follow the end of the tar")
            return
        if self._zeros:
            raise BadRequest("something follows the end of the tar: of several tars that are joined, only the first "
                             "would be stored. Send each file in one tar")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if not self._headers:
                raise not_a_tar(block) from error
            raise BadRequest(f"the tar is damaged at byte {self._position + len(block) - BLOCK}: {error}") from error
        self._headers += 1
        if self._headers > MAX_HEADERS:
            raise BadRequest(f"the tar has more than {MAX_HEADERS} headers")
        if info.type in EXTENDED:
            self._extend(info)
        else:
            yield from self._member(info, block)

    # ---- extended headers

    def _extend(self, info: tarfile.TarInfo) -> None:
        if not 0 < info.size <= MAX_EXTENDED:
            raise BadRequest(f"an extended header of the tar has {info.size} bytes, of which this server takes 1 to "
                             f"{MAX_EXTENDED}: leave out --xattrs")
        self._extending, self._wanted = info, info.size + padding(info.size)

    def _extended(self, info: tarfile.TarInfo, text: bytes) -> None:
        self._extending = None
        if info.type == LONG_NAME:
            self._pax.setdefault("path", text_in(text[:info.size]))     # pax has precedence
        elif info.type in (*PAX, PAX_GLOBAL):
            found = records(text[:info.size])
            if info.type == PAX_GLOBAL and found:   # git archive tells its commit in one
                raise BadRequest(f"a global header of the tar tells the {min(found)} of all files")
            self._pax |= found

    # ---- members

    def _member(self, info: tarfile.TarInfo, block: bytes) -> Iterator[Event]:
        pax, self._pax = self._pax, {}
        # frombuf() takes a prefix for granted, which only POSIX has; GNU tar may keep times in its place
        prefix = text_in(block[345:500]) if block[257:263] == b"ustar\0" else b""
        path = pax.get("path") or (prefix + b"/" if prefix else b"") + text_in(block[:100])
        name = path.decode("utf-8", "surrogateescape")
        size = int(pax["size"]) if "size" in pax else info.size
        shown = repr(name[:MAX_NAME_SHOWN])
        if info.type not in (*FILES, tarfile.DIRTYPE) or "sparse" in pax:
            kind = SPARSE if "sparse" in pax else KINDS.get(info.type, f"of type {info.type.decode('latin-1')!r}")
            raise BadRequest(f"{shown} in the tar is {kind}. A version holds files and directories")
        is_folder = info.type == tarfile.DIRTYPE
        below = checked(name, is_folder, shown)
        self._add(below, is_folder, shown)
        if is_folder:   # which has no contents, whatever its size is
            return
        if size < 0:
            raise BadRequest(f"{shown} in the tar has {size} bytes")
        self.left, self._padding = size, padding(size)
        yield Member(below, size)
        if not size:
            yield MemberEnd()

    def _add(self, path: str, is_folder: bool, shown: str) -> None:
        """Notes a file or a directory, and the directories above it; raises BadRequest if another one is there."""
        if path in self._files:
            raise BadRequest(f"{shown} comes twice in the tar: a version has each name once")
        above = path if is_folder else path.rpartition("/")[0]
        while above not in self._folders:
            if above in self._files:
                raise BadRequest(f"{above[:MAX_NAME_SHOWN]!r} in the tar is a file, and {shown} would be below it")
            self._note(self._folders, above)
            above = above.rpartition("/")[0]
        if not is_folder:
            if path in self._folders:
                raise BadRequest(f"{shown} in the tar is a directory, and a file of the same name")
            if len(self._files) == MAX_FILES:
                raise BadRequest(f"the tar has more than {MAX_FILES} files, of which {shown} is the first")
            self._note(self._files, path)

    def _note(self, names: set[str], name: str) -> None:
        names.add(name)
        self.held += 2 * len(name) + 128    # with its place in the set


def text_in(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def records(text: bytes) -> dict[str, bytes]:
    """The records of a pax header that change where a file is and how it lies there; raises BadRequest."""
    found, position = dict[str, bytes](), 0
    while position < len(text):
        record = PAX_RECORD.match(text, position)
        end = position + int(record[1]) if record else 0
        if not record or not record.end() < end <= len(text) or text[end - 1:end] != b"\n":
            raise BadRequest("a pax header of the tar is damaged")
        key, value, position = record[2], text[record.end() : end - 1], end
        if key.startswith(b"GNU.sparse.") or key == b"SCHILY.realsize":
            found["sparse"] = value
        elif not value:     # POSIX: as if the record was not there
            continue
        elif key == b"size" and not re.fullmatch(rb"[0-9]{1,18}", value):
            raise BadRequest("a pax header of the tar tells a size that is no number")
        elif key in (b"path", b"size"):
            found[key.decode()] = value
    return found


def checked(name: str, is_folder: bool, shown: str) -> str:
    """The path of a member without its leading `./`, "" for the top; raises BadRequest unless it is one of names."""
    path = LEADING.sub("", name.rstrip("/") if is_folder else name)
    if is_folder and path in ("", "."):
        return ""
    parts = path.split("/")
    if name.startswith("/") or {"", ".", ".."} & {*parts}:  # as in tar c models//bert, which no --exclude would help
        raise BadRequest(f"{shown} in the tar is not a plain path below it: go to the directory and pack what is in "
                         "it, as in tar c -C my_model .")
    for part in parts:
        if not NAME.fullmatch(part):
            raise BadRequest(f"{shown} in the tar is not a name: {NAME_RULE}. Rename it, or leave it out: "
                             f"tar c {exclude(part[:MAX_NAME_SHOWN])}")
    # of directories, too: a pax header has room for a path of 100,000 of them, each of which would be noted
    if len(parts) > MAX_PARTS or len(path) > MAX_PATH:
        raise BadRequest(f"{shown} in the tar is too long: use up to {MAX_PARTS} names with slashes between them, "
                         f"{MAX_PATH} characters in all. Or leave it out: tar c "
                         f"{exclude('/'.join(parts[: MAX_PARTS + 1]))}")
    return path


def exclude(name: str) -> str:
    """The option of tar that leaves out what has this name."""
    if name.startswith("._"):   # what macOS knows of a file, which its tar adds to each
        return "--exclude='._*' (with COPYFILE_DISABLE=1 before it on macOS)"
    if re.match("[.][A-Za-z0-9]", name):     # a pattern with [!.] leaves out everything for bsdtar
        return "--exclude='.[A-Za-z0-9_]*' leaves out all names that begin with a dot"
    return "--exclude=" + shlex.quote(re.sub(r"([\[\]*?\\])", r"\\\1", name))


def not_a_tar(beginning: bytes) -> BadRequest | UnsupportedMediaType:
    for magic, program in COMPRESSED.items():
        if beginning.startswith(magic):
            return UnsupportedMediaType(f"the tar is compressed ({program}): unpack it on its way, as in "
                                        f"{program} -dc my_model.tar.* | curl -T - URL")
    return BadRequest("this path is a version: add the model's name, or send a tar")
