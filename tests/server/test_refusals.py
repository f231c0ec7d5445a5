"""What is refused, and how much of it travels before: raw connections to a live server, and curl."""

import json
import re
import socket
import subprocess
import threading

import pytest
import requests
from support.common import eventually, sha256, staged
from support.live import running
from support.raw import chunks, head

MAX = 1 << 20
CL, GOOD = f"Content-Length: {MAX}", b"x" * MAX


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A live server that takes 1 MiB, once; there is one model: p/a/1/taken."""
    with running(tmp_path_factory.mktemp("strict") / "models", MODEL_MAX_SIZE="1M", MODEL_OVERWRITE="deny") as server:
        with server.connect() as wire:
            wire.send(head("PUT /models/p/a/1/taken", "Content-Length: 1"), "x")
            assert wire.response()[0] == 201
        yield server




def detail(response):
    """What a refusal says, once it is one as it must be."""
    status, headers, body = response
    assert headers["content-type"] == "application/json" and headers["x-request-id"]
    assert status >= 400 and len(body) == int(headers["content-length"])
    document = json.loads(body)
    assert list(document) == ["detail"] and document["detail"]
    return document["detail"]




QUERY = "project_id=p&app_name=a&version=1&model_name="
FORM = "Content-Type: multipart/form-data; boundary=B"
KNOWN = [   # (request line, headers, status, what the message says): known before the body
    ("PUT /models/p/a/1/.bad",              [CL],                               400, "1 to 128"),
    ("PUT /models/p/a/1/a%2Fb",             [CL],                               400, "slash"),
    ("PUT /models/list/a/1/m",              [CL],                               400, "list"),
    ("PUT /models/p/a/1/m?version=2",       [CL],                               400, "version"),
    ("PUT /models/p/a/1/m",                 [CL, "X-Checksum-Sha256: short"],   400, "short"),
    ("PUT /models/p/a/1/m",                 [CL, "Content-Range: bytes 0-1/2"], 400, "Content-Range"),
    ("PUT /models/p/a/1/m",                 [f"Content-Length: {MAX + 1}"],     413, str(MAX)),
    ("PUT /models/p/a/1/taken",             [CL],                               409, "taken"),
    ("PUT /models/p/a/1/taken",             [CL, "If-None-Match: *"],           (409, 412), ""),
    ("PUT /models/p/a/1/m",                 [CL, "If-Match: *"],                412, ""),
    ("PUT /models/p/a/1",                   [CL],                               409, "p/a/1"),
    ("PUT /models/p/a",                     [CL],                               405, "GET"),
    ("PUT /nowhere",                        [CL],                               404, "nowhere"),
    ("POST /models/p/a/1/m",                [CL],                               405, "PUT"),
    ("POST /models/upload",                 [CL],                               400, "multipart"),
    ("POST /models/upload?version=..",      [CL, FORM],                         400, "1 to 128"),
    ("POST /models/upload?a=1&a=2",         [CL, FORM],                         400, "a"),
    (f"POST /models/upload?{QUERY}taken",   [CL, FORM],                         409, "taken"),
    ("POST /models/upload",                 [f"Content-Length: {MAX * 2}", FORM], 413, str(MAX)),
    ("PATCH /models/p/a/1/taken/info",      [f"Content-Length: {3 * MAX}"],     413, ""),
]


def status_is(status, expected):
    return status in (expected if isinstance(expected, tuple) else (expected,))


# ---- with Expect: 100-continue

@pytest.mark.parametrize(("request_line", "headers", "status", "says"), KNOWN)
def test_with_expect_a_refusal_comes_at_once_and_no_body_travels(strict, request_line, headers, status, says):
    with strict.connect() as wire:
        wire.send(head(request_line, *headers, "Expect: 100-continue"))
        first, fields = wire.head()
        assert status_is(first, status)     # and not 100
        assert says in detail((first, fields, wire.file.read(int(fields["content-length"]))))
    assert staged(strict.storage) == []


def test_with_expect_what_cannot_fit_on_the_disk_is_refused_at_once(live_server, project):
    with live_server.connect() as wire:
        wire.send(head(f"PUT /models/{project}/a/1/m", f"Content-Length: {10**15}", "Expect: 100-continue"))
        status, headers = wire.head()
        assert status == 507
        assert "free" in detail((status, headers, wire.file.read(int(headers["content-length"]))))


@pytest.mark.parametrize("headers", [[CL], ["Transfer-Encoding: chunked"]])
@pytest.mark.parametrize("expect", ["100-continue", "100-Continue"])
def test_with_expect_what_is_taken_is_asked_for_first(live_server, project, headers, expect):
    with live_server.connect() as wire:
        for status in (201, 200):
            wire.send(head(f"PUT /models/{project}/a/1/m", *headers, f"Expect: {expect}"))
            assert wire.head()[0] == 100
            wire.send(GOOD if headers == [CL] else chunks(GOOD))
            assert wire.head()[0] == status
            assert sha256(GOOD).encode() in wire.file.readline()


@pytest.mark.parametrize("request_line", ["GET /health", "GET /models/list", "DELETE /models/p/a/1/none",
                                          "PUT /models/p/a/1/bodiless", "POST /models/upload"])
@pytest.mark.parametrize("headers", [[], ["Content-Length: 0"]])
def test_expect_without_a_body_does_not_hang(live_server, request_line, headers):
    with live_server.connect() as wire:
        wire.send(head(request_line, *headers, "Expect: 100-continue", "Connection: close"))
        answer = wire.file.read()
        assert re.match(rb"(HTTP/1.1 100 Continue\r\n\r\n)?HTTP/1.1 [245]", answer)


# ---- without Expect

@pytest.mark.parametrize(("request_line", "headers", "status", "says"), KNOWN)
def test_without_expect_the_body_is_read_and_the_connection_goes_on(strict, request_line, headers, status, says):
    length = int(re.search(r"Content-Length: (\d+)", "\n".join(headers))[1])
    with strict.connect() as wire:
        wire.send(head(request_line, *headers), b"y" * length)
        answer = wire.response()
        assert status_is(answer[0], status) and says in detail(answer)
        wire.send(head("GET /health"))
        assert wire.response()[0] == 200
    assert staged(strict.storage) == []


@pytest.mark.parametrize("request_line", ["PUT /models/p/a/1/chunked", "PUT /models/p/a/1/.bad",
                                          "PUT /models/p/a/1/taken", "PUT /nowhere"])
@pytest.mark.parametrize("size", [MAX + 1, 4 * MAX])
def test_a_chunked_body_that_is_refused_gets_its_json(strict, request_line, size):
    with strict.connect() as wire:
        wire.send(head(request_line, "Transfer-Encoding: chunked"), chunks(b"y" * size))
        answer = wire.response()
        message = detail(answer)
        if request_line.endswith("chunked"):
            assert answer[0] == 413 and str(MAX) in message
        wire.send(head("GET /health"))
        assert wire.response()[0] == 200
    assert not (strict.storage / "p/a/1/chunked").exists() and staged(strict.storage) == []


def test_a_model_of_just_the_limit_is_taken_in_a_form_too(strict):
    body = b'--B\r\nContent-Disposition: form-data; name=file; filename=m\r\n\r\n' + GOOD + b"\r\n--B--\r\n"
    too_long = body.replace(b"x\r\n--B--", b"xx\r\n--B--")
    for data, model, status in ((body, "just", 201), (too_long, "over", 413)):
        for kind, sent in ((f"Content-Length: {len(data)}", data), ("Transfer-Encoding: chunked", chunks(data))):
            with strict.connect() as wire:
                wire.send(head(f"POST /models/upload?{QUERY}{model}{len(kind)}", FORM, kind), sent)
                assert wire.response()[0] == status


def test_the_fields_of_a_form_do_not_count_for_the_limit_of_its_model(strict):
    fields = "".join(f'--B\r\nContent-Disposition: form-data; name=f{n}\r\n\r\n{"v" * 8000}\r\n' for n in range(64))
    body = (fields + "--B\r\nContent-Disposition: form-data; name=file; filename=m\r\n\r\n").encode()
    with strict.connect() as wire:
        sent = body + GOOD + b"\r\n--B--\r\n"
        wire.send(head(f"POST /models/upload?{QUERY}fields", FORM, f"Content-Length: {len(sent)}"), sent)
        assert wire.response()[0] == 201


# ---- curl

@pytest.mark.parametrize(("path", "size", "status"), [
    ("p/a/1/.bad", MAX, 400), ("list/a/1/m", MAX, 400), ("p/a/1/m", MAX + 1, 413), ("p/a/1/m", 50 * MAX, 413),
    ("p/a/1/taken", MAX, 409), ("p/a/1", MAX, 409), ("p/a", MAX, 405),
])
def test_curl_sends_nothing_of_what_is_refused(strict, tmp_path, path, size, status):
    assert curl(strict, path, size, tmp_path) == (status, 0)


def test_curl_sends_all_of_what_is_taken(live_server, tmp_path, project):
    assert curl(live_server, f"{project}/a/1/m", 3 * MAX, tmp_path) == (201, 3 * MAX)


def test_curl_without_expect_sees_the_refusal(strict, tmp_path):
    assert curl(strict, "p/a/1/m", 20 * MAX, tmp_path, "-H", "Expect:")[0] == 413


def curl(server, path, size, directory, *options):
    """(status, bytes of the body that travelled) of a PUT."""
    with (directory / "file").open("wb") as file:
        file.truncate(size)
    run = subprocess.run(
        ["curl", "-sS", "--path-as-is", "-H", "Expect: 100-continue", "--expect100-timeout", "60", *options,
         "-T", "file", "-o", "answer", "-w", "%{http_code} %{size_upload}", f"{server.url}/models/{path}"],
        cwd=directory, capture_output=True, text=True, timeout=60, check=True)
    json.loads((directory / "answer").read_text())
    status, sent = run.stdout.split()
    return int(status), int(sent)


# ---- below the application

SMUGGLED = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED, START = "Transfer-Encoding: chunked", "PUT /models/smuggled/a/1/m"
BELOW = {
    "no request line":      b"GARBAGE\r\n\r\n",
    "no target":            b"GET HTTP/1.1\r\n\r\n",
    "HTTP/0.9":             b"GET /health\r\n\r\n",
    "HTTP/3.0":             head("GET /health", version="3.0"),
    "lower-case method":    head("get /health"),
    "binary":               b"\x00\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "70 KB header":         head("GET /health", "X-Long: " + "y" * 70_000),
    "70 KB target":         head("GET /" + "y" * 70_000),
    "70 KB of headers":     head("GET /health", *["X: y" * 10] * 1_700),
    "no colon":             head("GET /health", "no colon"),
    "space before colon":   head(START, "Transfer-Encoding : chunked"),
    "TE and CL":            head(START, CHUNKED, "Content-Length: 4"),
    "CL and TE":            head(START, "Content-Length: 4", CHUNKED),
    "CL 0 and TE":          head(START, "Content-Length: 0", CHUNKED),
    "TE twice":             head(START, CHUNKED, CHUNKED),
    "TE twice, other case": head(START, CHUNKED, "transfer-ENCODING: chunked"),
    "TE chunked, chunked":  head(START, "Transfer-Encoding: chunked, chunked"),
    "TE identity":          head(START, "Transfer-Encoding: identity"),
    "TE gzip, chunked":     head(START, "Transfer-Encoding: gzip, chunked"),
    "TE xchunked":          head(START, "Transfer-Encoding: xchunked"),
    "TE with VT":           head(START, "Transfer-Encoding: \x0bchunked"),
    "TE empty and CL":      head(START, "Transfer-Encoding:", "Content-Length: 4"),
    "TE folded and CL":     head(START, "Transfer-Encoding:\r\n chunked", "Content-Length: 4"),
    "TE in HTTP/1.0":       head(START, CHUNKED, version="1.0"),
    "two CLs":              head(START, "Content-Length: 4", "Content-Length: 5"),
    "a CL list":            head(START, "Content-Length: 4, 5"),
    "CL folded":            head(START, "Content-Length: 4\r\n 5"),
    "CL of 5000 digits":    head(START, "Content-Length: " + "9" * 5000),
    "CL +4":                head(START, "Content-Length: +4"),
    "CL -4":                head(START, "Content-Length: -4"),
    "CL 0x4":               head(START, "Content-Length: 0x4"),
    "CL 4_0":               head(START, "Content-Length: 4_0"),
    "CL empty":             head(START, "Content-Length:"),
    "CL not ASCII":         head(START, "Content-Length: \xb2"),
    "fold comes first":     b"PUT /models/smuggled/a/1/m HTTP/1.1\r\n Host: x\r\nContent-Length: 4\r\n\r\n",
    "bare CR":              head("GET /health", "X: a\rContent-Length: 4"),
    "bare LF":              head("GET /health", "X: a\nY: b"),
    "NUL in a header":      head("GET /health", "X: a\0b"),
    "TAB in the target":    head("PUT /models/smuggled/a/1/.\t.", "Content-Length: 4"),
    "NUL in the target":    head("PUT /models/smuggled/a/1/m\0", "Content-Length: 4"),
    "DEL in the target":    head("PUT /models/smuggled/a/1/m\x7f", "Content-Length: 4"),
    "# in the target":      head("PUT /models/smuggled/a/1/m#x", "Content-Length: 4"),
    "space in the target":  head("PUT /models/smuggled/a/1/m x", "Content-Length: 4"),
    "no Host":              b"GET /health HTTP/1.1\r\n\r\n",
    "no Host, absolute":    b"GET http://x/health HTTP/1.1\r\n\r\n",
    "no Host, a body":      b"PUT /models/smuggled/a/1/m HTTP/1.1\r\nContent-Length: 4\r\n\r\n",
    "Host twice":           head("GET /health", "Host: y"),
    "Host twice the same":  head("GET /health", "HOST:localhost"),
    "Host twice, 1.0":      head("GET /health", "Host: y", version="1.0"),
    "201 fields":           head("GET /health", *["X: y"] * 200),
    "chunk size not hex":   head(START, CHUNKED) + "xyz\r\n",
    "chunk size negative":  head(START, CHUNKED) + "-1\r\n",
    "chunk size 0x4":       head(START, CHUNKED) + "0x4\r\nabcd\r\n0\r\n\r\n",
    "chunk size empty":     head(START, CHUNKED) + "\r\n\r\n",
    "blank line first":     head(START, CHUNKED) + "\r\n4\r\nabcd\r\n0\r\n\r\n",
    "blank line between":   head(START, CHUNKED) + "4\r\nabcd\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
    "blank line at the end": head(START, CHUNKED) + "4\r\nabcd\r\n\r\n0\r\n\r\n",
    "chunk size +4":        head(START, CHUNKED) + "+4\r\nabcd\r\n0\r\n\r\n",
    "chunk size 0_4":       head(START, CHUNKED) + "0_4\r\nabcd\r\n0\r\n\r\n",
    "chunk size and space": head(START, CHUNKED) + "4 \r\nabcd\r\n0\r\n\r\n",
    "space and chunk size": head(START, CHUNKED) + " 4\r\nabcd\r\n0\r\n\r\n",
    "chunk of 2**63 bytes": head(START, CHUNKED) + "8000000000000000\r\nabcd\r\n0\r\n\r\n",
    "LF in an extension":   head(START, CHUNKED) + "4;a\nb\r\nabcd\r\n0\r\n\r\n",
    "trailer ends in LF":   head(START, CHUNKED) + "4\r\nabcd\r\n0\r\nX: y\nZ: z\r\n\r\n",
    "chunk size too long":  head(START, CHUNKED) + "4;" + "x" * 100_000 + "\r\n",
    "chunk size endless":   head(START, CHUNKED) + "0" * 100_000,
    "chunk without CRLF":   head(START, CHUNKED) + "4\r\nabcdefgh\r\n0\r\n\r\n",
    "chunk ends in LF":     head(START, CHUNKED) + "4\nabcd\n0\n\n",
    "trailer endless":      head(START, CHUNKED) + "4\r\nabcd\r\n0\r\n" + "X: y\r\n" * 20_000,
}


@pytest.mark.parametrize(("case", "status"), [
    ("no Host", 400), ("Host twice", 400), ("Host twice, 1.0", 400), ("blank line first", 400), ("201 fields", 431),
    ("70 KB header", 431), ("chunk size 0x4", 400), ("TE gzip, chunked", 501),
])
def test_what_is_no_request_gets_its_own_status(live_server, case, status):
    with live_server.connect() as wire:
        wire.send(BELOW[case])
        answer = wire.response()
    assert answer[0] == status and detail(answer)


@pytest.mark.parametrize("request_", [
    b"GET /health HTTP/1.0\r\n\r\n",                      # RFC 9112 3.2: only HTTP/1.1 has to name one
    b"GET /health HTTP/1.1\r\nHost:\r\n\r\n",             # and may leave it empty
    b"GET http://y/health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\n\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",    # 2.2: to be taken from clients that are careless
    b"GET /health HTTP/1.1\r\nHost: \t x \t\r\nX:\r\n\r\n",
    head("GET /health", *["X: y"] * 199).encode(),
])
def test_what_is_a_request_is_answered_whole_and_in_drops(live_server, request_):
    for step in (len(request_), 1):
        with live_server.connect() as wire:
            wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(request_), step):
                wire.send(request_[at:at + step])
            assert wire.response()[0] == 200


@pytest.mark.parametrize(("target", "host"), [
    ("", "x:1"), ("http://other.example:99", "other.example:99"), ("HTTP://other.example", "other.example"),
])
def test_the_host_of_a_whole_url_replaces_that_of_the_header(live_server, project, target, host):
    """RFC 9112 3.2.2"""
    requests.put(f"{live_server.url}/models/{project}/a/1/m", data=b"model", timeout=30)
    with live_server.connect() as wire:
        wire.send(f"GET {target}/models/{project}?format=urls HTTP/1.1\r\nHost: x:1\r\n\r\n")
        assert wire.response()[2].decode() == f"http://{host}/models/{project}/a/1/m\n"


@pytest.mark.parametrize(("connection", "version", "goes_on"), [
    ("close", "1.1", False), ("TE, Close", "1.1", False), ("keep-alive,close", "1.1", False),
    ("keep-alive\r\nConnection: close", "1.1", False), ("TE", "1.1", True), ("closed, x-close", "1.1", True),
    ("Keep-Alive, TE", "1.0", True), ("TE", "1.0", False),
])
def test_a_wish_for_the_connection_may_be_one_of_several(live_server, connection, version, goes_on):
    """RFC 9112 9.6: behind a request that wants to close, no other one may be answered."""
    with live_server.connect() as wire:
        wire.send(head("GET /health", f"Connection: {connection}", version=version), SMUGGLED)
        assert wire.response()[0] == 200
        assert (wire.response()[0] == 200) if goes_on else wire.at_end()


def test_requests_in_a_row_are_answered_in_their_order(live_server, project):
    model = f"/models/{project}/a/1/m"
    put, chunked, got = head(f"PUT {model}", "Content-Length: 3"), head(f"PUT {model}", CHUNKED), head(f"GET {model}")
    row = (put + "one" + got + chunked + "3\r\ntwo\r\n0\r\n\r\n" + got + head(f"GET {model}/info")
           + head(f"DELETE {model}") + got + head("GET /health"))
    statuses = [201, 200, 200, 200, 200, 200, 404, 200] * 50
    data = (row * 50).encode()
    for step in (len(data), 1000):
        with live_server.connect() as wire:
            pieces = [data[n:n + step] for n in range(0, len(data), step)]
            sender = threading.Thread(target=lambda wire, pieces: [*map(wire.send, pieces)], args=(wire, pieces))
            sender.start()
            answers = [wire.response() for _ in statuses]
            sender.join()
        assert [answer[0] for answer in answers] == statuses
        assert [answer[2] for answer in answers][1:4:2] == [b"one", b"two"]


@pytest.mark.parametrize("case", BELOW)
def test_what_is_no_request_gets_json_and_hides_no_other_request(live_server, case):
    data, hidden = BELOW[case], f"case{list(BELOW).index(case)}"
    data = (data if isinstance(data, bytes) else data.encode("latin-1")).replace(b"smuggled", hidden.encode())
    with live_server.connect() as wire:
        wire.send(data, SMUGGLED)
        answer = wire.response()
        assert 400 <= answer[0] < 600 and answer[0] not in (404, 500)
        detail(answer)
        assert wire.at_end()        # nothing behind it was taken for a request
    assert not (live_server.storage / hidden).exists()
    eventually(lambda: not staged(live_server.storage), "the end of the draft")


def test_the_request_id_of_a_broken_request_is_in_the_log(live_server):
    with live_server.connect() as wire:
        wire.send(BELOW["CL and TE"])
        request_id = wire.response()[1]["x-request-id"]
        assert wire.at_end()
    live_server.wait_for_log(request_id)


# ---- HEAD

def read_like_get(wire, headers):
    if headers.get("transfer-encoding") != "chunked":
        return wire.file.read(int(headers["content-length"]))
    body = b""
    while size := int(wire.file.readline(), 16):
        body += wire.file.read(size + 2)[:-2]
    assert wire.file.readline() == b"\r\n"
    return body


@pytest.mark.parametrize(("path", "status"), [
    ("/health", 200), ("/models/list", 200), ("/models/p", 200), ("/models/p/a/1?format=txt", 200), ("/models/n", 200),
    ("/models/p/a/1/taken", 200), ("/models/p/a/1/taken/info", 200), ("/models/p/a/1/taken.sha256", 200),
    ("/models/p/a/latest/taken", 200), ("/models/p/a/1/none", 404), ("/models/p/a/1/none/info", 404), ("/nowhere", 404),
    ("/models/.p", 400), ("/models/list?limit=x", 400), ("/models/p/a/1/taken?sha256=0", 400),
    (f"/models/p/a/1/taken?sha256={64 * '0'}", 412),
])
def test_head_has_the_headers_of_get_and_no_body(strict, path, status):
    with strict.connect() as wire:
        wire.send(head(f"HEAD {path}"), head(f"GET {path}"), head("GET /models/p/a/1/taken"))
        of_head, of_get = wire.head(), wire.head()
        body = read_like_get(wire, of_get[1])
        assert (of_head[0], of_get[0]) == (status, status)
        differ = {k for k in of_head[1].keys() | of_get[1].keys() if of_head[1].get(k) != of_get[1].get(k)}
        # what HEAD knows of the length a stream need not; waitress closes after a stream
        assert differ <= {"x-request-id", "date", "content-length", "transfer-encoding", "connection"}
        if "content-length" in of_get[1] and path != "/health":     # which tells the time
            assert of_head[1]["content-length"] == of_get[1]["content-length"] == str(len(body))
        if of_get[1].get("connection") != "close":
            assert wire.response()[2] == b"x"


@pytest.mark.parametrize("target", ["//health", "///health", "//models/list?q=x", "http://localhost//health",
                                    "/%2Fapi/models/acme/tiny", "http://localhost/%2fapi/models/acme/tiny"])
def test_slashes_before_a_path_are_not_taken_for_one(live_server, target):
    """As no slashes in it are: a rule of a proxy for /health would not be one for //health."""
    with live_server.connect() as wire:
        wire.send(head(f"GET {target}"))
        status, _, body = wire.response()
        assert (status, b"slash" in body) == (404, True)
        wire.send(head("GET http://localhost/health"))
        assert wire.response()[0] == 200
