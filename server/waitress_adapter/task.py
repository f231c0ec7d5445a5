"""Answering a request: files sent by the kernel, and lists made no faster than their reader takes them."""

from typing import Any, NamedTuple

from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.task import WSGITask

from server.errors import ProtocolError
from server.forwarded import forward
from server.uploads import Body

STREAM = "model_server.stream"  # in an environment: takes blocks over, see downloads.send


class FileSlice(NamedTuple):
    """Bytes to send that stay in their file until the kernel copies them."""

    descriptor: int
    offset: int
    length: int


class FileBuffer(ReadOnlyFileBasedBuffer):
    """wsgi.file_wrapper: waitress would read as much as the socket may ever take for each little that it takes."""

    def get(self, numbytes: int = -1, skip: bool = False) -> FileSlice:
        return FileSlice(self.file.fileno(), self.file.tell(), self.remain)


class Paused(BaseException):
    """An answer waits for its reader, and its thread does something else. No Exception, which waitress would answer."""


class StreamingTask(WSGITask):
    """Lets the application answer everything, faults below it included: those travel as the refusal of a body.

    An answer of many blocks pauses while its reader is AHEAD bytes behind, and is executed again when that one is not.
    """

    content_bytes_written = 0
    blocks: Any = None      # what is left of an answer that may pause

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = self.request.environ  # made already where the network thread might have answered
        if not environ:
            environ |= super().get_environment()
            if not environ.get("HTTP_HOST"):    # as with HTTP/1.0; waitress has a name for that which nobody can ask
                environ["SERVER_NAME"] = self.channel.local_address()
            forward(environ, self.channel.trusted)
            environ["wsgi.file_wrapper"] = FileBuffer
            del environ["waitress.client_disconnected"]     # which refers to the channel, and the channel to this
            environ[STREAM] = self.stream    # for blocks what file_wrapper is for files
        if error := self.request.error:
            environ["wsgi.input"] = Body(ProtocolError(error.code, error.body))
        return environ

    def write(self, data: bytes) -> None:
        if self.content_bytes_written or self.content_length != len(data) or not self.has_body:
            super().write(data)
            return
        header = self.build_response_header()   # head and body of a short answer in one packet
        self.wrote_header = True
        self.content_bytes_written = len(data)
        self.channel.write_soon(header + data)

    def execute(self) -> None:
        if self.request.error or self.request.refused:
            self.channel.lingers = True
            self.set_close_on_finish()
        if self.blocks is None:
            super().execute()
        for block in self.blocks or ():
            self.write(block)
            self.channel.pause_if_behind()

    def stream(self, blocks: Any) -> tuple[()]:
        """Takes an iterator of blocks over, which execute() sends when the application has returned."""
        self.blocks = blocks
        return ()

    def close(self) -> None:
        """Gives up what is left of the answer; called when it is over, sent or not."""
        blocks, self.blocks = self.blocks, None
        if blocks is not None:
            blocks.close()
