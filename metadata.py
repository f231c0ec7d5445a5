"""metadata.json: the bytes that are written, and reading them back."""

import re
from collections.abc import Mapping
from typing import Any, BinaryIO

from models import InvalidMetadata, as_text, parse_json

# Bytes of a document, read and written, without indents. What users give is 0.6 MiB at most, what inspection adds less
# than 2, and what users gave an earlier version came to 6.3: the result of a verification always has room.
MAX_METADATA = 8 << 20
MAX_INDENTED = 64 << 20     # bytes with indents, which that version wrote at each level: some 50 MiB at the most
BLOCK = 64 * 1024           # bytes of one read; most files have one or two thousand
INDENT = re.compile(rb"\n +")


def encoded(document: Mapping[str, Any]) -> bytes:
    """The bytes of a metadata.json; raises InvalidMetadata for what decoded() would refuse.

    One line for each field, which is how people and deploy/backup.sh read it. An indent at each level would turn a
    field of 8 KiB into hundreds.
    """
    try:
        fields = ",\n".join(f"  {as_text(name)}: {as_text(value)}" for name, value in document.items())
        text = f"{{\n{fields}\n}}\n".encode()
        decoded(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMetadata(f"this metadata could not be read back: {error}") from error
    return text


def decoded(text: bytes) -> dict[str, Any]:
    """The document of a metadata.json; raises ValueError for one that is too long, too deep, or no JSON object."""
    if len(text) > MAX_METADATA:
        raise ValueError(f"it is longer than {MAX_METADATA} bytes")
    document = parse_json(text)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def read(file: BinaryIO) -> dict[str, Any]:
    """The document in an open file; raises ValueError as decoded() does, and OSError."""
    blocks, length, indented = list[bytes](), 0, 0
    while block := file.read(BLOCK):
        indented += len(block)
        blocks.append(INDENT.sub(b"\n", block))    # no string in JSON holds a line feed as it is
        length += len(blocks[-1])
        if length > MAX_METADATA or indented > MAX_INDENTED:
            raise ValueError(f"it is longer than {MAX_METADATA} bytes")
    return decoded(b"".join(blocks))
