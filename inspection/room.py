"""What puts inspection into the server: the examiner of uploads, and the refusals that settings ask for."""

from collections.abc import Callable
from typing import BinaryIO

from inspection import formats
from repository.model import Inspection
from server.application import Room
from server.settings import Settings


def examiner(settings: Settings) -> Callable[[BinaryIO, int], Inspection]:
    """Inspects an upload, and refuses what MODEL_ALLOWED_FORMATS and MODEL_PICKLE do not let in. Raises ValueError."""
    if unknown := sorted(settings.allowed_formats - set(formats.FORMATS)):
        raise ValueError(f"MODEL_ALLOWED_FORMATS has {unknown[0]!r}: use {', '.join(formats.FORMATS)}")

    def examine(file: BinaryIO, size: int) -> Inspection:
        found = formats.inspect(file, size)
        formats.check(found, settings.allowed_formats, settings.pickle)
        return found

    return examine


INSPECTION = Room(examiner=examiner)
