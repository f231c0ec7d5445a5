"""Requests and forms that nobody would write: never a 5xx, never an exception, and what is stored is what was sent."""

import json
import os
import shutil
import subprocess
import sys
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.common import ROOT
from support.live import running
from support.witness import assert_whole, send

from server.chunked import ChunkedDecoder

SEGMENTS = ["models", "upload", "list", "health", "info", "p", "app", "1.0.0", "m", "m.sha256", "latest", "..", ".", "",
            ".staging", "%2e%2e", "%2f", "%00", "%ff", "%", "\\", "é", "a" * 200]
NAME = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,20}", fullmatch=True)
METHODS = st.sampled_from(["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "BREW"])
HEADERS = {
    "Range": ["bytes=0-0", "bytes=-5", "bytes=5-", "bytes=9-3", "bytes=²-³", "bytes=0-0,2-2", "bytes=" + "9" * 5000],
    "If-Match": ['"x"', "*", 'W/"x"', ",", '"'], "If-None-Match": ["*", '"x", W/"y"', '"'],
    "If-Modified-Since": ["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 99999 08:49:37 GMT", "0"],
    "If-Unmodified-Since": ["Sun, 06 Nov 1994 08:49:37 GMT", "x"],
    "If-Range": ['"x"', "Sun, 06 Nov 1994 08:49:37 GMT", 'W/"x"', "x"],
    "Content-Type": ["multipart/form-data; boundary=cut", "multipart/form-data", "a; boundary*=x''%f", ""],
    "Content-Range": ["bytes 0-1/2", "x"], "Content-Encoding": ["gzip", "identity"], "Expect": ["100-continue", "x"],
    "X-Checksum-Sha256": ["0" * 64, "x"], "Repr-Digest": ["sha-256=:AAAA:", "sha-256=x", "md5=:AA==:", "sha-256=:é:"],
    "Content-Digest": ["sha-256=:" + "A" * 43 + "=:"], "X-Request-Id": ["mine", "x" * 100, "a b"],
    "Host": ["", "a b", "x:99999", "[::1]", "é"], "Transfer-Encoding": ["chunked", "gzip"], "Connection": ["close"],
    "Content-Length": ["0", "1", "-1", "9" * 30], "Accept": ["*/*", "text/html"], "Digest": ["SHA-256=x"],
}
QUERY_NAMES = st.sampled_from(["project_id", "app_name", "version", "model_name", "description", "framework", "sha256",
                               "limit", "after", "format", "q", "metadata.k", "recursive", "x"]) | st.text(max_size=5)
QUERY_VALUES = st.sampled_from(["", "0", "1", "-1", "1001", "p", "json", "ndjson", "txt", "urls", "sha256sums", "²",
                                "true", "%00", "p/app/1/m"]) | st.text(max_size=20)
DOCUMENTS = [b"{}", b'{"description": 1}', b'{"description": "\\ud800"}', b'{"metadata": {"a": {"b": null}}}',
             b"[" * 1000, b'{"metadata": NaN}', b'{"x": "\xff"}', b'{"metadata": {"a": 1e999}}', b"null",
             b'{"metadata": {"\\ud800": "\\udfff"}}', b'{"metadata": {"a": ' + b"9" * 5000 + b"}}"]
HEADER_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30)


@st.composite
def request_bytes(draw):
    path = "/" + "/".join(draw(st.lists(st.sampled_from(SEGMENTS) | NAME | st.text(max_size=8).map(quote), max_size=7)))
    if draw(st.booleans()):
        path = "/models/p/app/1.0.0/" + draw(st.sampled_from(["m", "m/info", "m.sha256", "x", "", "m/"]))
    query = draw(st.lists(st.tuples(QUERY_NAMES, QUERY_VALUES), max_size=5))
    raw = draw(st.sampled_from(["", "", "", "&", "%", "%ff", "=&=", "a=%ff", "a;b", "?"]))
    target = path + ("?" if query or raw else "") + urlencode(query, errors="replace") + raw
    headers = draw(st.lists(st.sampled_from(list(HEADERS)), max_size=4))
    lines = [f"{name}: {draw(st.sampled_from(HEADERS[name]) | HEADER_TEXT)}" for name in headers]
    body = draw(st.binary(max_size=200) | st.sampled_from(DOCUMENTS))
    if "Content-Length" not in headers and "Transfer-Encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    version = draw(st.sampled_from(["1.1"] * 8 + ["1.0", "2.0", "0.9", "x"]))
    head = "\r\n".join([f"{draw(METHODS)} {target} HTTP/{version}", "Host: x", *lines])
    return head.encode("latin-1", "replace") + b"\r\n\r\n" + body


VALUES = st.text(st.characters(exclude_categories=("Cs",)), max_size=100)
KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9_.]{0,10}", fullmatch=True).filter(
    lambda key: key not in ("file", "sha256", "project_id", "app_name", "version", "model_name"))
BOUNDARIES = st.text("abcABC019'()+_,./:=?-", min_size=1, max_size=70)


@st.composite
def forms(draw):
    """(boundary, names, fields, content, body, where it is cut): a form as a browser sends it, with any contents."""
    boundary = draw(BOUNDARIES)
    delimiter = f"\r\n--{boundary}".encode()
    pieces = st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", delimiter[:-1], delimiter + b"x", delimiter[1:]])
    content = b"".join(draw(st.lists(st.binary(max_size=60) | pieces, max_size=8)))
    names = {name: draw(NAME) for name in ("project_id", "app_name", "version", "model_name")}
    fields = draw(st.dictionaries(KEYS, VALUES, max_size=5))
    parts = [(f'form-data; name="{key}"', value.encode()) for key, value in {**names, **fields}.items()]
    parts.insert(draw(st.integers(0, len(parts))), ('form-data; name="file"; filename="m.pt"', content))
    body = b"".join(b"--%s\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (boundary.encode(), disposition.encode(), value)
                    for disposition, value in parts) + f"--{boundary}--\r\n".encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=6)))
    return boundary, names, fields, content, body, cuts


def breaks(form):
    """Whether the content or a field has a line that is the boundary, after which nothing can be foretold."""
    boundary, _, fields, content, _, _ = form
    line = b"\r\n--" + boundary.encode()
    return any(line in b"\r\n" + text for text in (content, *(value.encode() for value in fields.values())))


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    with running(tmp_path_factory.mktemp("fuzz") / "models", MODEL_MAX_SIZE="1M") as server:
        assert send(server, "PUT", "/models/p/app/1.0.0/m", b"model").status == 201
        yield server
        assert "Traceback" not in server.log() and " ERROR " not in server.log(), server.log()[-5000:]
        assert_whole(server)


def strict(text):
    """JSON as RFC 8259 has it: no Infinity, no NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in a JSON answer"))


def examples(number):
    return settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                    phases=(Phase.generate, Phase.shrink))


def first_answer(server, data, cuts=()):
    """(status, headers, body) of the first final answer; a body that was announced too long is not waited for."""
    with server.connect() as wire:
        for begin, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
            wire.send(data[begin:end])
        wire.sock.shutdown(1)
        head = wire.head()
        while head and head[0] == 100:
            head = wire.head()
        if not head:
            return None
        body = wire.file.read()     # and the answer to what looks like another request
        if "content-length" in head[1]:
            body = body[:int(head[1]["content-length"])]
        if head[1].get("transfer-encoding") == "chunked" and not data.startswith(b"HEAD"):
            body = b"".join(ChunkedDecoder().feed(body)[0])
        return (*head, body)


def test_no_request_is_a_fault_of_the_server(fuzzed, count, say):
    done = {}

    @examples(count(200, 10_000))
    @given(request_bytes())
    def attack(data):
        lines = len(fuzzed.lines)
        answer = first_answer(fuzzed, data)
        status = answer[0] if answer else 0     # 0: it waits for more of the request, and we have closed
        done[status] = done.get(status, 0) + 1
        assert status < 500 or (status, data.split(b"\r\n")[0][-3:]) == (501, b"1.1") or status == 505, (data, answer)
        if status >= 400 and not data.startswith(b"HEAD"):
            assert set(json.loads(answer[2])) == {"detail"}, (data, answer)
        elif answer and answer[1].get("content-type") == "application/json" and not data.startswith(b"HEAD"):
            strict(answer[2])
        assert "Traceback" not in "".join(fuzzed.lines[lines:]), data

    attack()
    say(f"{sum(done.values())} requests: {dict(sorted(done.items()))}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_patch_makes_a_model_that_cannot_be_told_of(fuzzed, document):
    assert send(fuzzed, "PUT", "/models/patched/app/1/m", b"model").status in (200, 201)
    answer = send(fuzzed, "PATCH", "/models/patched/app/1/m/info", document)
    assert answer.status in (200, 400), answer
    for target in ("/models/patched/app/1/m/info", "/models/list", "/models/list?format=ndjson"):
        told = send(fuzzed, "GET", target)
        assert told.status == 200, told
        for text in told.body.splitlines() if "ndjson" in target else [told.body]:
            strict(text)


def test_what_a_form_stores_is_what_was_sent(fuzzed, count, say):
    done = {}

    @examples(count(200, 6_000))
    @given(forms().filter(lambda form: not breaks(form)))
    def upload(form):
        boundary, names, fields, content, body, cuts = form
        head = (f"POST /models/upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
                f'Content-Type: multipart/form-data; boundary="{boundary}"\r\n\r\n').encode()
        status, _, answer = first_answer(fuzzed, head + body, [len(head) + cut for cut in cuts])
        done[status] = done.get(status, 0) + 1
        if names["project_id"] in ("list", "upload"):
            assert status == 400
            return
        assert status in (200, 201), (answer, body)
        target = "/models/" + "/".join(names.values())
        assert send(fuzzed, "GET", target).body == content
        info = send(fuzzed, "GET", target + "/info").json
        known = {name: fields.pop(name, None) for name in ("description", "framework")}
        assert {name: info[name] for name in known} == known and info["metadata"] == fields
        assert (info["filename"], info["size"]) == ("m.pt", len(content))
        assert send(fuzzed, "DELETE", target).status == 200

    upload()
    say(f"{sum(done.values())} forms came back as they were sent: {done}")


def test_no_broken_form_is_a_fault_of_the_server(fuzzed, count):
    @examples(count(100, 4_000))
    @given(forms(), st.data())
    def break_it(form, data):
        boundary, names, _, _, body, cuts = form
        names["project_id"] = "broken"
        body = bytearray(body)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(body)))
            body[at:at + data.draw(st.integers(0, 10))] = data.draw(st.binary(max_size=5) | st.sampled_from(
                [b"\r\n", b"\n", f"--{boundary}".encode(), b'; name="file"', b"Content-Transfer-Encoding: base64\r\n"]))
        kind = data.draw(st.sampled_from([f'boundary="{boundary}"', f"boundary={boundary}", "", "boundary*0=a"]))
        length = len(body) + data.draw(st.sampled_from([0, 0, 0, 1, -1]))
        head = (f"POST /models/upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {max(length, 0)}\r\n"
                f"Content-Type: multipart/form-data; {kind}\r\n\r\n").encode()
        try:
            answer = first_answer(fuzzed, head + bytes(body), [min(cut, len(body)) + len(head) for cut in cuts])
        except OSError:     # it closed with the byte unread that was one too many
            answer = None
        assert answer is None or answer[0] < 500, (body, answer)

    break_it()
    assert "Traceback" not in fuzzed.log()


@pytest.mark.long
def test_the_cutter_under_atheris(tmp_path, count):
    """benchmarks/fuzz_forms.py, for a minute or in proportion; ATHERIS_PYTHON names an interpreter that has atheris."""
    python = os.environ.get("ATHERIS_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import atheris"], capture_output=True).returncode:
        pytest.skip(f"{python} has no atheris: pip install atheris, or set ATHERIS_PYTHON")
    done = subprocess.run([python, str(ROOT / "benchmarks/fuzz_forms.py"), f"-max_total_time={count(1, 60)}"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    shutil.rmtree(tmp_path)
