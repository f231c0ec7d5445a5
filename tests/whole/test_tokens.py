"""Tokens from outside: the start, the command, real connections, the audit."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
import requests
from support.common import ROOT, sha256, staged
from support.credentials import ALL, HASH, basic, bearer, line
from support.live import running
from support.process import run_to_its_end
from support.raw import chunks, head

from server.access import MAX_TOKENS_FILE

# ---- how it starts


@pytest.mark.parametrize(("text", "env", "says"), [
    (f"n:{HASH}:read:p\nhush:x:read:p\n", {}, "line 2"), ("", {}, "nobody"), ("# n\n", {}, "nobody"),
    (None, {}, f"uid {os.geteuid()} (No such file or directory): set it to a file with lines of"),
    ("", {"MODEL_ANONYMOUS": "some"}, "MODEL_ANONYMOUS"),
    ("", {"MODEL_TOKENS_FILE": "", "MODEL_ANONYMOUS": "none"}, "nobody"),
    ("", {"MODEL_TOKENS_FILE": "/"}, "(Is a directory): set it to a file with lines of"),
    ("", {"MODEL_TOKENS_FILE": "/dev/zero"}, "not a regular file"),
    (f"n:{HASH}:read:p\n" + "#" * MAX_TOKENS_FILE, {}, "longer than"),
])
def test_what_would_half_enable_it_stops_the_server_with_one_clear_line(tmp_path, text, env, says):
    path = tmp_path / "tokens"
    if text is not None:
        path.write_text(text)
    ended = run_to_its_end(tmp_path, **{"MODEL_TOKENS_FILE": str(path), **env})
    assert (ended.returncode > 0, ended.stdout.count("\n")) == (True, 1), ended.stdout
    assert says in ended.stdout and "MODEL_" in ended.stdout and "hush" not in ended.stdout


# ---- the command that makes a token


def command(tmp_path, *arguments, stdout=subprocess.PIPE):
    return subprocess.run([sys.executable, str(ROOT / "model_server.py"), *arguments], cwd=tmp_path, text=True,
                          env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "SERVER_PORT": "nonsense"},
                          stdout=stdout, stderr=subprocess.PIPE, timeout=30)


def test_the_command_makes_another_token_each_time_and_the_line_for_the_file(tmp_path, make_app):
    made, path = set(), tmp_path / "file"
    for _ in range(2):
        done = command(tmp_path, "token", "ci", "create,read", "p/a")
        assert done.returncode == 0
        token = re.search(r": (amr_[\w-]{43})\n$", done.stderr)[1]
        assert done.stdout == f"ci:{hashlib.sha256(token.encode()).hexdigest()}:create,read:p/a\n"
        made.add(token)
        path.write_text(done.stdout)
        app = make_app(tokens_file=path)
        app.put(f"/models/p/a/1/m{len(made)}", b"x", status=201,
                headers={"Authorization": basic(f"any:{token}".encode())})
    assert len(made) == 2
    assert [entry.name for entry in tmp_path.iterdir() if entry != path] == ["models"]      # of the application above


@pytest.mark.parametrize("arguments", [
    ["token"], ["token", "n", "read"], ["token", "n", "read", "p", "x"], ["tokens", "n", "read", "p"], ["--help"], [""],
    ["token", "n", "write", "p"], ["token", "n", "", "p"], ["token", "n n", "read", "p"], ["token", "n:n", "read", "p"],
    ["token", "#n", "read", "p"], ["token", "anonymous", "read", "p"], ["token", "n", "read", "p/a/1"],
    ["token", "n", "read", "p\nx"], ["token", "n\nx", "read", "p"], ["token", "n", "read", ""],
    ["token", "n", "read", "../x"],
])
def test_bad_arguments_give_the_usage_and_2(tmp_path, arguments):
    done = command(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python model_server.py") and "amr_" not in done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["token", "n", "read", "p"], ["--version"]])
def test_on_a_full_disk_no_token_is_shown_whose_line_is_not_there(tmp_path, arguments):
    with open("/dev/full", "wb") as full:
        done = command(tmp_path, *arguments, stdout=full)
    assert (done.returncode, done.stderr) == (1, "model_server: cannot write to stdout: No space left on device\n")


# ---- over a real connection

LENGTH = 1 << 20


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A live server: admin may everything, ci may create in p, reader may read p; there is p/a/1/taken."""
    place = tmp_path_factory.mktemp("closed")
    (place / "tokens").write_text(line("admin", ALL, "*") + line("ci", "create", "p") + line("reader", "read", "p"))
    with running(place / "models", MODEL_TOKENS_FILE=str(place / "tokens")) as server:
        requests.put(f"{server.url}/models/p/a/1/taken", data=b"x", headers=bearer("admin")).raise_for_status()
        yield server


def test_the_start_line_says_who_may_do_what(closed):
    assert f"limit none, anonymous none, admin {ALL} *, ci create p, reader read p\n" in closed.log()


def curl(directory, *arguments):
    done = subprocess.run(["curl", "-q", "-sS", *arguments], cwd=directory, capture_output=True, text=True, timeout=60,
                          check=True)
    return done.stdout


EARLY = [   # request line, who, status, what the message says
    ("PUT /models/p/a/1/new", None, 401, "token"), ("PUT /models/p/a/1/new", "nobody", 401, "token"),
    ("PUT /models/q/a/1/new", "ci", 403, "create"), ("PUT /models/p/a/1/new", "reader", 403, "create"),
    ("PUT /models/p/a/1/taken", "ci", 403, "update"), ("PATCH /models/p/a/1/taken/info", "ci", 403, "update"),
    ("POST /models/upload", None, 401, "token"), ("POST /models/upload", "reader", 403, "create anything"),
    ("POST /models/upload?project_id=q&app_name=a", "ci", 403, "create q/a"),
    ("POST /models/upload?project_id=q", "ci", 403, "create q"),
    ("POST /models/upload?project_id=p", "reader", 403, "create anything"),
    ("POST /models/upload?project_id=p&app_name=a&version=1&model_name=taken", "ci", 403, "update"),
]


@pytest.mark.parametrize("expect", [True, False])
@pytest.mark.parametrize(("request_line", "who", "status", "says"), EARLY)
def test_a_refusal_comes_before_the_body(closed, request_line, who, status, says, expect):
    headers = [f"Content-Length: {LENGTH}", "Content-Type: multipart/form-data; boundary=B"]
    headers += [f"Authorization: Bearer token-of-{who}"] if who else []
    with closed.connect() as wire:
        if expect:
            wire.send(head(request_line, *headers, "Expect: 100-continue"))
        else:
            wire.send(head(request_line, *headers), b"x" * LENGTH)
        first, fields = wire.head()     # and not 100
        assert (first, says in json.loads(wire.file.read(int(fields["content-length"])))["detail"]) == (status, True)
        assert ("www-authenticate" in fields) == (status == 401)
        if not expect:
            wire.send(head("GET /health"))
            assert wire.response()[0] == 200
    assert staged(closed.storage) == []


@pytest.mark.parametrize(("path", "credentials", "answer"), [
    ("p/a/1/new", [], "401 0"), ("p/a/1/new", ["-u", "x:nonsense"], "401 0"),
    ("q/a/1/new", ["-u", "x:token-of-ci"], "403 0"),
    ("p/a/1/taken", ["-u", "x:token-of-ci"], "403 0"), ("p/a/1/curl", ["-u", "x:token-of-ci"], f"201 {LENGTH}"),
    ("p/a/1/digest", ["-u", "x:token-of-ci", "--anyauth"], f"201 {LENGTH}"),
])
def test_curl_sends_nothing_of_what_is_refused(closed, tmp_path, path, credentials, answer):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(LENGTH)
    told = curl(tmp_path, "--expect100-timeout", "60", "-H", "Expect: 100-continue", *credentials, "-T", "file",
                "-o", "answer", "-w", "%{http_code} %{size_upload}", f"{closed.url}/models/{path}")
    assert told == answer


def test_two_authorization_headers_are_none(closed):
    for first, second in (("admin", "admin"), ("admin", "nobody"), ("nobody", "admin")):
        with closed.connect() as wire:
            wire.send(head("GET /models/list", *(f"Authorization: Bearer token-of-{who}" for who in (first, second))))
            assert wire.response()[0] == 401


def test_names_behind_the_file_are_judged_before_it_is_published(closed, tmp_path):
    (tmp_path / "m").write_bytes(b"x" * LENGTH)

    def post(**names):
        names = {"project_id": "p", "app_name": "f", "version": "1", "model_name": "m", **names}
        fields = [part for name, text in names.items() for part in ("-F", f"{name}={text}")]
        return curl(tmp_path, "-u", "ci:token-of-ci", "-F", "file=@m", *fields, "-w", " %{http_code}",
                    f"{closed.url}/models/upload").rpartition(" ")[::2]

    assert post(project_id="q")[1] == "403" and not (closed.storage / "q").exists()
    assert post()[1] == "201"
    answer, status = post()
    assert (status, "update" in answer) == ("403", True)
    assert staged(closed.storage) == []


@pytest.mark.parametrize("kind", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_model_that_appears_while_another_is_sent_is_not_replaced_without_update(closed, kind):
    path = f"/models/p/race/{kind[0]}/m"
    body = b"y" * 1000 if "Length" in kind else chunks(b"y" * 1000)
    with closed.connect() as wire:
        wire.send(head(f"PUT {path}", kind, "Authorization: Bearer token-of-ci", "Expect: 100-continue"))
        assert wire.head()[0] == 100    # it may be sent: there is none yet
        wire.send(body[:500])
        assert requests.put(closed.url + path, data=b"first", headers=bearer("admin")).status_code == 201
        wire.send(body[500:])
        status, _, answer = wire.response()
    assert (status, b"update" in answer) == (403, True)
    assert requests.get(closed.url + path, headers=bearer("admin")).content == b"first"
    assert staged(closed.storage) == []


def test_a_token_taken_back_while_a_model_is_sent_publishes_nothing(start, tokens):
    path = tokens(line("t", ALL, "p"), line("other", "read", "q"))
    server = start(MODEL_TOKENS_FILE=str(path))
    with server.connect() as wire:
        wire.send(head("PUT /models/p/a/1/m", "Content-Length: 10", "Authorization: Bearer token-of-t",
                       "Expect: 100-continue"))
        assert wire.head()[0] == 100
        wire.send(b"y" * 5)
        path.write_text(line("other", "read", "q"))
        wire.send(b"y" * 5)
        assert wire.response()[0] == 401
    assert not (server.storage / "p").exists() and staged(server.storage) == []


IN_ITS_PLACE = {    # name: (what stands where the file of tokens was, what the log says of it)
    "a fifo": (lambda path: os.mkfifo(path), "not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a terminal": (lambda path: path.symlink_to("/dev/ptmx"), "not a regular file"),
    "a directory": (lambda path: path.mkdir(), "Is a directory"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "a huge file": (lambda path: path.touch() or os.truncate(path, 1 << 40), "longer than"),
}


@pytest.mark.parametrize("what", IN_ITS_PLACE)
def test_what_stands_in_the_place_of_the_tokens_hangs_nothing_and_takes_none_back(start, tokens, http, what):
    put, says = IN_ITS_PLACE[what]
    path = tokens(line("t", "read", "*"))
    server = start(MODEL_TOKENS_FILE=str(path))
    path.unlink()
    put(path)
    for _ in range(20):
        assert http.get(f"{server.url}/models/list", headers=bearer("t"), timeout=5).status_code == 200
        assert http.get(f"{server.url}/models/list", headers=bearer("new"), timeout=5).status_code == 401
    path.with_name("new").write_text(line("new", "read", "*"))
    if path.is_dir():
        path.rmdir()
    path.with_name("new").replace(path)
    assert http.get(f"{server.url}/models/list", headers=bearer("new"), timeout=5).status_code == 200
    server.wait_for_log("the tokens have changed")
    complaints = [it for it in server.lines if "the tokens stay as they were" in it]
    assert len(complaints) == 1 and says in complaints[0]


def test_a_fifo_that_somebody_writes_to_is_complained_of_once(start, tokens, http):
    path = tokens(line("t", "read", "*"))
    server = start(MODEL_TOKENS_FILE=str(path))
    path.unlink()
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    for _ in range(20):     # each of which changes the fifo
        os.write(descriptor, line("new", "read", "*").encode())
        assert http.get(f"{server.url}/models/list", headers=bearer("t"), timeout=5).status_code == 200
    os.close(descriptor)
    assert server.stop() == 0
    assert server.log().count("the tokens stay as they were") == 1


# ---- the audit


def audits(server, last):
    """The audit's entries, once the request `last` is over."""
    server.wait_for_log(f" {last} 127.0.0.1\n")
    return [json.loads(entry.split(" ", 3)[3]) for entry in server.lines if entry.split(" ")[2] == "audit"]


def test_every_change_and_every_refused_one_has_its_line(start, tokens, http):
    server = start(MODEL_TOKENS_FILE=str(tokens(line("ann", ALL, "*"), line("ci", "create", "p"))))
    expected, url = [], server.url

    def change(method, path, who, status, verb, *models, **options):
        got = http.request(method, f"{url}/models/{path}", headers=bearer(who) if who else {}, **options)
        assert got.status_code == status
        known = who if who in ("ann", "ci") else "anonymous"
        expected.extend({"who": known, "verb": verb, "model": model, "sha256": digest, "status": status,
                         "request": got.headers["X-Request-Id"]} for model, digest in models)
        return got

    x, y = sha256(b"x"), sha256(b"y")
    change("PUT", "p/a/1/m", "ci", 201, "create", ("p/a/1/m", x), data=b"x")
    change("PUT", "p/a/1/m", "ci", 403, "update", ("p/a/1/m", None), data=b"y")
    change("PUT", "p/a/1/m", "ann", 200, "update", ("p/a/1/m", y), data=b"y")
    change("PUT", "q/a/1/m", "ci", 403, "create", ("q/a/1/m", None), data=b"y")
    change("PUT", "q/a/1/m", None, 401, "create", ("q/a/1/m", None), data=b"y")
    change("POST", "upload", "forged", 401, "create", (None, None), files={"file": b"y"})
    change("POST", "upload?project_id=q", "ci", 403, "create", ("q", None), files={"file": b"y"})
    change("PATCH", "p/a/1/m/info", "ann", 200, "update", ("p/a/1/m", y), json={"description": "d"})
    change("PATCH", "p/a/1/m/info", "ci", 403, "update", ("p/a/1/m", None), json={"description": "e"})
    change("DELETE", "p/a/1/m", None, 401, "delete", ("p/a/1/m", None))
    change("DELETE", "p/a/1/none", "ann", 404, "delete")
    change("PUT", "p/a/1/-m", "ann", 400, "create", data=b"y")
    change("GET", "p/a/1/m", "ci", 404, "read")
    change("GET", "p/a/1/m", None, 401, "read")
    change("DELETE", "p/a/1/m", "ann", 200, "delete", ("p/a/1/m", y))
    change("PUT", "p/b/1/m", "ci", 201, "create", ("p/b/1/m", x), data=b"x")
    change("PUT", "p/b/2/m", "ci", 201, "create", ("p/b/2/m", y), data=b"y")
    change("DELETE", "p/b", "ann", 409, "delete")
    change("DELETE", "p/b?recursive=true", "ci", 403, "delete", ("p/b", None))
    last = change("DELETE", "p/b?recursive=true", "ann", 200, "delete", ("p/b/1/m", x), ("p/b/2/m", y))
    assert audits(server, last.headers["X-Request-Id"]) == expected
    assert server.stop() == 0
    assert "token-of-" not in server.log() and "Authorization" not in server.log() and "Traceback" not in server.log()


def test_the_audit_is_there_without_tokens_too(start, http):
    server = start()
    http.put(f"{server.url}/models/p/a/1/m", data=b"x")
    last = http.delete(f"{server.url}/models/p/a/1/m").headers["X-Request-Id"]
    assert [(entry["who"], entry["verb"], entry["status"]) for entry in audits(server, last)] == [
        ("anonymous", "create", 201), ("anonymous", "delete", 200)]
