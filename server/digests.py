"""Digests that a client claims for a model: read from its request, and computed while the bytes arrive."""

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import Protocol, Self

from server.conditional import Header
from server.errors import BadRequest, DigestMismatch

SIZES = {"sha256": 32, "sha512": 64, "sha1": 20, "md5": 16, "crc32": 4}    # in bytes
IN_HEX = {"X-Checksum-Sha256": "sha256", "X-Checksum-Sha512": "sha512", "X-Checksum-Sha1": "sha1",
          "X-Checksum-Md5": "md5"}
NO_CLAIM = re.compile("UNSIGNED-PAYLOAD|STREAMING-.*", re.IGNORECASE)  # in X-Amz-Content-Sha256; see envelopes
IN_BASE64 = {
    "Content-MD5": "md5",       # RFC 1864
    "X-Amz-Checksum-Sha256": "sha256", "X-Amz-Checksum-Sha1": "sha1", "X-Amz-Checksum-Crc32": "crc32",
}
UNKNOWN = ("X-Amz-Checksum-Crc32c", "X-Amz-Checksum-Crc64nvme")     # the standard library can compute neither
LISTED = {"sha-256": "sha256", "sha-512": "sha512", "sha": "sha1", "md5": "md5"}    # RFC 9530 5, RFC 3230 4.1.1
IN_LIST = re.compile(r"([A-Za-z0-9-]+)=([^;\s]+)(?:[ \t]*;.*)?")
SHA256_HEX = re.compile("[0-9A-Fa-f]{64}")
Decode = Callable[[str], str | None]    # makes lower-case hex of a digest as it is sent; None for anything else


class Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Self: ...


class Crc32:
    """CRC-32 as in zip and S3, with the methods of hashlib."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def copy(self) -> Self:
        return copy(self)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


class Hashes:
    """The SHA-256 of the bytes that update() is given, and the other digests that were asked for."""

    def __init__(self, algorithms: Iterable[str] = ()) -> None:
        self._hashes: dict[str, Hash] = {
            name: Crc32() if name == "crc32" else hashlib.new(name, usedforsecurity=False)
            for name in ("sha256", *algorithms)}

    def update(self, block: bytes | memoryview) -> None:
        for each in self._hashes.values():
            each.update(block)

    def copy(self) -> "Hashes":
        """The digests of the bytes so far, to be continued separately."""
        other = Hashes()
        other._hashes = {name: each.copy() for name, each in self._hashes.items()}
        return other

    def digests(self) -> dict[str, str]:
        """The digests so far in hex, by algorithm."""
        return {name: each.hexdigest() for name, each in self._hashes.items()}


def claims_of(header: Header, fields: Mapping[str, str]) -> dict[str, str]:
    """The digests that a client claims, in hex by algorithm, from its headers and the field sha256.

    On a form all of them mean the file in it. Raises BadRequest for a malformed one, for two that differ, and for an
    algorithm of S3 that cannot be verified. Other algorithms in a list (RFC 9530, RFC 3230) are ignored.
    """
    claims: dict[str, str] = {}
    for source, algorithm, value, decode in claimed(header, fields):
        digest = decode(value)
        if digest is None or len(digest) != 2 * SIZES[algorithm]:
            raise BadRequest(f"{source} has {value[:100]!r}, which is not {algorithm}: send {SIZES[algorithm]} "
                             "bytes, in hex in X-Checksum-*, X-Amz-Content-Sha256 and the field sha256, otherwise in "
                             "base64")
        if claims.setdefault(algorithm, digest) != digest:
            raise BadRequest(f"the request claims two {algorithm} digests: {claims[algorithm]} and {digest}")
    return claims


def claimed(header: Header, fields: Mapping[str, str]) -> Iterator[tuple[str, str, str, Decode]]:
    """(header or field, algorithm, value, what makes lower-case hex of that) of each claim; raises BadRequest."""
    for name in UNKNOWN:
        if header(name) is not None:
            raise BadRequest(f"this server cannot verify {name}: send X-Amz-Checksum-Sha256, or no checksum")
    for name, algorithm in IN_HEX.items():
        if (value := header(name)) is not None:
            yield name, algorithm, value, of_hex
    if (value := header("X-Amz-Content-Sha256")) is not None and not NO_CLAIM.fullmatch(value.strip()):
        yield "X-Amz-Content-Sha256", "sha256", value, of_hex
    if (value := fields.get("sha256")) is not None:
        yield "sha256", "sha256", value, of_hex
    for name, algorithm in IN_BASE64.items():
        if (value := header(name)) is not None:
            yield name, algorithm, value, of_base64
    for name, decode in LISTS.items():
        for member in filter(None, map(str.strip, (header(name) or "").split(","))):
            if not (found := IN_LIST.fullmatch(member)):
                raise BadRequest(f"{name} has {member[:100]!r}, which is not of the form algorithm=digest")
            if known := LISTED.get(found[1].lower()):
                yield name, known, found[2], decode


def digest_in(query: Mapping[str, str]) -> str | None:
    """The SHA-256 in ?sha256=, in lower-case hex; raises BadRequest if it is malformed."""
    if (text := query.get("sha256")) is not None and not SHA256_HEX.fullmatch(text):
        raise BadRequest(f"sha256 is {text[:100]!r}, and has to be 64 hex digits")
    return text and text.lower()


def of_hex(text: str) -> str | None:
    return text.strip().lower() if re.fullmatch("[0-9A-Fa-f]+", text.strip()) else None


def of_base64(text: str) -> str | None:
    try:
        return base64.b64decode(text.strip(), validate=True).hex()
    except (binascii.Error, ValueError):
        return None


def of_bytes_item(text: str) -> str | None:
    """RFC 8941 3.3.5: base64 between colons."""
    return of_base64(text[1:-1]) if len(text) > 1 and text[0] == text[-1] == ":" else None


LISTS: dict[str, Decode] = {"Repr-Digest": of_bytes_item, "Content-Digest": of_bytes_item, "Digest": of_base64}


def check_claims(claims: Mapping[str, str], digests: Mapping[str, str]) -> None:
    """Raises DigestMismatch unless the bytes have each digest that was claimed."""
    for algorithm, claim in claims.items():
        if digests[algorithm] != claim:
            raise DigestMismatch(f"it arrived with {algorithm} {digests[algorithm]}, not {claim}: nothing was stored, "
                                 "send it again")
