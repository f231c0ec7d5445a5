"""The alias `latest`: which version it is, where it is read, and that nothing is ever written through it."""

import os
import random
import re

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from support.common import ROOT, sha256

from repository.model import NAME
from repository.versions import precedence

# each version is below all that follow it: the table of the documentation
SECTION = (ROOT / "docs/api.md").read_text(encoding="utf-8").partition("### The latest version")[2].partition("##")[0]
ROWS = re.findall(r"^\| `(.+?)` \|", SECTION, re.MULTILINE)
ORDER = [version for row in ROWS for version in row.split("`, `")]
PATH = "/models/p/a/{}/m"


def test_versions_sort_by_precedence():
    shuffled = random.Random(1).sample(ORDER, len(ORDER))
    assert sorted(shuffled, key=precedence) == ORDER


def test_the_table_of_the_documentation_has_every_kind():
    assert len(ORDER) > 50 and len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize(("lower", "higher"), [
    ("v1.1.0-rc1", "v1.1.0"), ("1.1rc1", "1.1"), ("24.04-rc1", "24.04"), ("2.0.0.dev1", "2.0.0rc1"),
    ("2.0.0rc1", "2.0.0"), ("1.0.0", "v2.0.0"), ("0.0.1", "v99.0.0"), ("0.0.1", "01.2.3"), ("1.0.0-alpha", "1.0.0.0"),
    ("1.2", "1.10"), ("1", "1.1"), ("2024-01-31", "2024-02-01"), ("24.4", "24.10"), ("run2", "run10"), ("rc1", "rc2"),
    ("2.0.0-rc9", "2.0.0-rc10"), ("1.0.0a1", "1.0.0-beta"), ("1.0.0-rc.1", "1.0.0.post1"), ("1.0a1.dev1", "1.0a1"),
    ("1.0a1", "1.0a1.post1"), ("1.0.post1.dev2", "1.0.post1"), ("7b", "13b"), ("1.0.0-RC1", "1.0.0-rc2"),
    ("0.0.0-0", "9" * 128), ("V1", "v2"), ("1.0.0", "1.0.0_1"), ("2024-01-31", "2024-01-31T12"),
])
def test_versions_are_compared_as_people_write_them(lower, higher):
    assert precedence(lower) < precedence(higher)


@pytest.mark.parametrize(("one", "another"), [("1.0.0", "v1.0.0"), ("1.0", "1.0.0.0"), ("1.0rc1", "1.0.0-rc.1"),
                                              ("1.0a1", "1.0-alpha1"), ("1.0.0+a", "v1+b"), ("0", "0.0.0")])
def test_how_a_version_is_written_decides_between_equal_ones_alone(one, another):
    assert precedence(one)[:3] == precedence(another)[:3] and precedence(one) != precedence(another)


@pytest.mark.parametrize("version", ["_", "+", ".", "-", "v", "v-1", "latest", "x" * 128, "a1" * 64, "v.1", "r2"])
def test_every_name_has_a_precedence_and_those_that_are_no_versions_the_lowest(version):
    assert precedence(version) < precedence("0.0.0-0")


@given(st.lists(st.from_regex(NAME, fullmatch=True), max_size=8), st.randoms())
def test_all_names_have_one_order(versions, random):
    shuffled = random.sample(versions, len(versions))
    assert sorted(versions, key=precedence) == sorted(shuffled, key=precedence)


def test_build_metadata_is_above_no_release():
    assert precedence("1.0.0+zzz") < precedence("1.0.1")
    assert precedence("1.0.0-rc.1+zzz") < precedence("1.0.0")


@pytest.mark.parametrize(("versions", "newest"), [
    (["1.9.0", "1.10.0", "1.2.0"], "1.10.0"),
    (["1.0.0", "2.0.0-rc.1"], "1.0.0"),
    (["2.0.0-rc.1", "2.0.0-beta"], "2.0.0-rc.1"),
    (["v9", "v10", "main"], "v10"),
    (["v9", "0.0.1-alpha"], "v9"),
    (["1.0.0", "nightly", "v7"], "v7"),
    (["v1.1.0", "v1.1.0-rc1"], "v1.1.0"),
    (["24.04-rc1", "24.04", "23.10"], "24.04"),
    (["2.0.0.dev1", "2.0.0rc1", "nightly"], "2.0.0rc1"),
    (["epoch9", "epoch10", "main"], "epoch10"),
])
def test_latest_is_the_highest_version_and_says_so(app, versions, newest):
    for version in versions:
        app.put(PATH.format(version), version.encode(), status=201)
    path, own = PATH.format("latest"), PATH.format(newest)
    line = f"{sha256(newest.encode())}  m\n".encode()
    for suffix, body in (("", newest.encode()), (".sha256", line), ("/info", None)):
        for method in ("GET", "HEAD"):
            got = app.request(path + suffix, method=method)
            assert (got.headers["Content-Location"], got.headers["X-Model-Version"]) == (own + suffix, newest)
            if method == "GET":
                assert got.body == body if body else got.json["version"] == newest
    assert app.get(path, headers={"Range": "bytes=0-0"}, status=206).headers["X-Model-Version"] == newest
    etag = app.get(path).headers["ETag"]
    assert app.get(path, headers={"If-None-Match": etag}, status=304).headers["X-Model-Version"] == newest
    assert "X-Model-Version" not in app.get(own).headers


def test_what_the_alias_answers_has_no_date(app, store):
    for name in ("m", "n", "n.sha256"):
        app.put(f"/models/p/a/1.0.0/{name}", b"one", status=201)
        os.utime(store.root / "p/a/1.0.0" / name / "model", (1, 1))
    date = app.get(PATH.format("1.0.0")).headers["Last-Modified"]
    for path in (PATH.format("latest"), "/models/p/a/latest/n.sha256"):
        got = app.get(path, headers={"If-Modified-Since": date}, status=200)
        assert "Last-Modified" not in got.headers
        assert "Last-Modified" not in app.head(path).headers
        app.get(path, headers={"If-Range": date, "Range": "bytes=0-0"}, status=200)


def test_a_version_really_called_latest_wins(app):
    for version in ("9.0.0", "latest"):
        app.put(PATH.format(version), version.encode(), status=201)
    got = app.get(PATH.format("latest"))
    assert got.body == b"latest"
    assert "Content-Location" not in got.headers
    app.delete(PATH.format("latest"), status=200)
    assert app.get(PATH.format("latest")).body == b"9.0.0"


def test_a_version_without_the_model_is_not_chosen(app):
    app.put(PATH.format("1.0.0"), b"one", status=201)
    app.put("/models/p/a/2.0.0/other", b"two", status=201)
    assert app.get(PATH.format("latest")).headers["X-Model-Version"] == "1.0.0"
    app.get("/models/p/a/latest/missing", status=404)
    app.get("/models/p/a/latest/missing/info", status=404)
    app.get("/models/p/a/latest/missing.sha256", status=404)


def test_a_real_checksum_model_in_latest_comes_first(app):
    app.put(PATH.format("1.0.0"), b"one", status=201)
    app.put(PATH.format("1.0.0") + ".sha256", b"real", status=201)
    assert app.get(PATH.format("latest") + ".sha256").body == b"real"


@pytest.mark.parametrize(("models", "body", "version"), [
    (["1/m", "2/m"],                                None,               "2"),
    (["1/m", "1/m.sha256", "2/m"],                  None,               "2"),       # the digest of what `latest` gives
    (["1/m", "2/m", "2/m.sha256"],                  b"2/m.sha256",      "2"),
    (["1/m", "2/m.sha256"],                         None,               "1"),
    (["1/m.sha256", "2/m.sha256"],                  b"2/m.sha256",      "2"),       # there is no m
    (["1/m", "latest/m.sha256"],                    b"latest/m.sha256", None),
    (["1/m", "latest/m"],                           None,               None),
])
def test_the_digest_in_latest_is_that_of_the_model_in_latest(app, models, body, version):
    for path in models:
        app.put(f"/models/p/a/{path}", path.encode(), status=201)
    got = app.get(PATH.format("latest") + ".sha256")
    assert got.body == (body or f"{app.get(PATH.format('latest')).headers['X-Checksum-Sha256']}  m\n".encode())
    assert got.headers.get("X-Model-Version") == version
    assert got.headers.get("Content-Location") == (version and f"/models/p/a/{version}/m.sha256")
    assert app.head(PATH.format("latest") + ".sha256").headers.get("X-Model-Version") == version


def test_nothing_is_written_through_the_alias(app):
    app.put(PATH.format("1.0.0"), b"one", status=201)
    before = app.get(PATH.format("1.0.0") + "/info").json
    app.delete(PATH.format("latest"), status=404)
    app.delete("/models/p/a/latest?recursive=true", status=404)
    app.patch(PATH.format("latest") + "/info", b'{"description": "x"}', status=404)
    assert app.get(PATH.format("1.0.0") + "/info").json == before
    assert app.put(PATH.format("latest"), b"new", status=201).json["version"] == "latest"   # a version of its own
    assert app.get(PATH.format("1.0.0")).body == b"one"


def test_a_planted_link_in_the_highest_version_does_not_keep_latest_busy(start, http):
    server = start()
    assert http.put(f"{server.url}{PATH.format('1.0.0')}", data=b"one").status_code == 201
    elsewhere = server.storage / "p" / "a" / "2.0.0"
    elsewhere.mkdir()
    (elsewhere / "m").symlink_to(server.storage / "p" / "a" / "1.0.0" / "m")
    try:
        got = http.get(f"{server.url}{PATH.format('latest')}", timeout=3)
    except requests.Timeout:
        pytest.fail("no answer: the handler looks again for ever")
    assert (got.status_code, got.headers["X-Model-Version"]) == (200, "1.0.0")
