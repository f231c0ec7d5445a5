"""The chunked transfer coding (RFC 9112, section 7.1): bytes in, content out. No files, no sockets."""

import re

MAX_LINE = 1024             # bytes; a size has at most 16 digits, and extensions are hardly ever used
MAX_TRAILER = 16 * 1024     # bytes; trailers are hardly ever used, and are discarded
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'

# no white space, which implementations interpret differently, and no number that needs more than 63 bits
SIZE = rb"(0*[0-7]?[0-9A-Fa-f]{1,15})(?:;%b(?:=(?:%b|%b))?)*\r\n" % (TOKEN, TOKEN, QUOTED)
FIRST_SIZE, NEXT_SIZE = re.compile(SIZE), re.compile(rb"\r\n" + SIZE)

# the beginning of one of the two, which more bytes may complete
BEGUN = rb"(?:[0-9A-Fa-f]+(?:;[^\r\n]*)?\r?)?"
FIRST_BEGUN, NEXT_BEGUN = re.compile(BEGUN), re.compile(rb"\r?|\r\n" + BEGUN)
BAD_LINE = "a line with the size of a chunk is malformed or too long (RFC 9112, section 7.1)"
BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")


class BadChunk(Exception):
    """The body does not follow the chunked coding; the message says how."""


class ChunkedDecoder:
    """Decodes a chunked body that arrives in pieces of any size; `done` is true after its last byte."""

    def __init__(self) -> None:
        self.done = False
        self._left = 0              # bytes of the current chunk that have not arrived
        self._size, self._begun = FIRST_SIZE, FIRST_BEGUN
        self._in_trailer = False
        self._kept = b""            # the beginning of a line that is not complete

    def feed(self, data: bytes) -> tuple[list[memoryview], int]:
        """The content in `data`, as views of it, and how many of its bytes belong to this body; raises BadChunk."""
        kept = len(self._kept)
        data = self._kept + data
        view, position = memoryview(data), 0
        pieces: list[memoryview] = []
        while not self._in_trailer:
            if self._left:
                piece = view[position:position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
            line = self._size.match(data, position)
            if not line:
                break
            if line.end() - position > MAX_LINE:
                raise BadChunk(BAD_LINE)
            position = line.end()
            self._left = int(line[1], 16)
            self._in_trailer = not self._left
            self._size, self._begun = NEXT_SIZE, NEXT_BEGUN
        if self._in_trailer:
            position = self._trailer(data, position)
        self._kept = b"" if self.done else data[position:]
        if not self._in_trailer and (len(self._kept) > MAX_LINE or not self._begun.fullmatch(self._kept)):
            raise BadChunk(BAD_LINE)
        return pieces, (position if self.done else len(data)) - kept

    def _trailer(self, data: bytes, position: int) -> int:
        """The end of the trailer section, or its beginning while it is not complete; raises BadChunk."""
        if data.startswith(b"\r\n", position):
            self.done = True
            return position + 2
        end = data.find(b"\r\n\r\n", position, position + MAX_TRAILER)
        if end >= 0:
            if BARE.search(data, position, end):
                raise BadChunk("a trailer of the chunked body contains a bare CR, LF or NUL")
            self.done = True
            return end + 4
        if len(data) - position >= MAX_TRAILER:
            raise BadChunk(f"the trailers of the chunked body are longer than {MAX_TRAILER} bytes")
        return position
