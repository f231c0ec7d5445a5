"""Digests that a client claims for its upload: verified while it arrives, whatever header they come in."""

import base64
import hashlib
import zlib

import pytest
from support.common import sha256
from support.site import DATA, FILE, stores_nothing

NAMED = {"project_id": "p-form", "app_name": "a", "version": "1", "model_name": "m"}
CRC = zlib.crc32(DATA).to_bytes(4, "big")


def hexed(algorithm, data=DATA):
    return hashlib.new(algorithm, data).hexdigest()


def b64(algorithm, data=DATA):
    return base64.b64encode(hashlib.new(algorithm, data).digest()).decode()


@pytest.mark.parametrize("header", [
    {"X_Checksum_Sha256": sha256(DATA)}, {"X_Checksum_Sha256": sha256(DATA).upper()},
    {"X_Checksum_Sha1": hexed("sha1")}, {"X_Checksum_Md5": hexed("md5").upper()},
    {"X_Checksum_Sha512": hexed("sha512")},
    {"X_Checksum_Sha1": hexed("sha1"), "X_Checksum_Md5": hexed("md5"), "X_Checksum_Sha256": sha256(DATA)},
    {"Content_MD5": b64("md5")},
    {"Repr_Digest": f"sha-256=:{b64('sha256')}:"}, {"Content_Digest": f"sha-256=:{b64('sha256')}:"},
    {"Repr_Digest": f"md5=:{b64('md5')}:, sha-256=:{b64('sha256')}:, sha-512=:{b64('sha512')}:, sha=:{b64('sha1')}:"},
    {"Digest": f"SHA-256={b64('sha256')}"}, {"Digest": f"sha={b64('sha1')},MD5={b64('md5')}, SHA-512={b64('sha512')}"},
    {"Repr_Digest": "crc32c=:AAAA:, unixsum=:AAAA:"}, {"Digest": "UNIXsum=30637, crc32c=x"},    # RFC 9530 3: ignored
    {"X_Checksum_Sha256": sha256(DATA), "Content_Digest": f"sha-256=:{b64('sha256')}:"},
    {"x_amz_checksum_sha256": b64("sha256")}, {"x_amz_checksum_sha1": b64("sha1")},
    {"x_amz_checksum_crc32": base64.b64encode(CRC).decode()},
    {"x_amz_content_sha256": sha256(DATA)}, {"x_amz_content_sha256": "UNSIGNED-PAYLOAD"},
])
def test_a_digest_that_fits_lets_the_upload_through(site, names, target, header):
    assert site.put(target, **header).status == 201
    assert site.post([*names.items(), FILE, ("sha256", sha256(DATA))], **header).status == 200   # of the file in it


@pytest.mark.parametrize(("header", "query"), [
    ({"X_Checksum_Sha256": sha256(b"")}, ""), ({"Repr_Digest": f"sha-256=:{b64('sha256', b'')}:"}, ""),
    ({"Content_Digest": f"sha-256=:{b64('sha256', b'')}:"}, ""), ({}, "?sha256=" + sha256(b"")),
])
def test_a_digest_that_differs_stores_nothing_and_tells_both(site, target, header, query):
    for send in (lambda: site.put(target + query, **header),
                 lambda: site.post([*NAMED.items(), FILE, ("sha256", sha256(b""))])):
        answer = stores_nothing(site, send, 400)
        assert sha256(DATA) in answer.json["detail"] and sha256(b"") in answer.json["detail"]


@pytest.mark.parametrize(("header", "have"), [
    ({"X_Checksum_Sha1": hexed("sha1", b"")}, hexed("sha1")),
    ({"X_Checksum_Md5": hexed("md5", b"")}, hexed("md5")),
    ({"X_Checksum_Sha512": hexed("sha512", b"")}, hexed("sha512")),
    ({"X_Checksum_Sha256": sha256(DATA), "X_Checksum_Md5": hexed("md5", b"")}, hexed("md5")),
    ({"Content_MD5": b64("md5", b"")}, hexed("md5")),
    ({"Digest": f"SHA-256={b64('sha256', b'')}"}, sha256(DATA)),
    ({"Digest": f"md5={b64('md5', b'')}"}, hexed("md5")),
    ({"Digest": f"SHA={b64('sha1', b'')}"}, hexed("sha1")),
    ({"Repr_Digest": f"sha-512=:{b64('sha512', b'')}:"}, hexed("sha512")),
    ({"x_amz_checksum_sha256": b64("sha256", b"")}, sha256(DATA)),
    ({"x_amz_checksum_sha1": b64("sha1", b"")}, hexed("sha1")),
    ({"x_amz_checksum_crc32": "AAAAAA=="}, CRC.hex()),
    ({"x_amz_content_sha256": sha256(b"")}, sha256(DATA)),
])
def test_every_claim_is_verified(site, target, header, have):
    for send in (lambda: site.put(target, **header), lambda: site.post([*NAMED.items(), FILE], **header)):
        assert have in stores_nothing(site, send, 400).json["detail"]


@pytest.mark.parametrize("header", [
    *({"X_Checksum_Sha256": value} for value in ("abc", sha256(DATA)[:-1], sha256(DATA) + "0", "g" * 64)),
    {"X_Checksum_Sha1": hexed("md5")}, {"X_Checksum_Md5": b64("md5")}, {"Content_MD5": hexed("md5")},
    {"Content_MD5": "AAAA"}, {"Content_MD5": "!"},
    *({"Repr_Digest": value} for value in ("sha-256=:AAAA:", "sha-256=:!:", "sha-256=::", "sha-512=:AAAA:", "sha=:",
                                           f"sha-256={b64('sha256')}", f"sha-256=:{b64('sha256')}")),
    {"Content_Digest": "sha-256=x"}, {"Digest": f"SHA-256={sha256(DATA)}"}, {"Digest": f"md5=:{b64('md5')}:"},
    {"x_amz_checksum_sha256": sha256(DATA)}, {"x_amz_checksum_crc32": CRC.hex()},
    {"X_Checksum_Sha256": sha256(DATA), "Repr_Digest": f"sha-256=:{b64('sha256', b'')}:"},
    {"x_amz_checksum_crc32c": "AAAAAA=="}, {"x_amz_checksum_crc64nvme": "AAAAAAAAAAA="},    # nobody here computes them
    *({"x_amz_content_sha256": value} for value in ("", sha256(DATA)[:-1], sha256(DATA) + "0", b64("sha256"), "x")),
    *({name: value} for name in ("Repr_Digest", "Content_Digest", "Digest")     # not ignored like other algorithms
      for value in (sha256(DATA), b64("sha256"), "sha-256", f"sha-256: {b64('sha256')}", f"sha-256 =:{b64('sha256')}:",
                    f"crc32c=:AAAA:, {sha256(DATA)}")),
])
def test_a_digest_that_is_none_or_two_that_differ_are_refused(site, target, header):
    stores_nothing(site, lambda: site.put(target, **header), 400)


def test_a_malformed_digest_is_refused_before_the_model_travels(live_server, project):
    with live_server.connect() as wire:
        wire.send(f"PUT /models/{project}/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-MD5: x\r\n"
                  "Expect: 100-continue\r\n\r\n")
        assert wire.head()[0] == 400
