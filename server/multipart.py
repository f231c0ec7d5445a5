"""Forms, cut while they arrive: the bytes of the file, and the fields. No files, no sockets."""

import mmap
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.errors import MultipartInvariantViolationDefect
from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value
from typing import TypeVar

from repository import metadata
from server.charsets import charset_of, decoded, header_text, without_encoded_words
from server.envelopes import AS_IT_IS
from server.errors import BadRequest

T = TypeVar("T")
MAX_CONTENT_TYPE = 1024         # characters; a browser sends under 100, and the parser's time grows with the square
MAX_BOUNDARY = 70               # RFC 2046 5.1.1; its short list of characters is kept by few clients
MAX_PADDING = 64                # white space after a boundary, which nobody sends
MAX_PREAMBLE = 16 * 1024        # nobody sends one either; beyond this, the boundary is probably wrong
MAX_PART_HEADERS = 16 * 1024    # a browser sends under 1 KiB; beyond this, somebody is filling our memory
MAX_PARAMETERS = 64             # of a part's headers: a file name of 255 characters in RFC 2231 pieces has under 50
MAX_HEADER_LINES = 64           # of a part, one for each such piece; a browser sends two
MAX_ALL_PARAMETERS = 1024       # of a form, four a part: the parser reads the rest of the headers again for each
MAX_ALL_ESCAPES = 8 * 1024      # percent signs in all headers of a form: a file name of 255 characters has up to 1,020
EXTENDED = ("", "utf-8", "utf8", "us-ascii", "iso-8859-1")  # RFC 8187 3.2.1: the charsets of filename*
MAX_PARTS = 256                 # 64 custom fields and ours, some of them twice
FEW = 256                       # bytes gathered before a search, which costs as much for one as for all of them
MAX_FILENAME = 255              # what a file system takes
EXTENSION = re.compile(r"(?:\.tar)?\.[^.\s]{1,16}$")     # by which a program tells what a file is
CHARSET = "_charset_"           # RFC 7578 4.6: the field with the charset of all fields that do not declare one
LINE_END = re.compile(rb"(--)?[ \t]{0,%d}\r\n" % MAX_PADDING)
LINE_BEGUN = re.compile(rb"-|(--)?[ \t]{0,%d}\r?" % MAX_PADDING)
BOUNDARY = re.compile(r"[ -~]{0,%d}[!-~]" % (MAX_BOUNDARY - 1))  # noqa: UP031  like its neighbours


@dataclass(frozen=True)
class Part:
    """Where a part begins: its name, the name of its file if it has one, the charset of its text if it declares one."""

    name: str
    filename: str | None
    charset: str | None = None


class PartEnd:
    """Where a part ends."""


class FormCutter:
    """Cuts multipart/form-data (RFC 7578, RFC 2046 5.1) while it arrives: bytes in, events out. Raises BadRequest.

    Part headers go through the standard library's e-mail parser, contents never do: they come out as they came in.
    A line that only begins like a boundary is content.
    """

    def __init__(self, content_type: str) -> None:
        self._delimiter = b"\r\n--" + boundary_of(content_type)
        self._boundary_line = re.compile(re.escape(self._delimiter) + LINE_END.pattern)
        self._rest = b"\r\n"    # searched, but perhaps part of a boundary; the first boundary has no line before it
        self._few = bytearray()     # not searched yet
        self._state = "preamble"
        self._skipped = 0
        self._parts = self._parameters = self._escapes = 0
        self.charset: str | None = None     # of headers that are not UTF-8

    def feed(self, data: bytes) -> Iterator[Part | memoryview | PartEnd]:
        if len(self._few) + len(data) < FEW:
            self._few += data
            return iter(())
        return self._cut(data)

    def _cut(self, data: bytes) -> Iterator[Part | memoryview | PartEnd]:
        data, self._rest, self._few = self._rest + self._few + data, b"", bytearray()
        position = 0
        while self._state != "epilogue":    # RFC 2046 5.1.1: that is ignored
            if self._state == "headers":
                end = self._end_of_headers(data, position)
                if end < 0:
                    self._rest = data[position:]
                    return
                yield self._part(data[position + 2 : end])
                self._state, position = "content", end + 4
            stop, after, closing = self._find(data, position)
            if self._state == "preamble":
                self._skip(stop - position)
            elif stop > position:
                yield memoryview(data)[position:stop]
            if after < 0:
                self._rest = data[stop:]
                return
            if self._state == "content":
                yield PartEnd()
            self._state, position = "epilogue" if closing else "headers", after

    def finish(self) -> Iterator[Part | memoryview | PartEnd]:
        """The last events, at the end of the body; raises BadRequest if the closing boundary is missing."""
        yield from self._cut(b"")
        if self._state == "content" and re.fullmatch(re.escape(self._delimiter) + rb"--[ \t]*\r?", self._rest):
            self._state = "epilogue"    # RFC 2046 5.1.1: the CRLF after the closing boundary may be missing
            yield PartEnd()
        if self._state != "epilogue":
            raise BadRequest("the form ends without its closing boundary: the upload was cut short, send it again")

    @property
    def in_content(self) -> bool:
        """Whether the next byte belongs to the content of a part, or to its end."""
        return self._state == "content" and not self._rest and not self._few

    def end_of_content(self, data: mmap.mmap, begin: int, end: int) -> int:
        """Where something between `begin` and `end` begins that may be a boundary, otherwise `end`.

        What precedes it is content, and need not be given to feed(). Only for a cutter that is `in_content`.
        """
        at = data.find(self._delimiter, begin, end)
        return at if at >= 0 else self._unfinished(data, begin, end)

    def _unfinished(self, data: bytes | mmap.mmap, begin: int, end: int) -> int:
        """Where a boundary may begin that continues after `end`, otherwise `end`."""
        at = data.rfind(b"\r", max(begin, end - len(self._delimiter) + 1), end)
        return at if at >= 0 and self._delimiter.startswith(data[at:end]) else end

    def _find(self, data: bytes, position: int) -> tuple[int, int, bool]:
        """Where content ends, where the CRLF after the boundary is (-1: not here yet), whether it closes the form."""
        at = data.find(self._delimiter, position)
        if at >= 0 and (line := self._boundary_line.search(data, at)):  # find is faster, until the content is hostile
            return line.start(), line.end() - 2, bool(line[1])
        at = data.find(self._delimiter, max(at, len(data) - len(self._delimiter) - MAX_PADDING - 3)) if at >= 0 else -1
        while at >= 0:
            if LINE_BEGUN.fullmatch(data, at + len(self._delimiter)):
                return at, -1, False
            at = data.find(self._delimiter, at + 2)
        return self._unfinished(data, position, len(data)), -1, False

    def _end_of_headers(self, data: bytes, position: int) -> int:
        # position is at the CRLF that ends the boundary's line, so even an empty block of headers ends with CRLF CRLF
        end = data.find(b"\r\n\r\n", position)
        if (end if end >= 0 else len(data)) - position > MAX_PART_HEADERS:
            raise BadRequest(f"the headers of a part are longer than {MAX_PART_HEADERS} bytes")
        self._parts += end >= 0
        if self._parts > MAX_PARTS:
            raise BadRequest(f"the form has more than {MAX_PARTS} parts")
        return end

    def _part(self, block: bytes) -> Part:
        parameters, lines = block.count(b";"), block.count(b"\r\n") + 1
        self._parameters += parameters
        self._escapes += block.count(b"%")
        if parameters > MAX_PARAMETERS or lines > MAX_HEADER_LINES or self._parameters > MAX_ALL_PARAMETERS:
            raise BadRequest(f"the headers of a part have {parameters} parameters in {lines} lines, after "
                            f"{self._parameters - parameters} of other parts, which is too much: send "
                            'Content-Disposition: form-data; name="…"; filename="…" alone')
        if self._escapes > MAX_ALL_ESCAPES:
            raise BadRequest(f"the headers of the form have more than {MAX_ALL_ESCAPES} percent signs: "
                            "send names as UTF-8")
        return parse_part(block, self.charset)

    def _skip(self, length: int) -> None:
        self._skipped += length
        if self._skipped > MAX_PREAMBLE:
            raise BadRequest("no part begins where the form should: the boundary in Content-Type is not in the body")


class UploadForm:
    """The form of an upload while it arrives: bytes in, those of its file out; keeps the fields. Raises BadRequest."""

    def __init__(self, content_type: str) -> None:
        self._cutter = FormCutter(content_type)
        self._part = Part("", None)
        self._text = bytearray()
        self._file_seen = False
        self.parts: list[tuple[Part, bytes]] = []   # the fields so far, as bytes: _charset_ may follow them
        self.filename: str | None = None

    @property
    def fields(self) -> list[tuple[str, str]]:
        """(name, value) of the fields; raises BadRequest for one that is not in its charset."""
        return [(part.name, decoded(text, part.charset or self._cutter.charset or "utf-8",
                                    f"field {part.name[:100]!r}")) for part, text in self.parts]

    @property
    def pending(self) -> int:
        """Bytes of the field that is arriving."""
        return len(self._text)

    @property
    def in_file(self) -> bool:
        """Whether the next byte belongs to the file, or to its end."""
        return self._part.name == "file" and self._cutter.in_content

    def end_of_content(self, data: mmap.mmap, begin: int, end: int) -> int:
        """FormCutter.end_of_content(), while it is `in_file`."""
        return self._cutter.end_of_content(data, begin, end)

    def feed(self, data: bytes) -> Iterator[memoryview]:
        return self._file_in(self._cutter.feed(data))

    def finish(self) -> Iterator[memoryview]:
        """The last bytes of the file; call it at the end of the body."""
        yield from self._file_in(self._cutter.finish())
        if not self._file_seen:
            raise BadRequest("the form has no part named 'file': send the model with -F 'file=@model.pt'")

    def _file_in(self, events: Iterator[Part | memoryview | PartEnd]) -> Iterator[memoryview]:
        for event in events:
            in_file = self._part.name == "file"
            if isinstance(event, Part):
                self._begin(event)
            elif isinstance(event, memoryview) and in_file:
                yield event
            elif isinstance(event, memoryview):
                self._keep(event)
            elif not in_file:
                self._end(self._part, bytes(self._text))

    def _begin(self, part: Part) -> None:
        if part.name == "file":
            if self._file_seen:
                raise BadRequest("the form has two parts named 'file': one upload is one model")
            self._file_seen, self.filename = True, part.filename or None
        elif part.filename:
            raise BadRequest(f"the form has a file {part.filename[:100]!r} in the part {part.name[:100]!r}: one upload "
                             "is one model, in the part named 'file'; send fields without a file name")
        elif part.name == "metadata" and any(seen.name == part.name for seen, _ in self.parts):
            raise BadRequest("the form has two parts named 'metadata': give it once")   # each may be long
        self._part, self._text = part, bytearray()

    def _keep(self, text: memoryview) -> None:
        if self._part.filename is not None:
            raise BadRequest(f"the form has a file in the part {self._part.name[:100]!r}: one upload is one model, in "
                             "the part named 'file'")
        self._text += text
        most = metadata.MAX_CUSTOM_TEXT if self._part.name == "metadata" else metadata.MAX_FIELD
        if len(self._text) > most:
            raise BadRequest(f"field {self._part.name[:100]!r} is longer than {most} bytes; the model "
                             "itself comes in the part named 'file'")

    def _end(self, part: Part, text: bytes) -> None:
        if part.name == CHARSET:
            charset = charset_of(text.decode("latin-1"))
            if self._cutter.charset not in (None, charset):
                raise BadRequest(f"{CHARSET} is given twice, with different values: give it once")
            self._cutter.charset = charset
        elif part.filename is None:     # otherwise no file was chosen in a browser
            self.parts.append((part, text))


def from_headers(text: str, ask: Callable[[Message], T]) -> T:
    """What `ask` finds in header lines that the e-mail parser has read; raises BadRequest if that fails."""
    try:
        return ask(HeaderParser().parsestr(text))
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RecursionError) as error:
        raise BadRequest(f"headers that cannot be read: {error}") from error


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart/form-data Content-Type; raises BadRequest."""
    if len(content_type) > MAX_CONTENT_TYPE:
        raise BadRequest(f"the Content-Type has {len(content_type)} characters, and this server takes up to "
                        f"{MAX_CONTENT_TYPE}: send multipart/form-data and a boundary alone")
    kind, boundary = from_headers(f"Content-Type: {content_type}", lambda h: (h.get_content_type(), h.get_boundary()))
    if kind != "multipart/form-data" or not BOUNDARY.fullmatch(boundary or ""):
        raise BadRequest("send the form as multipart/form-data with a boundary, like curl -F 'file=@model.pt' does")
    return str(boundary).encode()


def parameters_of(headers: Message, header: str) -> dict[str, str]:
    """The parameters of a header by their names in lower case, the first of equal names; raises BadRequest.

    RFC 6266 4.3: `filename*` wins over `filename`, in either order.
    """
    found: dict[str, str] = {}
    given = headers.get_params([], header)[1:]
    for name, value in sorted(given, key=lambda pair: not isinstance(pair[1], tuple)):
        charset = value[0] or "" if isinstance(value, tuple) else ""
        if charset.lower() not in EXTENDED:
            raise BadRequest(f"a part has a name in {charset[:50]!r}: send it as UTF-8")
        text = collapse_rfc2231_value(value)
        found.setdefault(name.lower(), text if isinstance(value, tuple) else without_encoded_words(text))
    return found


def parse_part(block: bytes, charset: str | None = None) -> Part:
    """The headers of one part, without their last CRLF; `charset` is the form's. Raises BadRequest."""
    if re.search(rb"[\r\n\0]", block.replace(b"\r\n", b"")):
        raise BadRequest("a part has a bare CR, LF or NUL in its headers")
    kind, said, typed, encodings, partial, defects = from_headers(header_text(block, charset), lambda headers: (
        headers.get_content_disposition(),
        parameters_of(headers, "content-disposition"),
        parameters_of(headers, "content-type"),
        (lowered(headers, "Content-Transfer-Encoding", "binary"), lowered(headers, "Content-Encoding", "identity")),
        "Content-Range" in headers,
        # Python 3.11.2 misses the inner parts of a multipart part even where it is given headers alone
        [defect for defect in headers.defects if not isinstance(defect, MultipartInvariantViolationDefect)],
    ))
    if defects:
        raise BadRequest(f"the headers of a part are broken: {type(defects[0]).__name__}")
    if kind != "form-data" or not (name := said.get("name")):
        raise BadRequest('a part lacks its Content-Disposition: form-data; name="…"')
    if encodings[0] not in AS_IT_IS or encodings[1] != "identity" or partial:
        # RFC 7578 4.7 and 4.8: not to be used; storing it encoded, or as the whole, would be worse
        raise BadRequest("a part comes with Content-Transfer-Encoding, Content-Encoding or Content-Range: send the "
                         "whole, and the bytes as they are")
    filename = said.get("filename", typed.get("name"))  # the name in the Content-Type is how RFC 1341 had it
    own = typed.get("charset")
    return Part(name.replace("%22", '"'), None if filename is None else clean_filename(filename.strip()),
                None if own is None or name == "file" else charset_of(own))


def lowered(headers: Message, name: str, default: str) -> str:
    return str(headers.get(name, default)).strip().lower()


def clean_filename(filename: str) -> str:
    """The last part of the path that a browser may send; curl and browsers write a quote as %22.

    A name that is too long for a file system is cut, but keeps its extension.
    """
    name = re.split(r"[/\\]", filename.replace("%22", '"'))[-1]
    if not name.isprintable():
        name = "".join(c for c in name if c.isprintable())
    if len(name) <= MAX_FILENAME:
        return name
    found = EXTENSION.search(name[-2 * MAX_FILENAME:])
    extension = found[0] if found else ""
    return name[:MAX_FILENAME - len(extension)] + extension
