"""Answering a request: files sent by the kernel, and lists made no faster than their reader takes them."""

import functools
import logging
from contextlib import ExitStack
from email.utils import formatdate
from typing import Any

from waitress.task import WSGITask

from server.errors import ProtocolError
from server.forwarded import forward
from server.responses import AnswerCutShort, FileSlice, Piece, Sending
from server.uploads import Body

log = logging.getLogger("model_server")


@functools.lru_cache(maxsize=1)
def http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


class Paused(BaseException):
    """An answer waits for its reader, and frees its thread. Not an Exception, which waitress would answer with 500."""


class StreamingTask(WSGITask):
    """Lets the application answer everything, including errors in HTTP: it gets these as the refusal of a body.

    An answer of many pieces pauses while its reader is FAR_BEHIND, and is executed again when the reader has caught up.
    """

    response_headers: list[tuple[str, str]]
    wrote_header = False
    content_bytes_written = 0
    sending: Sending | None = None      # the rest of an answer that may pause

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = self.request.environ  # it exists if the network thread has asked what to do
        if not environ:
            environ |= super().get_environment()
            if not environ.get("HTTP_HOST"):    # HTTP/1.0; the name that waitress has for that is no address
                environ["SERVER_NAME"] = self.channel.local_address
            forward(environ, self.channel.trusted)
            del environ["waitress.client_disconnected"]     # it refers to the channel, which refers to this
        if error := self.request.error:
            environ["wsgi.input"] = Body(ProtocolError(error.code, error.body))
        return environ

    def execute(self) -> None:
        if self.request.error or self.request.refused:
            self.channel.lingers = True
            self.set_close_on_finish()
        if self.sending is None:
            answer = self.channel.application(self.get_environment(), self.start_response)
            if not isinstance(answer, Sending):     # it never pauses
                for piece in (answer,) if isinstance(answer, FileSlice) else answer:
                    self.write(piece)
                return
            self.sending = answer
        try:
            for piece in self.sending.pieces:
                self.write(piece)
                self.channel.pause_if_behind()
        except AnswerCutShort as error:
            log.warning("an answer ends early, and its connection is closed: %s", error)
        if self.content_length not in (None, self.content_bytes_written):
            self.set_close_on_finish()      # otherwise its reader would wait for the rest

    def start_response(self, status: str, headers: list[tuple[str, str]]) -> None:
        """Keeps status and headers; our application calls it once."""
        self.status, self.response_headers, self.complete = status, [*self.response_headers, *headers], True
        self.content_length = next((int(value) for name, value in headers if name == "Content-Length"), None)

    def build_response_header(self) -> bytes:
        """The head of the answer; decides how it ends (RFC 9112 6.3) and whether the connection stays open (9.3)."""
        wishes = {wish.strip(" \t") for wish in self.request.headers.get("CONNECTION", "").lower().split(",")}
        if self.has_body and self.content_length is None and self.version == "1.1":
            self.response_headers.append(("Transfer-Encoding", "chunked"))
            self.chunked_response = True
        if (self.has_body and self.content_length is None) or "close" in wishes or (
                self.version == "1.0" and "keep-alive" not in wishes) or not self.channel.server.accepting:
            self.set_close_on_finish()
        elif self.version == "1.0":
            self.response_headers.append(("Connection", "Keep-Alive"))
        lines = [f"HTTP/{self.version} {self.status}", f"Server: {self.channel.server.adj.ident}",
                 f"Date: {http_date(int(self.start_time))}", *map(": ".join, self.response_headers)]
        head = "\r\n".join(lines)
        if head.count("\r") != len(lines) - 1 or head.count("\n") != len(lines) - 1:
            raise ValueError(f"a header of the answer has a line end in it: {lines}")   # RFC 9110 5.5
        return f"{head}\r\n\r\n".encode("latin-1")

    def write(self, piece: Piece) -> None:
        """Sends a piece of the answer; the first one goes out together with the head."""
        head = b"" if self.wrote_header else self.build_response_header()
        self.wrote_header = True
        self.content_bytes_written += len(piece)
        if isinstance(piece, FileSlice):
            self.write_file(head, piece)
        elif self.chunked_response and piece:
            self.channel.write_soon(b"%s%X\r\n%s\r\n" % (head, len(piece), piece))
        else:
            self.channel.write_soon(head + piece)

    def write_file(self, head: bytes, piece: FileSlice) -> None:
        with ExitStack() as undo:
            undo.callback(piece.close)
            self.channel.write_soon(head)
            self.channel.write_soon(piece)
            undo.pop_all()

    def close(self) -> None:
        """Gives up the rest of the answer; called at its end, whether all of it was sent or not."""
        sending, self.sending = self.sending, None
        if sending is not None:
            sending.close()
