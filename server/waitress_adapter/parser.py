"""Receiving a request: its head in one pass, then its body, which is passed on as it arrives."""

import time
from typing import Any
from urllib.parse import unquote_to_bytes

from waitress.parser import HTTPRequestParser, ParsingError, TransferEncodingNotImplemented, split_uri
from waitress.receiver import FixedStreamReceiver
from waitress.utilities import BadRequest, RequestEntityTooLarge, RequestHeaderFieldsTooLarge, ServerNotImplemented

from server import heads
from server.chunked import BadChunk, ChunkedDecoder
from server.heads import LONGEST_BEGINNING, TLS, begins_with_request, looks_like
from server.turns import FIELD
from server.uploads import CHUNKED_STEP, REQUEST, Body

MAX_HEADERS = 64 * 1024         # of a request; the usual limit is 8 KiB
MAX_FIELDS = 200                # of a head; browsers and proxies send some 20
HEAD_BLOCK = 16 << 10           # bytes received at once before a head is complete: what follows it waits in memory


class Overloaded(BadRequest):
    code, reason = 429, "Too Many Requests"     # not 503, after which a proxy would stop using this server


class FixedReceiver(FixedStreamReceiver):
    """Receives a body of known length, if possible straight to where its bytes stay."""

    def room(self) -> memoryview | None:
        room = self.buf.room()
        return room[:self.remain] if room is not None else None

    def landed(self, size: int) -> None:
        self.remain -= size
        self.completed = not self.remain
        self.buf.landed(size)


class ChunkedReceiver:
    """Receives a chunked body; has the methods that waitress expects of a receiver."""

    completed = False
    error: BadRequest | None = None

    def __init__(self, body: Body) -> None:
        self._body, self._decoder = body, ChunkedDecoder()

    def received(self, data: bytes) -> int:
        try:
            pieces, taken = self._decoder.feed(data)
        except BadChunk as error:
            self.error = BadRequest(str(error))
            return len(data)
        if pieces:  # joined: each append() takes a lock, and a chunk can be one byte
            self._body.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self.completed = self._decoder.done
        return taken

    def __len__(self) -> int:
        return len(self._body)

    def getfile(self) -> Body:
        return self._body

    getbuf = getfile


class StreamingParser(HTTPRequestParser):
    """A request that is being received. The application decides from the head what receives its body."""

    command, path, request_uri, query, url_scheme = "-", "/", "", "", "http"  # until they are known
    refused = completed = headers_finished = False
    error: Any = None
    content_length = 0
    body_rcv: Any = None
    body: Body | None = None    # what admit() returns, and an empty Body before that; None without a body
    expect_continue: bool = False
    task: Any = None    # the StreamingTask that answers it
    admitting = False   # whether admit() has not returned yet
    _is_http = False    # whether its first line is a request line
    foreign: str | None = None      # what it is if it is not HTTP

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self._begun = time.monotonic()
        self._head = bytearray()    # until it is complete
        self._held = 0
        self.environ: dict[str, Any] = {}   # as soon as the head is known

    def received(self, data: bytes) -> int:
        """Takes some of the head, or some of the body; returns how many of these bytes that were."""
        if self.headers_finished:
            return int(super().received(data))
        before = len(self._head)
        self._head += data
        end = self._head.find(b"\r\n\r\n", max(0, before - 3))
        if end < 0 and not self._is_http and (before < LONGEST_BEGINNING or b"\n" in data):
            if what := looks_like(bytes(self._head)):
                return self._not_http(what, data)
            self._is_http = begins_with_request(bytes(self._head))
        if (len(self._head) if end < 0 else end) >= MAX_HEADERS:
            return self._too_large(f"the head of the request is longer than {MAX_HEADERS} bytes", data)
        if end < 0:
            return len(data)
        head, self._head = bytes(self._head[:end + 4]), bytearray()
        fields = head.count(b"\r\n", 0, end)
        if fields > MAX_FIELDS:
            return self._too_large(f"the request has more than {MAX_FIELDS} header fields", data)
        self._held = 2 * len(head) + FIELD * fields
        try:
            self.parse_header(head)
        except TransferEncodingNotImplemented as error:
            self.error = ServerNotImplemented(str(error))
        except (ParsingError, ValueError) as error:     # ValueError: of heads.parse(), or a length of 5,000 digits
            if not self._is_http and (what := looks_like(head)):
                return self._not_http(what, data)
            self.error = BadRequest(str(error))
        if self.content_length >= self.adj.max_request_body_size:   # sys.maxsize: it cannot be meant
            self.error = RequestEntityTooLarge(f"a body of {self.content_length} bytes is too large")
        self.completed = self.error is not None or self.body_rcv is None
        self.headers_finished = True
        return end + 4 - before

    def room(self) -> memoryview | None:
        """Where to receive the next bytes of the body, then call landed(); None if they have to go to received()."""
        return self.body_rcv.room() if isinstance(self.body_rcv, FixedReceiver) else None

    def landed(self, size: int) -> None:
        """Takes so many bytes that were received into room()."""
        self.body_rcv.landed(size)
        self.completed = self.body_rcv.completed

    def _too_large(self, detail: str, data: bytes) -> int:
        return self._refuse(RequestHeaderFieldsTooLarge(detail), data)

    def _not_http(self, what: str, data: bytes) -> int:
        self.foreign, self.empty = what, what == TLS    # a client of TLS could not read the answer
        return self._refuse(BadRequest(f"this is {what}, and this server speaks HTTP: begin with a line like "
                                       "GET /health HTTP/1.1 that ends with CRLF"), data)

    def _refuse(self, error: Any, data: bytes) -> int:
        self._head, self.error = bytearray(), error
        self.completed = self.headers_finished = True
        return len(data)

    def parse_header(self, head: bytes) -> None:
        """Parses the head, and prepares to receive the body; raises ValueError and what waitress raises."""
        self.command, self.request_uri, self.version, self.headers = heads.parse(head)
        encoding, length = self.headers.get("TRANSFER_ENCODING"), self.headers.get("CONTENT_LENGTH", "0")
        for wrong, detail in (
            # RFC 9112 6.1 and 6.3: most of these are used to smuggle a second request
            (encoding is not None and "CONTENT_LENGTH" in self.headers,
             "Transfer-Encoding and Content-Length exclude each other"),
            (encoding is not None and self.version == "1.0", "HTTP/1.0 has no Transfer-Encoding"),
            (not (length.isascii() and length.isdigit()), f"Content-Length is not a number: {length[:50]!r}"),
            (self.version not in ("1.0", "1.1"), "this server speaks HTTP/1.0 and HTTP/1.1"),
            ("HOST" not in self.headers and self.version == "1.1", "HTTP/1.1 requires a Host header"),     # 3.2
        ):
            if wrong:
                raise ParsingError(detail)
        if encoding is not None and encoding.lower() != "chunked":
            raise TransferEncodingNotImplemented("chunked is the only transfer coding that this server supports")
        self._take_target()
        self.expect_continue = self.version == "1.1" and self.headers.get("EXPECT", "").lower() == "100-continue"
        self.content_length, self.chunked = int(length), encoding is not None
        if self.chunked:
            del self.headers["TRANSFER_ENCODING"]   # the application gets the decoded body
        if self.chunked or self.content_length:
            self.body = Body()
            self.body_rcv = FixedReceiver(self.content_length, self.body)   # until begin_body()

    def _take_target(self) -> None:
        """Sets the path, percent-decoded once, and the query (RFC 9112 3.2)."""
        self.url_scheme = self.adj.url_scheme
        if self.request_uri.startswith("/"):
            path, _, self.query = self.request_uri.partition("?")
            self.path = unquote_to_bytes(path.encode("latin-1")).decode("latin-1") if "%" in path else path
        else:   # a whole URL, whose host replaces the one in the header (3.2.2), or *
            _, host, self.path, self.query, _ = split_uri(self.request_uri.encode("latin-1"))
            self.headers["HOST"] = host or self.headers.get("HOST", "")

    def begin_body(self, body: Body) -> None:
        """Makes what admit() returned the receiver of the body."""
        self.environ["wsgi.input"] = self.body = body
        self.body_rcv = ChunkedReceiver(body) if self.chunked else FixedReceiver(self.content_length, body)
        if body.refusal and (self.expect_continue or "X_FORWARDED_EXPECT" in self.headers):
            # RFC 9110 10.1.1: a final status, and the body is not asked for; nginx passes Expect on under this name
            self.expect_continue, self.completed, self.refused = False, True, True

    @property
    def appetite(self) -> int:
        """How many bytes are to be read at once."""
        body = self.body
        if body is None:
            return HEAD_BLOCK
        return CHUNKED_STEP if self.chunked else min(body.step, int(self.body_rcv.remain))

    @property
    def held(self) -> int:
        body = self.body    # read once: any thread may call this, even while the request is closed
        return self._held + len(self._head) + (body.held if body is not None else 0)

    @property
    def kept(self) -> bool:
        """Whether what has arrived of the body is kept if the client leaves."""
        return self.body is not None and self.body.kept

    @property
    def superseded(self) -> bool:
        """Whether another client continues the upload."""
        return self.body is not None and self.body.superseded

    def overdue(self) -> bool:
        """Whether the head has been arriving for longer than a silent connection is kept."""
        return not self.headers_finished and time.monotonic() - self._begun > self.adj.channel_timeout

    def congested(self) -> bool:
        body = self.body
        if body is None:
            return False
        body.attend()
        return body.congested()

    def close(self) -> None:
        """Frees what the request holds at once, because the garbage collector may not run for a long time."""
        super().close()
        self._held, self._head, self.body_rcv, self.body = 0, bytearray(), None, None
        self.environ.pop(REQUEST, None)     # it refers to the environment
        task, self.task = self.task, None
        if task:
            task.close()
