"""Behind deploy/nginx.conf: Debian's nginx with that very file, its addresses and paths replaced, and a certificate."""

import http.server
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from requests.adapters import HTTPAdapter
from support.common import eventually, sha256, sparse
from support.live import running
from support.proxy import TRUSTED, proxy

DATA = bytes(range(256)) * 4096
pytestmark = pytest.mark.needs("nginx", "openssl")


@pytest.fixture(scope="module")
def served(tmp_path_factory, tls):
    """(nginx, the server behind it), which trusts it."""
    place = tmp_path_factory.mktemp("proxy")
    with running(place / "models", MODEL_OVERWRITE="deny", MODEL_MAX_SIZE="4G", **TRUSTED) as server, \
            proxy(place / "nginx", tls, server.port) as it:
        yield it, server


@pytest.fixture
def front(served):
    return served[0]


@pytest.fixture
def behind(served):
    return served[1]


def fields_of(server, request_id):
    """The fields of the log line of a request, from the method on."""
    return server.line_of(request_id).split()[3:]


# ---- what a client sees


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_what_is_uploaded_comes_back_over_tls(front, project, tmp_path, version):
    (tmp_path / "m.pt").write_bytes(DATA * 8)
    url = f"{front.url}/models/{project}/app/1/m.pt"
    put = front.curl(version, "-w", "\n%{http_version} %{http_code}", "-T", tmp_path / "m.pt", url).stdout.decode()
    assert put.splitlines()[-1] == {"--http1.1": "1.1 201", "--http2": "2 201"}[version]
    form = front.curl(version, "-F", f"file=@{tmp_path}/m.pt", f"{front.url}/models/upload?project_id={project}"
                      "&app_name=app&version=2&model_name=m")
    assert json.loads(form.stdout)["filename"] == "m.pt"
    for path in ("1/m.pt", "2/m"):
        assert front.curl(version, f"{front.url}/models/{project}/app/{path}").stdout == DATA * 8


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_an_upload_is_continued_through_it(front, project, tmp_path, version):
    data = os.urandom(16) + DATA
    (tmp_path / "rest").write_bytes(data[1000:])
    (tmp_path / "start").write_bytes(data[:1000])
    url = f"{front.url}/models/{project}/app/1/m/upload?sha256={sha256(data)}"
    begun = front.curl(version, "-i", "-T", tmp_path / "start", "-H", "Upload-Offset: 0", "-H", "Upload-Complete: ?0",
                       url)
    assert b"upload-offset: 1000" in begun.stdout.lower()
    assert front.curl(version, url).stdout == b"1000\n"
    wrong = front.curl(version, "-i", "-T", tmp_path / "rest", "-H", "Upload-Offset: 1001", url).stdout
    assert b" 409" in wrong.split(b"\r\n\r\n")[-2] and b"upload-offset: 1000" in wrong.lower()
    answer = front.curl(version, "-T", tmp_path / "rest", "-H", "Upload-Offset: 1000", url)
    assert json.loads(answer.stdout)["sha256"] == sha256(data)


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_stream_of_unknown_length_passes(front, project, version, tmp_path):
    (tmp_path / "m").write_bytes(DATA * 4)
    url = f"{front.url}/models/{project}/app/1/m"
    done = subprocess.run(f"cat {tmp_path}/m | curl -q -sS --cacert {front.tls}/fullchain.pem {version} -T - {url}",
                          shell=True, capture_output=True, timeout=60)
    assert json.loads(done.stdout)["sha256"] == sha256(DATA * 4)
    assert front.session().get(url).content == DATA * 4


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize(("path", "status"), [("app/1/bad%20name", 400), ("app/1/a%2Fb", 400), ("app/1/there", 409),
                                              ("app/1/huge", 413)])
def test_a_refused_upload_stops_travelling(front, behind, project, tmp_path, version, path, status):
    size = 5 << 30 if status == 413 else 1 << 30
    sent, request_id = sparse(tmp_path / "model", 1 << 20), secrets.token_hex(8)
    os.truncate(sent, size)
    front.session().put(f"{front.url}/models/{project}/app/1/there", data=b"first")
    done = front.curl(version, "-w", "\n%{http_code} %{size_upload} %{time_total}", "-H", f"X-Request-Id: {request_id}",
                      "-T", sent, f"{front.url}/models/{project}/{path}")
    body, _, figures = done.stdout.decode().rpartition("\n")
    code, travelled, seconds = figures.split()
    print(f"{version} {path}: {travelled} bytes, {seconds} s")
    assert int(code) == status and json.loads(body)["detail"]
    # by then nginx has said 100, so what is under way in that moment travels: up to 8 MB measured, of 1 GiB
    assert int(travelled) < 32 << 20
    fields = fields_of(behind, request_id)
    assert fields[2] == str(status) and int(fields[3]) < 1000   # of the answer: the server took nothing of the model


def test_a_client_that_does_not_ask_sees_the_refusal_after_its_body(front, project):
    answer = front.session().put(f"{front.url}/models/{project}/app/1/bad%20name", data=DATA * 64)
    assert answer.status_code == 400 and "is not a name" in answer.json()["detail"]


def test_ranges_and_conditions_pass(front, project, tmp_path):
    with front.session() as http:
        url = f"{front.url}/models/{project}/app/1/m"
        etag = http.put(url, data=DATA).headers["ETag"]
        part = http.get(url, headers={"Range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, DATA[1000:2000])
        assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(DATA)}"
        assert http.get(url, headers={"Range": "bytes=-5"}).content == DATA[-5:]
        beyond = http.get(url, headers={"Range": f"bytes={len(DATA)}-"})
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")
        assert http.get(url, headers={"If-None-Match": etag}).status_code == 304
        assert http.get(url, headers={"Range": "bytes=0-0", "If-Range": '"other"'}).status_code == 200
        head = http.head(url)
        assert (head.headers["Content-Length"], head.headers["Accept-Ranges"]) == (str(len(DATA)), "bytes")
    broken = tmp_path / "m"
    broken.write_bytes(DATA[:300_000])
    assert front.curl("-f", "-C", "-", "-o", broken, url).returncode == 0
    assert broken.read_bytes() == DATA


@pytest.mark.needs("aria2c")
def test_aria2_loads_with_16_connections(front, project, tmp_path):
    url = f"{front.url}/models/{project}/app/1/m"
    front.session().put(url, data=DATA * 32)
    subprocess.run(["aria2c", "-q", "--no-conf", "-x16", "-s16", "-k1M", f"--ca-certificate={front.tls}/fullchain.pem",
                    "-d", tmp_path, "-o", "m", url], check=True, timeout=60)
    assert (tmp_path / "m").read_bytes() == DATA * 32


def test_http_is_sent_to_https_with_its_method(front, project):
    answer = requests.put(f"{front.plain_url}/models/{project}/a/1/m?framework=x", data=b"x", allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == \
        (308, f"https://localhost/models/{project}/a/1/m?framework=x")


def test_the_metrics_are_not_for_the_outside(front, behind):
    answer = front.session().get(f"{front.url}/metrics")
    assert answer.status_code == 403 and answer.json()["detail"]
    assert requests.get(f"{behind.url}/metrics").status_code == 200


MARK = "-- 8< --"      # between what one call of curl writes


def spellings(path):
    """Request targets that somebody could take for this path of one or more names, each written in another way."""
    name = path.rpartition("/")[2]
    above = path.removesuffix(name)
    coded = f"%{ord(name[0]):x}{name[1:]}"
    return [
        path, f"{path}?x=1", f"{path}?", f"{path}/", f"{path}//", f"{path}/?x", f"{path}/.", f"{path}/./",
        f"{path}/x/..",
        f"/{path}", f"//{path}", f"/{path}/", f"/{path}//", f"{above}/{name}", f"{above}./{name}", f"/.{path}",
        f"/x/..{path}", f"/x/../{path}", f"/x/../{path}/", f"/x//../..{path}", f"/..{path}", f"/../..{path}",
        f"//..{path}",
        f"/%2e{path}", f"/x/%2e%2e{path}", f"/x/%2E.{path}", f"/x/.%2e/{path}", f"{path}/%2e", f"{path}/x/%2e%2e",
        above + coded, f"/{above}{coded}", f"{above}{coded}/", f"{above}%25{coded[1:]}", f"{path}%2F", f"{path}%2f/",
        f"/%2F{path[1:]}", f"/%2f{path}", f"%2F{path[1:]}", f"/x%2f..{path}", f"/x/..%2f{path[1:]}", f"/{path[1:]}%3Fx",
        above + name.upper(), above + name.capitalize(), f"{path};", f"{path};x=1", f"{path};/", f"/;{path}",
        f"{path}%3B", f"{path}%20", f"{path}%00", f"{path}%0a", f"{path}%09", f"{path}.", f"{path}..", f"{path}*",
        f"{path}#x", f"{path}%23",
        f"\\{path[1:]}", f"/x\\..{path}", f"{path}\\", f"/%5c..{path}", f"/%c0%af{path[1:]}", f"{path}&x", f"{path}:80",
        path.replace("/", "/%e2%80%8b"), f"{path}~", f"*{path}", path[1:], f"@{path}",
    ]


def statuses(targets, *options):
    """What curl sees of each target, sent as it is written: [(status, the body's first bytes)]."""
    first, told = targets[0][0], []
    for start in range(0, len(targets), 100):
        each = [["--request-target", target, "-w", f"{MARK}%{{http_code}}{MARK}", "-o", "-", url, *options]
                for url, target in targets[start : start + 100]]
        arguments = [word for one in each for word in ("--next", "-q", "-sS", *one)][1:]
        done = subprocess.run(["curl", *arguments], capture_output=True, timeout=300)
        told += done.stdout.decode(errors="replace").split(MARK)[:-1]
    assert len(told) == 2 * len(targets), first
    return [(int(status), body) for body, status in zip(told[::2], told[1::2], strict=True)]


def has_figures(body):
    return "model_repository_" in body


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("prefix", ["", "/models-eu"])
def test_the_proxy_and_the_server_read_a_path_in_the_same_way(tmp_path, tls, version, prefix):
    """Nothing of the metrics passes in any spelling; of all else the proxy says what the server says, or refuses it."""
    with running(tmp_path / "models", MODEL_ANONYMOUS="all", URL_PREFIX=prefix, **TRUSTED) as server, \
            proxy(tmp_path / "nginx", tls, server.port, prefixed=server.port if prefix else None, clean=False) as front:
        requests.put(f"{server.url}{prefix}/models/p/a/1/metrics", data=b"a model of that name").raise_for_status()
        paths = ("/metrics", "/health", "/models/list", "/models/p/a/1/metrics", "/models/p/a/1/metrics/info")
        targets = [target for path in paths for target in spellings(prefix + path)]
        if version == "--http1.1":      # HTTP/2 has no such target (RFC 9113 8.3.1)
            targets += [f"{scheme}://localhost{target}" for scheme in ("http", "https", "HTTPS")
                        for path in ("/metrics", "/health") for target in spellings(prefix + path)[:16]]
        alone = statuses([(server.url, target) for target in targets], "--http1.1")
        passed = [answer for number in range(0, len(targets), 100) for answer in statuses(
            [(front.url, target) for target in targets[number : number + 100]], version, "--cacert",
            f"{tls}/fullchain.pem", "--interface", f"127.0.0.{10 + number // 100}")]
    assert {200, 404} <= {status for status, _ in alone} and any(has_figures(body) for _, body in alone)
    wrong = []
    for target, (expected, own), (status, body) in zip(targets, alone, passed, strict=True):
        # what the server does not have the proxy may refuse in its own way
        refused = status in (400, 403) and expected >= 400
        fits = status == 403 if has_figures(own) else status == expected or refused
        if not fits or has_figures(body):
            wrong.append((target, expected, status))
    assert wrong == []


# ---- whom the server believes


def test_what_the_server_says_names_what_the_client_asked(front, behind, project):
    with front.session("127.0.0.5") as http:
        for name in "ab":
            answer = http.put(f"{front.url}/models/{project}/app/1.0.0/{name}", data=b"x")
            url = f"{front.url}/models/{project}/app/1.0.0/{name}"
            assert answer.json()["url"] == answer.headers["Location"] == url
        page = http.get(f"{front.url}/models/{project}", params={"limit": 1})
        assert page.links["next"]["url"].startswith(f"{front.url}/models/{project}?")
        assert http.get(page.links["next"]["url"]).json()["models"][0]["model_name"] == "b"
        assert http.get(f"{front.url}/models/{project}?format=urls").text.split()[1] == url
        assert fields_of(behind, page.headers["X-Request-Id"])[-1] == "127.0.0.5"


def test_a_page_of_the_origin_that_the_proxy_publishes_writes_and_no_other(front, project):
    url = f"{front.url}/models/{project}/app/1/m"
    for origin, status in ((front.url, 201), (front.url.replace("https", "http"), 403), ("https://evil.example", 403)):
        answer = front.session().put(url, data=b"x", headers={"Origin": origin})
        assert (answer.status_code, answer.headers["X-Content-Type-Options"]) == (status, "nosniff")


def test_a_host_that_is_none_gets_json_and_is_in_no_answer(front):
    for path in ("/models/list", "/health", "/nowhere"):
        done = front.curl("-H", 'Host: a"b', "-w", "\n%{http_code}", front.url + path).stdout.decode()
        body, status = done.rsplit("\n", 1)
        assert status == "400" and "Host" in json.loads(body)["detail"]


def test_what_a_client_says_of_itself_is_not_believed(front, behind, project):
    lies = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http",
            "Forwarded": "for=6.6.6.6;host=evil.example", "X-Forwarded-Port": "99"}
    answer = front.session().put(f"{front.url}/models/{project}/app/1/m", data=b"x", headers=lies)
    assert answer.json()["url"] == f"{front.url}/models/{project}/app/1/m"
    assert fields_of(behind, answer.headers["X-Request-Id"])[-1] == "127.0.0.1"


def test_headers_from_another_address_than_the_proxys_are_ignored(tmp_path, tls):
    lies = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    with running(tmp_path / "models", **TRUSTED) as server:
        with requests.Session() as http:
            http.mount("http://", type("From", (HTTPAdapter,), {"init_poolmanager": lambda self, *a, **o: HTTPAdapter
                       .init_poolmanager(self, *a, source_address=("127.0.0.7", 0), **o)})())
            answer = http.put(f"{server.url}/models/p/app/1/m", data=b"x", headers=lies)
        assert answer.json()["url"] == f"{server.url}/models/p/app/1/m"
        assert fields_of(server, answer.headers["X-Request-Id"])[-1] == "127.0.0.7"
    for setting in ({}, {"TRUSTED_PROXY": "127.0.0.9"}):    # nginx comes from 127.0.0.1
        with running(tmp_path / "models", **setting) as server, \
                proxy(tmp_path / f"nginx{len(setting)}", tls, server.port) as front:
            answer = front.session("127.0.0.5").put(f"{front.url}/models/p/app/1/m", data=b"x", headers=lies)
            assert answer.json()["url"].startswith("http://localhost:")     # nobody told that it was https
            assert fields_of(server, answer.headers["X-Request-Id"])[-1] == "127.0.0.1"


def test_a_request_has_one_id_everywhere(front, behind, project):
    with front.session() as http:
        mine = http.get(f"{front.url}/health", headers={"X-Request-Id": f"{project}-1"})
        theirs = http.get(f"{front.url}/health", headers={"X-Request-Id": "no id, that"})
    assert mine.headers["X-Request-Id"] == f"{project}-1"
    assert re.fullmatch("[0-9a-f]{32}", theirs.headers["X-Request-Id"])
    for answer in (mine, theirs):
        behind.line_of(answer.headers["X-Request-Id"])
        assert answer.headers["X-Request-Id"] in front.access_log()


def test_a_server_below_a_path(tmp_path, tls):
    with running(tmp_path / "models", URL_PREFIX="/models-eu", **TRUSTED) as server, \
            proxy(tmp_path / "nginx", tls, server.port, prefixed=server.port) as front, front.session() as http:
        base = f"{front.url}/models-eu"
        for version in ("1.0.0", "2.0.0"):
            answer = http.put(f"{base}/models/p/app/{version}/m", data=version)
            assert answer.json()["url"] == answer.headers["Location"] == f"{base}/models/p/app/{version}/m"
        latest = http.get(f"{base}/models/p/app/latest/m")
        assert latest.content == b"2.0.0"
        assert latest.headers["Content-Location"] == "/models-eu/models/p/app/2.0.0/m"
        page = http.get(f"{base}/models/p", params={"limit": 1})
        assert http.get(page.links["next"]["url"]).json()["models"][0]["version"] == "2.0.0"
        assert http.get(f"{base}/health").json()["status"] == "healthy"


# ---- limits, size, servers that go away


def test_tokens_pass_and_what_they_do_not_allow_stops_travelling(tmp_path, tls):
    (tmp_path / "tokens").write_text(f"ci:{sha256(b'a token')}:create:p\n")
    sparse(tmp_path / "m", 1 << 20)
    with running(tmp_path / "models", MODEL_TOKENS_FILE=str(tmp_path / "tokens"), **TRUSTED) as server, \
            proxy(tmp_path / "nginx", tls, server.port) as it:
        known = "-u", "any:a token"
        for path, credentials, status in (("p/a/1/m", known, "201"), ("q/a/1/m", known, "403"), ("p/a/1/n", (), "401")):
            done = it.curl("-D", tmp_path / "head", "-w", "\n%{http_code}", *credentials, "-T", tmp_path / "m",
                           f"{it.url}/models/{path}").stdout.decode()
            assert done.endswith("\n" + status), done
            assert ("basic" in (tmp_path / "head").read_text().lower()) == (status == "401")
            request_id = re.search("(?i)x-request-id: (.*)", (tmp_path / "head").read_text())[1].strip()
            assert status == "201" or int(fields_of(server, request_id)[3]) < 1000    # of the answer, none of the model


def test_too_many_requests_are_429_with_json(tmp_path, tls):
    with running(tmp_path / "models", **TRUSTED) as server, \
            proxy(tmp_path / "nginx", tls, server.port, clean=False) as front, front.session() as http:
        # 16 at once: one after the other a slow machine may stay below the 50 a second
        answers = []
        with ThreadPoolExecutor(16) as clients:
            while len(answers) < 4000 and not any(answer.status_code == 429 for answer in answers):
                answers += clients.map(lambda _: http.get(f"{front.url}/health"), range(400))
        assert {answer.status_code for answer in answers} == {200, 429}
        assert sum(answer.status_code == 200 for answer in answers) >= 200      # what a burst may be
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert "too many" in refused.json()["detail"] and refused.headers["Retry-After"] == "1"
        assert http.put(f"{front.url}/models/p/app/1/m", data=DATA).status_code in (201, 429)
        eventually(lambda: http.get(f"{front.url}/health").status_code == 200)


def test_too_many_connections_are_429_and_those_before_go_on(tmp_path, tls):
    with running(tmp_path / "models", **TRUSTED) as server, \
            proxy(tmp_path / "nginx", tls, server.port, clean=False) as front, front.session() as http:
        wires = [front.connect() for _ in range(32)]
        for number, wire in enumerate(wires):
            wire.send(f"PUT /models/p/app/1/m{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nha")
        refused = eventually(lambda: (got := http.get(f"{front.url}/health")).status_code == 429 and got.json())
        assert "too many" in refused["detail"]
        for wire in wires:
            wire.send("lf")
            assert wire.response()[0] == 201
            wire.close()
        listed = eventually(lambda: (got := http.get(f"{front.url}/models/p")).status_code == 200 and got.json())
        assert listed["total_models"] == 32


def test_without_a_server_the_answer_is_503_with_json(tmp_path, tls):
    with running(tmp_path / "models", **TRUSTED) as server, \
            proxy(tmp_path / "nginx", tls, server.port, clean=False) as front, front.session() as http:
        assert http.get(f"{front.url}/health").status_code == 200
        server.stop()
        answer = http.get(f"{front.url}/models/list")
        assert answer.status_code == 503 and "no server" in answer.json()["detail"]


def test_of_two_servers_the_dead_one_is_passed_over(tmp_path, tls):
    with running(tmp_path / "models", **TRUSTED) as first, running(tmp_path / "models", **TRUSTED) as second, \
            proxy(tmp_path / "nginx", tls, first.port, second.port, clean=False) as front, front.session() as http:
        for number in range(10):
            assert http.put(f"{front.url}/models/p/app/{number}/m", data=DATA).status_code == 201
        first.stop(signal.SIGKILL)
        for number in range(20):
            answer = http.put(f"{front.url}/models/p/app/{number}/m", data=b"again")
            assert answer.status_code == (200 if number < 10 else 201)
            assert http.get(f"{front.url}/models/p/app/{number}/m").content == b"again"
        for server in (first, second):
            assert " PUT " in server.log()


def test_servers_can_be_restarted_one_after_the_other(tmp_path, tls):
    with running(tmp_path / "models", **TRUSTED) as first, running(tmp_path / "models", **TRUSTED) as second, \
            proxy(tmp_path / "nginx", tls, first.port, second.port, clean=False) as front, front.session() as http:
        assert http.put(f"{front.url}/models/p/app/1/m", data=DATA).status_code == 201
        first.stop()
        for _ in range(4):      # one of them finds that the first is gone
            assert http.get(f"{front.url}/models/p/app/1/m").content == DATA
        with running(tmp_path / "models", SERVER_PORT=str(first.port), **TRUSTED):
            time.sleep(3)       # as SCALING.md says
            second.stop()
            for _ in range(4):
                assert http.get(f"{front.url}/models/p/app/1/m").content == DATA


def test_one_corrupt_model_takes_no_server_out_of_service(tmp_path, tls):
    url = "/models/p/app/1/"
    with running(tmp_path / "models", **TRUSTED) as first, running(tmp_path / "models", **TRUSTED) as second, \
            proxy(tmp_path / "nginx", tls, first.port, second.port) as front, front.session() as http:
        for name in ("good", "bad"):
            assert http.put(front.url + url + name, data=DATA).status_code == 201
        with (tmp_path / "models/p/app/1/bad/model").open("r+b") as file:
            file.write(b"damage")
        assert http.post(front.url + "/verify").status_code == 202
        eventually(lambda: not any(requests.get(f"{it.url}/verify").json()["running"] for it in (first, second)))
        assert http.get(front.url + url + "bad/info").json()["corrupt"]
        for _ in range(6):
            assert http.get(front.url + url + "bad").status_code == 409
            assert http.get(front.url + url + "good").content == DATA
        assert front.curl("-f", front.url + url + "bad").returncode == 22
        eventually(lambda: front.access_log().count(" 409 ") == 7)      # nginx logs an answer after it
        wget = subprocess.run(["wget", "--no-config", "-q", "--ca-certificate", tls / "fullchain.pem", "-O", os.devnull,
                               front.url + url + "bad"], timeout=60)
        assert wget.returncode == 8
        eventually(lambda: front.access_log().count(" 409 ") == 8)      # and not tried again


@pytest.mark.parametrize("path", ["/health", "/health/", "/he%61lth"])
def test_a_storage_that_cannot_be_written_is_still_read(tmp_path, tls, path):
    with running(tmp_path / "models", **TRUSTED) as first, running(tmp_path / "models", **TRUSTED) as second, \
            proxy(tmp_path / "nginx", tls, first.port, second.port) as front, front.session() as http:
        assert http.put(f"{front.url}/models/p/app/1/m", data=DATA).status_code == 201
        shutil.rmtree(tmp_path / "models/.staging")
        (tmp_path / "models/.staging").touch()      # a file, in which nothing can be made
        eventually(lambda: all(requests.get(f"{server.url}/health").status_code == 503 for server in (first, second)))
        for _ in range(6):
            assert front.curl("--path-as-is", "-w", "\n%{http_code}", front.url + path).stdout.endswith(b"\n503")
            assert http.get(f"{front.url}/models/p/app/1/m").content == DATA


class Broken(http.server.BaseHTTPRequestHandler):
    """A server that has lost its storage."""

    def do_GET(self):
        self.send_error(503)

    def log_message(self, *_):
        pass


def test_a_server_that_has_lost_its_storage_is_passed_over_by_readers(tmp_path, tls):
    with running(tmp_path / "models", **TRUSTED) as server, \
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        with proxy(tmp_path / "nginx", tls, broken.server_port, server.port, clean=False) as front, \
                front.session() as client:
            assert [client.get(f"{front.url}/models/list").status_code for _ in range(20)] == [200] * 20
        broken.shutdown()
