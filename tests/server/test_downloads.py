"""The way out: ranges, conditions, headers, each table under WebTest and on the live server; bad readers."""

import base64
import os
import re
import socket
import subprocess
import time
from collections import namedtuple
from contextlib import ExitStack
from email.utils import format_datetime
from http.client import HTTPConnection
from urllib.parse import quote, unquote

import pytest
import requests
from support.common import app_of, eventually, sha256

from repository.model import Details, Model, ModelKey
from server.conditional import byte_range, last_modified, matches, read_status
from server.errors import RangeNotSatisfiable
from storage import Storage

DATA = b"0123456789" * 10
SIZE = len(DATA)
ETAG = f'"{sha256(DATA)}"'
PATH = "/models/dl/app/1.0.0/m.pt"
MODIFIED = 1704164645
EARLIER, SAME, LATER = (f"Tue, 02 Jan 2024 03:04:0{s} GMT" for s in (4, 5, 6))
MANY = "9" * 5000

Answer = namedtuple("Answer", "status headers body")


def under_webtest(app):
    def fetch(path, method="GET", body=b"", **headers):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        got = app.request(path, method=method, headers=sent, expect_errors=True, **({"body": body} if body else {}))
        return Answer(got.status_int, got.headers, got.body)
    return fetch


def on_live(url):
    session = requests.Session()

    def fetch(path, method="GET", body=None, **headers):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        got = session.request(method, url + path, headers=sent, data=body, timeout=20)
        return Answer(got.status_code, got.headers, got.content)
    return fetch


@pytest.fixture(scope="module", params=["WebTest", "live"])
def fetch(request, tmp_path_factory):
    """fetch(path, method, **headers) with a model at PATH, modified at MODIFIED."""
    if request.param == "live":
        server = request.getfixturevalue("live_server")
        root, got = server.storage, on_live(server.url)
        assert got(PATH, "PUT", DATA).status in (200, 201)
        os.utime(root / PATH.removeprefix("/models/") / "model", (MODIFIED, MODIFIED))
        yield got
        return
    with Storage(tmp_path_factory.mktemp("downloads") / "models") as store:
        got = under_webtest(app_of(store))
        assert got(PATH, "PUT", DATA).status == 201
        os.utime(store.root / PATH.removeprefix("/models/") / "model", (MODIFIED, MODIFIED))
        yield got


# ---- ranges


@pytest.mark.parametrize(("header", "status", "first", "stop"), [
    ("bytes=0-0",                       206, 0, 1),
    ("bytes=10-19",                     206, 10, 20),
    ("bytes=99-99",                     206, 99, SIZE),
    ("bytes=90-",                       206, 90, SIZE),
    ("bytes=0-",                        206, 0, SIZE),
    ("bytes=-5",                        206, SIZE - 5, SIZE),
    ("bytes=-100",                      206, 0, SIZE),
    ("bytes=0-999999",                  206, 0, SIZE),
    ("bytes=-999999",                   206, 0, SIZE),     # RFC 9110 14.1.2: a suffix longer than the file is the file
    (f"bytes=50-{MANY}",                206, 50, SIZE),
    (f"bytes=-{MANY}",                  206, 0, SIZE),
    (f"bytes={'0' * 5000}5-6",          206, 5, 7),
    ("Bytes=0-0",                       206, 0, 1),        # RFC 9110 14.1: range unit names are case-insensitive
    ("bytes=0-0,2-3",                   200, 0, SIZE),     # several may be answered with the whole
    ("bytes=0-0, -1",                   200, 0, SIZE),
    *((invalid, 200, 0, SIZE) for invalid in (
        "bytes=9-3", "bytes=", "bytes=-", "bytes=a-b", "bytes=0x1-2", "bytes=1", "bytes 0-1", "0-1", "items=0-1",
        "bytes=--5", "bytes=+1-2", "bytes=1_0-20", "bytes=0-0;", "bytes=1.0-2", "bytes=²-³", "bytes=-²",
        "bytes=٣-٤".encode().decode("latin-1"), "bytes=\uff11-\uff12".encode().decode("latin-1"))),
    ("bytes=100-",                      416, None, None),
    ("bytes=100-100",                   416, None, None),
    ("bytes=-0",                        416, None, None),
    (f"bytes={MANY}-",                  416, None, None),
    (f"bytes={MANY}-{MANY}",            416, None, None),
], ids=lambda value: str(value)[:24])
def test_a_range_answers_exactly_its_bytes(fetch, header, status, first, stop):
    got = fetch(PATH, Range=header)
    assert got.status == status
    if status == 416:
        assert got.headers["Content-Range"] == f"bytes */{SIZE}"
        assert b'"detail"' in got.body
        return
    assert got.body == DATA[first:stop]
    assert got.headers["Content-Length"] == str(stop - first)
    assert got.headers.get("Content-Range") == (f"bytes {first}-{stop - 1}/{SIZE}" if status == 206 else None)
    assert got.headers["ETag"] == ETAG


@pytest.mark.parametrize(("header", "size", "expected"), [
    ("bytes=0-", 1, (0, 1)),
    ("bytes=-1", 0, None),          # satisfiable by RFC 9110 14.1.2, but no Content-Range could say so
    ("bytes=٣-٤", 10, None),
    ("bytes=1-²", 10, None),
    ("", 10, None),
])
def test_the_pure_function_agrees(header, size, expected):
    assert byte_range(header, size) == expected


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-0", f"bytes={MANY}-"])
def test_nothing_of_an_empty_file_can_be_asked_for(header):
    with pytest.raises(RangeNotSatisfiable):
        byte_range(header, 0)


# ---- conditions


CONDITIONS = [
    ({"If-Match": ETAG}, 200), ({"If-Match": "*"}, 200), ({"If-Match": f'"x", {ETAG}'}, 200),
    ({"If-Match": f'"x",{ETAG},"y"'}, 200), ({"If-Match": '"x"'}, 412), ({"If-Match": '"x", "y"'}, 412),
    ({"If-Match": f"W/{ETAG}"}, 412),                                           # RFC 9110 13.1.1: strong comparison
    ({"If-None-Match": ETAG}, 304), ({"If-None-Match": "*"}, 304), ({"If-None-Match": f"W/{ETAG}"}, 304),
    ({"If-None-Match": f'"x", W/"y", {ETAG}'}, 304), ({"If-None-Match": f'"a,b",{ETAG}'}, 304),
    ({"If-None-Match": f', ,W/"x" ,,\t{ETAG} , '}, 304),
    # malformed ones name nothing, whatever is in them
    *(({name: value}, status) for name, status in (("If-Match", 412), ("If-None-Match", 200))
      for value in ("", ",", f"w/{ETAG}", f"W/ {ETAG}", f"*, {ETAG}", f"{ETAG} {ETAG}", f"{ETAG}x", f'{ETAG}, "')),
    ({"If-None-Match": '"x"'}, 200), ({"If-None-Match": "nonsense"}, 200), ({"If-None-Match": '"' * 2000}, 200),
    ({"If-Modified-Since": SAME}, 304), ({"If-Modified-Since": LATER}, 200), ({"If-Modified-Since": EARLIER}, 200),
    # the exact date alone: an older version may have come back
    ({"If-Modified-Since": "Tuesday, 02-Jan-24 03:04:05 GMT"}, 304),            # RFC 9110 5.6.7: the two obsolete forms
    ({"If-Modified-Since": "Tue Jan  2 03:04:05 2024"}, 304),
    ({"If-Unmodified-Since": SAME}, 200), ({"If-Unmodified-Since": LATER}, 200),
    ({"If-Unmodified-Since": EARLIER}, 412),
    # RFC 9110 13.2.2: If-Match before If-Unmodified-Since, then If-None-Match before If-Modified-Since, then the range
    ({"If-Match": ETAG, "If-Unmodified-Since": EARLIER}, 200),
    ({"If-Match": '"x"', "If-Unmodified-Since": LATER}, 412),
    ({"If-Match": '"x"', "If-None-Match": ETAG}, 412),
    ({"If-Match": ETAG, "If-None-Match": ETAG}, 304),
    ({"If-Unmodified-Since": EARLIER, "If-None-Match": ETAG}, 412),
    ({"If-Unmodified-Since": LATER, "If-Modified-Since": SAME}, 304),
    ({"If-None-Match": '"x"', "If-Modified-Since": SAME}, 200),
    ({"If-None-Match": ETAG, "If-Modified-Since": EARLIER}, 304),
    ({"If-None-Match": ETAG, "Range": "bytes=0-0"}, 304),
    ({"If-None-Match": ETAG, "Range": "bytes=100-"}, 304),
    ({"If-Match": '"x"', "Range": "bytes=100-"}, 412),
    ({"If-Match": ETAG, "Range": "bytes=0-0"}, 206),
    ({"If-Modified-Since": EARLIER, "Range": "bytes=0-0"}, 206),
    # RFC 9110 13.1.5: If-Range compares strongly, a date exactly
    ({"If-Range": ETAG, "Range": "bytes=0-0"}, 206), ({"If-Range": SAME, "Range": "bytes=0-0"}, 206),
    ({"If-Range": '"x"', "Range": "bytes=0-0"}, 200), ({"If-Range": f"W/{ETAG}", "Range": "bytes=0-0"}, 200),
    ({"If-Range": LATER, "Range": "bytes=0-0"}, 200), ({"If-Range": EARLIER, "Range": "bytes=0-0"}, 200),
    ({"If-Range": "nonsense", "Range": "bytes=0-0"}, 200), ({"If-Range": '"x"', "Range": "bytes=100-"}, 200),
    ({"If-Range": f'{ETAG}, "x"', "Range": "bytes=0-0"}, 200),      # of one, not of several
    ({"If-Range": ETAG, "Range": "bytes=100-"}, 416), ({"If-Range": ETAG}, 200),
    *(({name: date}, 200) for name in ("If-Modified-Since", "If-Unmodified-Since") for date in (
        "yesterday", "0", ",,,,", "²", MANY, "Tue, 32 Jan 2024 03:04:05 GMT", "Mon, 01 Jan 99999 00:00:00 GMT",
        "Tue, 02 Jan 2024 25:61:61 GMT", "Tue, 02 Jan 2024 03:04:05 +99999999", f"Tue, {MANY} Jan 2024 03:04:05 GMT")),
]


@pytest.mark.parametrize(("headers", "status"), CONDITIONS,
                         ids=lambda value: str(value).replace(sha256(DATA), "E")[:60])
def test_conditions_are_judged_in_the_order_of_the_rfc(fetch, headers, status):
    got = fetch(PATH, **headers)
    assert got.status == status
    assert fetch(PATH, "HEAD", **headers).status == (200 if status in (206, 416) else status)   # 14.2: GET alone
    if status == 304:
        assert got.body == b""
        assert (got.headers["ETag"], got.headers["Cache-Control"]) == (ETAG, "no-cache")
        assert "Content-Type" not in got.headers
    if status == 412:
        assert got.headers["Content-Type"] == "application/json"
        assert sha256(DATA).encode() in got.body    # what it is now


def test_the_pure_functions_take_weak_and_missing_tags():
    assert matches('W/"a"', 'W/"a"', weak=True)
    assert not matches('W/"a"', 'W/"a"', weak=False)
    assert not matches('"a"', 'W/"a"', weak=False)
    assert matches("*", '"a"', weak=False)
    assert not matches("*", None, weak=True)
    assert not matches('"a"', None, weak=True)
    assert read_status({}.get, '"a"', None) == 200


@pytest.mark.parametrize(("mtime_ns", "now_ns", "told"), [
    (MODIFIED * 10**9,          (MODIFIED + 1) * 10**9,     SAME),
    (MODIFIED * 10**9 + 1,      (MODIFIED + 2) * 10**9,     LATER),     # rounded up
    (MODIFIED * 10**9,          (MODIFIED + 1) * 10**9 - 1, None),      # it may be replaced within this second
    (MODIFIED * 10**9,          0,                          None),      # RFC 9110 8.8.2.1: none in the future
    (253_402_300_800 * 10**9,   MODIFIED * 10**9,           None),      # the year 10000
    (10**30,                    MODIFIED * 10**9,           None),
    (-1,                        MODIFIED * 10**9,           None),      # before 1970
    (0,                         MODIFIED * 10**9,           "Thu, 01 Jan 1970 00:00:00 GMT"),
])
def test_a_date_is_told_when_it_can_be_relied_on(mtime_ns, now_ns, told):
    model = Model(ModelKey("p", "a", "1", "m"), 1, None, Details(), None, None, mtime_ns=mtime_ns)
    found = last_modified(model, now_ns)
    assert (found and format_datetime(found, usegmt=True)) == told


@pytest.mark.parametrize("moment", [-1, -10**10, 2**32, 4_000_000_000, 253_402_300_800, 10**12])
def test_a_model_of_an_impossible_time_is_served_without_a_date(app, store, moment):
    path = "/models/dl/time/1/m"
    app.put(path, b"x", status=201)
    os.utime(store.root / path.removeprefix("/models/") / "model", (moment, moment))
    got = app.get(path, headers={"If-Modified-Since": SAME, "If-Unmodified-Since": EARLIER}, status=200)
    assert "Last-Modified" not in got.headers
    app.get(path + "/info", status=200)
    app.get("/models/list", status=200)


def test_a_date_is_not_told_to_who_has_a_later_one(fetch):
    assert "Last-Modified" not in fetch(PATH, If_Modified_Since=LATER).headers
    assert fetch(PATH, If_Modified_Since=EARLIER).headers["Last-Modified"] == SAME
    assert fetch(PATH, If_Modified_Since=SAME).headers["Last-Modified"] == SAME


# ---- wget -N


def wget(server, path, directory):
    """The model as wget -N leaves it, which had one from before or not."""
    done = subprocess.run(["wget", "-q", "-N", f"{server.url}/models/{path}"], cwd=directory, timeout=30)
    assert done.returncode == 0
    return (directory / path.rpartition("/")[2]).read_bytes()


def dated(server, path, moment):
    """Gives a model this date, as a restore that keeps times does."""
    os.utime(server.storage / path / "model", (moment, moment))


def test_a_connection_goes_on_after_an_answer_without_a_body(live_server, http, project):
    """304 and 204 end with their head (RFC 9112 6.3): nothing has to be closed to tell where."""
    path = f"/models/{project}/a/1/m"
    etag = http.put(live_server.url + path, data=b"model").headers["ETag"]
    client = HTTPConnection("127.0.0.1", live_server.port, timeout=20)
    client.connect()
    wire = client.sock
    for method, headers, status in (("GET", {"If-None-Match": etag}, 304), ("OPTIONS", {}, 204), ("GET", {}, 200)) * 2:
        client.request(method, path, headers=headers)
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (status, b"model" if status == 200 else b"")
        assert answer.headers["Connection"] is None and client.sock is wire
    client.close()


def test_wget_drops_a_newest_version_that_was_withdrawn(live_server, http, project, tmp_path):
    for version, data in (("1.0.0", b"old"), ("2.0.0", b"bad")):
        http.put(f"{live_server.url}/models/{project}/a/{version}/m", data=data)
    assert wget(live_server, f"{project}/a/latest/m", tmp_path) == b"bad"
    http.delete(f"{live_server.url}/models/{project}/a/2.0.0/m")
    assert wget(live_server, f"{project}/a/latest/m", tmp_path) == b"old"


@pytest.mark.parametrize(("before", "after"), [(100, 10), (10, 100), (10, 10_000_000)],
                         ids=["replaced", "restored", "restored from long ago"])
def test_wget_takes_what_has_replaced_a_model_whatever_its_date(live_server, http, project, tmp_path, before, after):
    path = f"{project}/a/1/m"
    now = time.time()
    for data, age in ((b"one", before), (b"two", after), (b"six", after + 1)):      # of one size
        http.put(f"{live_server.url}/models/{path}", data=data)
        dated(live_server, path, now - age)
        assert wget(live_server, path, tmp_path) == data
        assert wget(live_server, path, tmp_path) == data


def test_wget_takes_the_second_of_two_models_of_one_second(live_server, http, project, tmp_path):
    url = f"{live_server.url}/models/{project}/a/1/m"
    http.put(url, data=b"one")
    first = wget(live_server, f"{project}/a/1/m", tmp_path)
    http.put(url, data=b"two")
    assert (first, wget(live_server, f"{project}/a/1/m", tmp_path)) == (b"one", b"two")


def test_wget_takes_nothing_that_it_has_already(start, http, tmp_path):
    server = start()
    http.put(f"{server.url}/models/p/a/1/m", data=b"model")
    dated(server, "p/a/1/m", time.time() - 100)
    assert wget(server, "p/a/1/m", tmp_path) == wget(server, "p/a/1/m", tmp_path) == b"model"
    server.wait_for_log("GET /models/p/a/1/m 304")


def test_a_missing_model_is_404_whatever_the_conditions(fetch):
    for headers in ({"If-None-Match": "*"}, {"If-Match": "*"}, {"Range": "bytes=0-"}):
        assert fetch("/models/dl/app/1.0.0/missing", **headers).status == 404


# ---- what a download looks like


def test_a_download_says_all_about_its_bytes(fetch):
    encoded = base64.b64encode(bytes.fromhex(sha256(DATA))).decode()
    expected = {
        "Content-Type": "application/octet-stream", "Content-Length": str(SIZE), "Accept-Ranges": "bytes", "ETag": ETAG,
        "Last-Modified": SAME, "Content-Disposition": 'attachment; filename="m.pt"', "X-Checksum-Sha256": sha256(DATA),
        "Repr-Digest": f"sha-256=:{encoded}:", "Digest": f"SHA-256={encoded}", "Cache-Control": "no-cache",
    }
    whole, head, slashed = fetch(PATH), fetch(PATH, "HEAD"), fetch(PATH + "/")
    part = fetch(PATH, Range="bytes=1-2")
    for answer, body in ((whole, DATA), (head, b""), (slashed, DATA)):
        assert (answer.status, answer.body) == (200, body)
        assert {name: answer.headers.get(name) for name in expected} == expected
        assert answer.headers["X-Request-Id"]
    assert {name: part.headers.get(name) for name in expected} == {**expected, "Content-Length": "2"}


@pytest.mark.parametrize(("name", "ascii_name"), [
    ("model-1.pt", "model-1.pt"), ("my model.pt", "my model.pt"), ('a"b.pt', None), ("modèle.pt", None),
    ("模型.pt", None),
    ("100%.pt", None), ("a;b=c.pt", "a;b=c.pt"), ("it's.pt", "it's.pt"), ("😀.bin", None),
])
def test_the_file_comes_back_under_its_own_name(fetch, name, ascii_name):
    form = (b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + name.replace('"', "%22").encode()
            + b'"\r\n\r\nx\r\n--b--\r\n')
    where = f"project_id=dl&app_name=names&version=1&model_name=n{sha256(name.encode())[:20]}"
    sent = fetch(f"/models/upload?{where}", "POST", form, Content_Type="multipart/form-data; boundary=b")
    assert sent.status in (200, 201), sent.body
    header = fetch(f"/models/dl/names/1/n{sha256(name.encode())[:20]}").headers["Content-Disposition"]
    plain = re.match(r'attachment; filename="([^"\\]*)"', header)[1]     # curl -OJ reads nothing else
    assert header.isascii()
    if ascii_name:
        assert plain == ascii_name
    else:
        extended = re.search(r"; filename\*=UTF-8''([A-Za-z0-9!#$&+.^_`|~%-]+)$", header)[1]
        assert unquote(extended) == name
        assert quote(name, safe="") == extended


@pytest.mark.parametrize(("name", "kind"), [
    ("m.zip", "application/zip"), ("m.tar", "application/x-tar"), ("m.tar.gz", "application/gzip"),
    ("m.tgz", "application/gzip"), ("M.ZIP", "application/zip"),
    *((name, "application/octet-stream") for name in ("m.pt", "m.gz", "m.zip.pt", "zip", "m.keras", "m.npz", "mtar")),
])
def test_archives_have_the_type_that_their_name_tells(fetch, name, kind):
    path = f"/models/dl/types/1/{name}"
    assert fetch(path, "PUT", b"PK\3\4").status in (200, 201)     # a .pt is a zip, too
    for answer in (fetch(path), fetch(path, "HEAD"), fetch(path, Range="bytes=0-0"),
                   fetch(path.replace("/1/", "/latest/"))):
        assert answer.headers["Content-Type"] == kind


def test_a_pinned_digest_gets_these_bytes_or_412(fetch):
    assert fetch(f"{PATH}?sha256={sha256(DATA)}").body == DATA
    assert fetch(f"{PATH}?sha256={sha256(DATA).upper()}").body == DATA
    other = sha256(b"other")
    got = fetch(f"{PATH}?sha256={other}")
    assert (got.status, sha256(DATA).encode() in got.body) == (412, True)
    assert fetch(f"{PATH}?sha256={other}", "HEAD").body == b""
    assert fetch(f"{PATH}?sha256={other}", If_None_Match=ETAG).status == 412


@pytest.mark.parametrize("query", ["sha256=nonsense", "sha256=", f"sha256={sha256(DATA)}0", "allow_corrupt=yes",
                                   "allow_corrupt="])
def test_a_value_of_the_query_that_means_nothing_is_refused(fetch, query):
    got = fetch(f"{PATH}?{query}")
    assert (got.status, query.partition("=")[0].encode() in got.body) == (400, True)


def test_the_checksum_file_is_as_sha256sum_wants_it(fetch):
    got = fetch(PATH + ".sha256")
    assert (got.status, got.body.decode()) == (200, f"{sha256(DATA)}  m.pt\n")
    assert got.headers["Content-Type"].startswith("text/plain")
    head = fetch(PATH + ".sha256", "HEAD")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(got.body)), b"")
    assert fetch(PATH + ".sha256/").body == got.body
    assert fetch("/models/dl/app/1.0.0/missing.sha256").status == 404
    long = "/models/dl/app/1.0.0/" + "n" * 128      # its name with .sha256 is no name any more
    assert fetch(long, "PUT", b"x").status in (200, 201)
    assert fetch(long + ".sha256").body == f"{sha256(b'x')}  {'n' * 128}\n".encode()


def test_a_real_model_of_that_name_comes_before_the_checksum(fetch):
    base = "/models/dl/real/1/x"
    for path, body in ((base, b"model"), (base + ".sha256", b"a real model")):
        assert fetch(path, "PUT", body).status in (200, 201)
    assert fetch(base + ".sha256").body == b"a real model"
    assert fetch(base + ".sha256.sha256").body == f"{sha256(b'a real model')}  x.sha256\n".encode()


def test_an_empty_model_is_a_model(fetch):
    path = "/models/dl/empty/1/m"
    assert fetch(path, "PUT", Content_Length="0").status in (200, 201)
    got = fetch(path)
    assert (got.status, got.body, got.headers["Content-Length"]) == (200, b"", "0")
    assert got.headers["X-Checksum-Sha256"] == sha256(b"")
    unsatisfied = fetch(path, Range="bytes=0-")
    assert (unsatisfied.status, unsatisfied.headers["Content-Range"]) == (416, "bytes */0")
    assert fetch(path, Range="bytes=-5").status == 200


# ---- readers that misbehave


def test_readers_that_read_nothing_stop_nobody_and_finish_what_was_deleted_meanwhile(start, http):
    server, big = start(SERVER_THREADS="2"), DATA * 10_000 * 30
    url = f"{server.url}/models/p/a/1/big"
    assert http.put(url, data=big).status_code == 201
    readers = [server.connect() for _ in range(8)]
    for reader in readers:
        reader.send("GET /models/p/a/1/big HTTP/1.1\r\nHost: x\r\n\r\n")
    for reader in readers:
        reader.sock.recv(1, socket.MSG_PEEK)     # the server is at it, and nothing is read
    for _ in range(4):
        assert http.get(f"{server.url}/health", timeout=10).status_code == 200
    assert http.delete(url, timeout=10).status_code == 200
    status, headers, body = readers[-1].response()
    assert (status, headers["etag"], body == big) == (200, f'"{sha256(big)}"', True)
    for reader in readers:
        reader.close()


def test_a_client_that_leaves_in_the_middle_frees_its_descriptors(start, http):
    server = start()
    assert http.put(f"{server.url}/models/p/a/1/big", data=DATA * 100_000).status_code == 201
    before = server.descriptors()
    with ExitStack() as readers:
        for _ in range(10):
            reader = readers.enter_context(server.connect())
            reader.send("GET /models/p/a/1/big HTTP/1.1\r\nHost: x\r\n\r\n")
            assert reader.head()[0] == 200
        assert server.holds("p/a/1/big/model") == 10
    eventually(lambda: server.holds("p/a/1/big/model") == 0)
    eventually(lambda: server.descriptors() <= before)      # and no socket either


def test_a_model_that_is_cut_while_it_is_sent_ends_the_connection_and_is_told_in_one_line(start, http):
    server = start()
    http.put(f"{server.url}/models/p/a/1/m", data=bytes(30_000_000), timeout=60)
    with server.connect() as wire:
        wire.send("GET /models/p/a/1/m HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.head()[0] == 200
        os.truncate(server.storage / "p/a/1/m/model", 20_000_000)
        assert len(wire.file.read()) == 20_000_000
    server.wait_for_log(" GET /models/p/a/1/m 200 20000000 ")
    assert server.log().count("an answer ends early, and its connection is closed: a file became shorter") == 1
    assert "Traceback" not in server.log()
