"""Names that try to lead out of the storage, in every place and coding. The server runs where it can do no harm."""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from support.common import ROOT
from support.live import LiveServer
from support.sandbox import is_inside
from support.witness import Version, assert_knows, listed, perform, put, send

DOTS = [".", "%2e", "%2E", "%252e", "%c0%ae", "%c0%2e", "%e0%80%ae", "%f0%80%80%ae", "%u002e", "%ef%bc%8e", ".%00"]
SLASHES = ["/", "%2f", "%2F", "%252f", "%c0%af", "%e0%80%af", "%f0%80%80%af", "%u002f", "%ef%bc%8f", "//", "/./",
           "\\", "%5c", "%5C", "%255c", "%c1%9c", "%e0%81%9c", "%u005c", "%ef%bc%bc"]
ODD = ["%00", "a%00", "%00a", "a%00.txt", "%0a", "a%0a", "a%0d%0a", "%09", ".%09.", "a%20b", "%7f", "%80", "%ff%fe",
       "%ed%a0%80", "..;", "~root", "-rf", "*", "a:b", "a%7cb", "%24HOME", "a" * 129, ".staging", ".hidden", "...",
       "%e2%80%ae", "caf%c3%a9", "%25", "a%2", "a%zz", "%"]
NAMES = list(dict.fromkeys([
    *(first + second for first, second in itertools.product(DOTS, DOTS)), *DOTS,
    *(f"a{slash}b" for slash in SLASHES), *SLASHES,
    *(f"{dot}{dot}{slash}{rest}" for dot, slash in itertools.product(DOTS, SLASHES)
      for rest in ("secret", f"{dot}{dot}{slash}secret")),
    *ODD,
]))
FIELDS = ("project_id", "app_name", "version", "model_name")
KEPT, OLD = "kept/app/1/m", Version(b"kept", "kept")


def tree(path):
    """Everything below a directory but the server's own, with what tells whether it was touched."""
    found = {}
    for directory, _, names in os.walk(path):
        for name in (".", *names):
            entry = Path(directory, name)
            if ".staging" not in entry.parts and entry.name != "models":
                status = entry.lstat()
                found[str(entry)] = (status.st_ino, status.st_size, name == "." or status.st_mtime_ns)
    return found


def outside(jail):
    return {path: state for path, state in tree(jail.around).items() if not path.startswith(f"{jail.storage}/")}


@pytest.fixture(scope="module")
def jail(tmp_path_factory):
    """A server that can write to one directory alone: storage in the middle of things that it must not touch."""
    directory = tmp_path_factory.mktemp("jail").resolve()
    for name in ("secret", "models-secret", "models.txt", "model", "metadata.json", "outside/app/1/m/model",
                 "outside/app/1/m/metadata.json", "outside/model"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps({"description": "a secret"}))
    wrapper = ("unshare", "-m", sys.executable, str(ROOT / "tests/support/sandbox.py"), str(directory))
    server = LiveServer(directory / "models", *wrapper)
    assert is_inside(server.process.pid, directory), "not in the sandbox: nothing is sent"
    server.around = directory
    assert perform(server, put(KEPT, OLD)).status == 201
    yield server
    server.stop(signal.SIGKILL)
    shutil.rmtree(directory)


def requests_with(field, name):
    """The requests that carry this name, as it is and decoded, in the place of one of the four: (line, body, type)."""
    names = {**dict(zip(FIELDS, KEPT.split("/"), strict=True)), field: name}
    path = "/models/" + "/".join(names.values())
    yield f"PUT {path}", b"x", None
    yield f"DELETE {path}", b"", None
    yield f"PATCH {path}/info", b"{}", None
    query = "&".join(f"{key}={value}" for key, value in names.items())
    yield f"POST /models/upload?{query}", form({}), "multipart/form-data; boundary=cut"
    for value in {name.encode(), unquote_to_bytes(name)}:
        fields = {key: value if key == field else text.encode() for key, text in names.items()}
        yield "POST /models/upload", form(fields), "multipart/form-data; boundary=cut"


def form(fields):
    parts = [(key, value, "") for key, value in fields.items()] + [("file", b"x", '; filename="../../secret"')]
    return b"".join(b'--cut\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (
        key.encode(), more.encode(), value) for key, value, more in parts) + b"--cut--\r\n"


@pytest.mark.parametrize("field", FIELDS)
def test_no_coding_of_a_bad_name_is_taken_anywhere(jail, some, say, field):
    names, wrong, sent = some(NAMES, 110, always=lambda name: name in ODD), [], 0
    before = tree(jail.around)
    for name in names:
        for line, body, kind in requests_with(field, name):
            with jail.connect() as wire:
                wire.send(f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n",
                          f"Content-Type: {kind}\r\n" if kind else "", b"\r\n", body)
                status, headers, answer = wire.response()
            sent += 1
            if not 400 <= status < 500 or headers["content-type"] != "application/json" or b"detail" not in answer:
                wrong.append((line, body, status, answer))
    assert not wrong, f"{len(wrong)} of {sent}: {wrong[:5]}"
    assert tree(jail.around) == before
    assert_knows(jail, KEPT, OLD)
    assert listed(jail) == {KEPT}
    say(f"{sent} requests with a bad {field}: all refused, nothing touched")


@pytest.mark.parametrize("field", FIELDS)
def test_no_coding_of_a_bad_name_is_read_anywhere(jail, some, field):
    names = dict(zip(FIELDS, KEPT.split("/"), strict=True))
    for name in some(NAMES, 110, always=lambda name: name in ODD):
        path = "/models/" + "/".join({**names, field: name}.values())
        for target in (path, path + "/info", path + ".sha256"):
            with jail.connect() as wire:
                wire.send(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
                status, _, answer = wire.response()
            assert 400 <= status < 500 and b"a secret" not in answer, (target, status, answer)


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH"])
@pytest.mark.parametrize("path", [
    "/models/../secret", "/models/kept/../../secret", "/models/kept/app/1/../../../../secret", "//etc/passwd",
    "/../secret",
    "/models//kept/app/1/m", "/models/kept//1/m", "/models/kept/app/1/m/..", "/models/kept/app/1/.",
    "/models/kept/app/..", "/models/kept/app/1/m/model", "/models/.staging/locks/00/x", "/models/.staging",
    "/models/./.", "http://x/models/../x", "/models/kept/app/1/m/../m", "/models/kept/app/1/m/info/..",
    "/models/..%2f..%2fsecret/a/1/m", "*", "/models/kept/app/1/m%00",
])
def test_no_odd_path_deletes_or_shows_anything(jail, method, path):
    before = tree(jail.around)
    with jail.connect() as wire:
        wire.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}")
        status, _, answer = wire.response()
    assert 400 <= status < 500 and b"a secret" not in answer
    assert tree(jail.around) == before
    assert_knows(jail, KEPT, OLD)


LINKS = [   # where a link is planted, relative to the storage; what it points to, relative to the sandbox
    ("linked", "outside"),
    ("p1/app", "outside/app"),
    ("p2/app/1", "outside/app/1"),
    ("p3/app/1/m", "outside/app/1/m"),
    ("p4/app/1/m/model", "outside/app/1/m/model"),
    ("p5/app/1/m/metadata.json", "outside/app/1/m/metadata.json"),
    ("p6/app/1/m", "models/p6/app/1/m"),       # in a circle
    ("p7/app/1/m/model", "nowhere"),
]


@pytest.mark.parametrize(("link", "target"), LINKS)
def test_a_planted_link_is_not_followed_out(jail, link, target):
    place = jail.storage / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(jail.around / target)
    if link.endswith("metadata.json"):
        place.with_name("model").write_bytes(b"by hand")
    before = outside(jail)
    project = link.split("/")[0]
    model = f"/models/{project}/app/1/m"
    try:
        for read in (model, f"{model}/info", f"{model}.sha256", f"/models/{project}", f"/models/{project}/app/1",
                     "/models/list", f"/models/{project}/app/latest/m"):
            answer = send(jail, "GET", read)
            assert answer.status in (200, 404) and b"a secret" not in answer.body, (read, answer)
            assert not (link.endswith("model") and answer.status == 200 and b"total" not in answer.body), answer
        for change in (("PATCH", f"{model}/info", b'{"description": "mine"}'), ("PUT", model, b"mine"),
                       ("DELETE", model, None), ("DELETE", f"/models/{project}/app/1?recursive=true", None),
                       ("DELETE", f"/models/{project}?recursive=true", None)):
            answer = send(jail, *change)
            assert answer.status < 500, (change, answer)
            assert outside(jail) == before, f"{change} changed what is outside: {answer}"
        assert_knows(jail, KEPT, OLD)
    finally:
        rest = jail.storage / project
        rest.unlink() if rest.is_symlink() else shutil.rmtree(rest, ignore_errors=True)
