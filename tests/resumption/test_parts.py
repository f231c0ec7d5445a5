"""Uploads in parts: what a draft has is told, continued, refused, stored and forgotten."""

import os

import pytest
from support.common import eventually, sha256, staged
from support.credentials import ALL, bearer, line
from support.raw import chunks, head
from support.witness import send

MIB = 1 << 20
COMMON = os.urandom(3 * MIB + 1234)


@pytest.fixture
def data():
    """Bytes that no other test uploads: otherwise they would be here already."""
    return os.urandom(16) + COMMON


def where(target, data):
    return f"{target}/upload?sha256={sha256(data)}"


def part(site, url, data, offset, method="PUT", **headers):
    return site.send(method, url, data, Upload_Offset=str(offset), **headers)


def test_of_what_is_not_known_nothing_is_here(site, target, data):
    for url in (where(target, data), where(target, data).replace(sha256(data), sha256(data).upper())):
        answer = site.send("GET", url)
        assert (answer.status, answer.json, answer.headers["Upload-Offset"]) == (200, 0, "0")
        assert (answer.headers["Upload-Complete"], answer.headers["Cache-Control"]) == ("?0", "no-store")
        assert answer.headers["Upload-Limit"] == "max-age=86400"
    assert site.send("HEAD", where(target, data)).headers["Upload-Offset"] == "0"
    assert staged(site.root) == []


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_parts_become_the_model(site, target, data, method):
    url, description = where(target, data), "&description=in+parts&stage=prod"
    answer = part(site, url, data[:MIB + 5], 0, method, Upload_Complete="?0")
    assert answer.status == 204
    assert (answer.headers["Upload-Offset"], answer.headers["Upload-Complete"]) == (str(MIB + 5), "?0")
    answer = site.send("GET", url)
    assert (answer.json, answer.headers["Upload-Complete"]) == (MIB + 5, "?0")
    assert part(site, url, data[MIB + 5:2 * MIB], MIB + 5, method, Upload_Complete="?0").status == 204
    answer = part(site, url + description, data[2 * MIB:], 2 * MIB, method)
    assert (answer.status, answer.json["sha256"], answer.json["description"]) == (201, sha256(data), "in parts")
    assert answer.json["filename"] is None, "as for an upload in one"
    assert answer.json["metadata"] == {"stage": "prod"} and answer.headers["ETag"] == f'"{sha256(data)}"'
    assert answer.headers["Upload-Offset"] == str(len(data)) and answer.headers["Upload-Complete"] == "?1"
    assert (site.root / target.removeprefix("/models/") / "model").read_bytes() == data
    eventually(lambda: staged(site.root) == [])     # the model of another test may be verified at this moment
    answer = site.send("GET", url)
    assert (answer.json, answer.headers["Upload-Complete"]) == (len(data), "?1")
    answer = part(site, url + description, b"", len(data), method)
    assert (answer.status, answer.json["unchanged"]) == (200, True)
    eventually(lambda: staged(site.root) == [])     # what it was linked from is verified meanwhile


def test_a_model_that_came_in_parts_is_the_one_that_comes_as_a_whole(site, target, data):
    part(site, where(target, data), data[:MIB], 0, Upload_Complete="?0")
    answer = part(site, where(target, data), data[MIB:], MIB)
    assert (answer.status, answer.json["filename"]) == (201, None)
    answer = site.send("PUT", target, data)
    assert (answer.status, answer.json.get("unchanged")) == (200, True)


@pytest.mark.parametrize("back", [1, 4096, 70_000, MIB])
def test_what_is_here_already_is_skipped(site, target, data, back):
    url = where(target, data)
    part(site, url, data[:MIB], 0, Upload_Complete="?0")
    answer = part(site, url, data[MIB - back:MIB - 1], MIB - back, Upload_Complete="?0")
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(MIB))
    answer = part(site, url, data[MIB - back:], MIB - back)
    assert (answer.status, answer.json["sha256"]) == (201, sha256(data))


def test_beyond_what_is_here_the_answer_tells_how_much_that_is(site, target, data):
    url = where(target, data)
    for here in (0, MIB + 1):
        part(site, url, data[:here], 0, Upload_Complete="?0")
        answer = part(site, url, data[here + 1:], here + 1)
        assert (answer.status, answer.headers["Upload-Offset"]) == (409, str(here)) and answer.json["detail"]
    assert site.send("GET", url).json == MIB + 1
    assert site.send("DELETE", url).status == 204


@pytest.mark.parametrize("says", ["?0", "?1", None])
def test_it_is_complete_when_its_length_is_reached_whatever_it_says(site, target, data, says):
    url, more = where(target, data), {} if says is None else {"Upload_Complete": says}
    size = {"Upload_Length": str(len(data))}
    assert part(site, url, data[:MIB], 0, **size, **more).status == 204
    assert part(site, url, data[MIB:], MIB, **size, **more).status == 201


def test_the_length_that_came_with_the_first_part_counts_for_the_others(site, target, data):
    """A short part that says nothing would be the last one, and the digest of what is here not the right one."""
    url, size = where(target, data), str(len(data))
    assert part(site, url, data[:9], 0, Upload_Length=size).status == 204
    assert site.send("GET", url).headers["Upload-Length"] == size
    assert part(site, url, data[9:], 9, Upload_Length="99").status == 400
    assert part(site, url, data[9:] + b"more", 9).status == 400     # by its head, so that what is here is kept
    assert part(site, url, data[9:MIB], 9).headers["Upload-Offset"] == str(MIB)
    assert part(site, url, data[MIB:], MIB).status == 201
    assert site.send("DELETE", target).status == 200
    answer = site.send("GET", url)
    assert (answer.json, answer.headers["Upload-Complete"]) == (0, "?0"), "of what is deleted nothing is here"


@pytest.mark.parametrize("says", ["1", "true", "?2", "?1;q=1", "?0, ?0", ""])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_part_of_which_it_is_in_doubt_whether_more_follows_is_refused(site, target, data, method, says):
    answer = part(site, where(target, data), data, 0, method, Upload_Complete=says)
    assert answer.status == 400 and "neither ?0 nor ?1" in answer.json["detail"] and staged(site.root) == []


def test_more_than_its_length_is_refused(site, target, data):
    answer = part(site, where(target, data), data, 0, Upload_Length=str(len(data) - 1))
    assert answer.status == 400 and "Upload-Length" in answer.json["detail"]
    assert staged(site.root) == []
    url = where(target, data)
    part(site, url, data[:50], 0, Upload_Complete="?0")
    assert part(site, url, data[5:10], 5, Upload_Length="10").status == 400, "more than that is here"
    assert site.send("GET", url).json == 50 and site.send("DELETE", url).status == 204


def test_another_digest_is_told_and_nothing_is_left(site, target, data):
    url = where(target, data + b"x")
    assert part(site, url, data[:MIB], 0, Upload_Complete="?0").status == 204
    answer = part(site, url, data[MIB:], MIB)
    assert answer.status == 400 and all(digest in answer.json["detail"] for digest in (sha256(data), url[-64:]))
    assert (staged(site.root), site.send("GET", url).json) == ([], 0)


def test_the_digest_that_came_with_the_post_counts_beside_that_of_a_part(site, target, data):
    created = site.send("POST", f"{target}/upload?sha256={sha256(b'other')}", Upload_Length=str(len(data)))
    url = created.headers["Location"][created.headers["Location"].index("/models/"):]
    answer = part(site, f"{url}&sha256={sha256(data)}", data, 0)
    assert answer.status == 400 and sha256(b"other") in answer.json["detail"]
    assert (staged(site.root), site.send("GET", target).status) == ([], 404)


def test_a_draft_is_deleted(site, target, data):
    url = where(target, data)
    part(site, url, data[:MIB], 0, Upload_Complete="?0")
    assert staged(site.root) != []
    assert [site.send("DELETE", url).status for _ in range(2)] == [204, 204]
    assert (staged(site.root), site.send("GET", url).json) == ([], 0)


def test_an_upload_by_its_id_that_changed_nothing_is_told_as_complete_too(site, target, data):
    assert site.put(target, data).status == 201
    answer = site.send("POST", f"{target}/upload", Upload_Length=str(len(data)))
    where = answer.headers["Location"][answer.headers["Location"].index("/models/"):]
    assert part(site, where, data, 0, "PATCH").json["unchanged"]
    told = site.send("HEAD", where)
    assert (told.status, told.headers["Upload-Offset"], told.headers["Upload-Complete"]) == (200, str(len(data)), "?1")
    assert site.send("DELETE", where).status == 204 and staged(site.root) == []


@pytest.mark.parametrize(("data", "here"), [(b"", 0), (b"12", 1)])
def test_what_was_not_stored_when_all_of_it_had_come_can_be_sent_to_its_end(start, data, here):
    server, url = start(), where("/models/p/a/1/m", data)
    with server.connect() as wire:
        wire.send(head(f"PUT {url}", "Upload-Offset: 0", f"Upload-Length: {len(data)}", "If-None-Match: *",
                       "Transfer-Encoding: chunked"))
        eventually(lambda: staged(server.storage) != [])
        assert send(server, "PUT", "/models/p/a/1/m", b"other").status == 201
        wire.send(chunks(data, 1))
        assert wire.response()[0] == 412
    assert send(server, "GET", url).json == here
    assert send(server, "PUT", url, data[here:], Upload_Offset=str(here)).status == 200
    assert send(server, "GET", "/models/p/a/1/m").body == data


def test_a_post_that_overrides_its_method_continues_an_upload(site, target, data):
    """tus-java-client: the classes of Java cannot send a PATCH."""
    created = site.send("POST", f"{target}/upload", Upload_Length=str(len(data)), Tus_Resumable="1.0.0")
    url = created.headers["Location"][created.headers["Location"].index("/models/"):]
    says = {"X_HTTP_Method_Override": "PATCH", "Tus_Resumable": "1.0.0"}
    first = part(site, url, data[:MIB], 0, "POST", **says)
    assert (first.status, first.headers["Upload-Offset"]) == (204, str(MIB))
    assert part(site, url, data[2 * MIB:], 2 * MIB, "POST", **says).status == 409
    last = part(site, url, data[MIB:], MIB, "POST", **says)
    assert (last.status, last.headers["Upload-Offset"]) == (204, str(len(data)))
    assert site.send("GET", f"{target}/info").json["sha256"] == sha256(data)
    assert site.send("DELETE", url).status == 204 and staged(site.root) == []


def test_an_upload_that_came_with_its_post_is_told_as_complete(site, target, data):
    answer = site.send("POST", f"{target}/upload", data)    # whose length it does not tell beforehand
    where = answer.headers["Location"][answer.headers["Location"].index("/models/"):]
    told = site.send("GET", where)
    assert (told.json, told.headers["Upload-Complete"]) == (len(data), "?1")
    assert site.send("DELETE", where).status == 204 and staged(site.root) == []


@pytest.mark.parametrize(("query", "headers"), [
    ("?model_name=other", {}), ("", {"Upload_Metadata": "version b3RoZXI="}), ("?sha256=12", {}),
    ("", {"Upload_Metadata": "sha256 MTI="}), ("", {"X_Checksum_Sha256": "0" * 64}),
    # parts that would be stored as the whole, or be lost, with 201 in each case
    ("?id=" + "0" * 32, {}), ("", {"Upload_Offset": "5"}),
    ("", {"Upload_Concat": "partial"}),
])
def test_what_cannot_begin_is_refused(site, target, query, headers):
    answer = site.send("POST", f"{target}/upload{query}", Upload_Length="5", **headers)
    assert answer.status == 400 and answer.json["detail"] and staged(site.root) == []


@pytest.mark.parametrize(("query", "headers", "status"), [
    ("", {}, 400),
    ("?sha256=12", {}, 400),
    ("?id=../../x", {}, 400),
    ("?id=" + "0" * 32, {}, 404),
    (f"?sha256={'0' * 64}", {"Upload_Offset": "x"}, 400),
    (f"?sha256={'0' * 64}", {"Upload_Offset": "9" * 30}, 400),
    (f"?sha256={'0' * 64}", {"Upload_Offset": "7"}, 409),
    (f"?sha256={'0' * 64}", {"Upload_Length": "-1"}, 400),
    (f"?sha256={'0' * 64}", {"Content_Encoding": "gzip"}, 415),
    (f"?sha256={'0' * 64}", {"Content_Range": "bytes 5-14/15"}, 400),
    (f"?sha256={'0' * 64}", {"Range": "bytes=5-"}, 400),
    (f"?sha256={'0' * 64}", {"Content_MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, 400),
    (f"?sha256={'0' * 64}", {"Upload_Checksum": "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0="}, 400),     # as tuspy can send it
    (f"?sha256={'0' * 64}&version=other", {}, 400),
    (f"?sha256={'0' * 64}", {"If_Match": '"x"'}, 412),
])
def test_a_part_that_cannot_be_one_is_refused(site, target, query, headers, status):
    answer = site.send("PUT", f"{target}/upload{query}", COMMON[:10], **{"Upload_Offset": "0", **headers})
    assert answer.status == status and answer.json["detail"]
    assert staged(site.root) == []


@pytest.mark.parametrize(("settings", "headers", "status"), [
    ({"MODEL_MAX_SIZE": "3M"}, {}, 413),
    ({"MODEL_MAX_SIZE": "3M"}, {"Upload-Length": str(4 * MIB)}, 413),
    ({}, {"Upload-Length": str(10**17)}, 507),
    ({"MODEL_OVERWRITE": "deny"}, {}, 409),
    ({}, {"If-None-Match": "*"}, 412),
    ({}, {"Upload-Offset": "9999999"}, 409),
    ({}, {"Upload-Offset": "x"}, 400),
    ({}, {"Content-Range": "bytes 5-14/15"}, 400),
    ({}, {"Content-Encoding": "gzip"}, 415),
    ({"MODEL_ANONYMOUS": "read"}, {}, 401),
], ids=str)
def test_a_part_is_refused_before_it_is_sent_and_without_asking_after_it(start, tmp_path, settings, headers, status):
    model = tmp_path / "models/p/a/1/m/model"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"old")
    server = start(**settings)
    data = COMMON + COMMON[:MIB]
    fields = {"Upload-Offset": "0", "Content-Length": str(len(data)), **headers}
    lines = [f"{name}: {value}" for name, value in fields.items()]
    request = head(f"PUT {where('/models/p/a/1/m', data)}", *lines)
    with server.connect() as wire:
        wire.send(request)
        wire.send(data)
        got, told, _ = wire.response()
        assert (got, told.get("upload-offset")) == (status, "0" if headers.get("Upload-Offset") == "9999999" else None)
    with server.connect() as wire:
        wire.send(request.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n"))
        assert wire.head()[0] == status
    assert staged(server.storage) == []


@pytest.mark.parametrize(("name", "target", "status"), [
    ("ann", "/models/p/a/1/old", 403),              # which it may create and not replace
    ("ann", "/models/other/a/1/m", 403),
    ("bob", "/models/p/a/1/old/below", 409),
    ("bob", "/models/p/a/1/m?id=" + "0" * 32, 404),
    ("bob", "/models/p/a/1/m?id=0", 400),
    ("bob", "/models/p/a/1/.m", 400),
    ("nobody", "/models/p/a/1/m", 401),
])
def test_what_a_token_may_not_continue_or_nobody_can_is_refused_at_once(start, tokens, name, target, status):
    server = start(MODEL_TOKENS_FILE=str(tokens(line("ann", "create", "p"), line("bob", ALL, "*"))))
    assert send(server, "PUT", "/models/p/a/1/old", b"old", **bearer("bob")).status == 201
    path, _, query = target.partition("?")
    request = head(f"PUT {path}/upload?{query or f'sha256={sha256(COMMON)}'}", "Upload-Offset: 0",
                   f"Content-Length: {len(COMMON)}", f"Authorization: {bearer(name)['Authorization']}")
    with server.connect() as wire:
        wire.send(request, COMMON)
        assert wire.response()[0] == status
    with server.connect() as wire:
        wire.send(request.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n"))
        assert wire.head()[0] == status
    assert staged(server.storage) == []
