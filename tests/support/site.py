"""A server to upload to, under our own server and under WebTest: the same requests both ways."""

import http.client
import json
import os
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.common import app_of, staged
from support.live import running
from urllib3 import encode_multipart_formdata

from storage import Storage

Answer = namedtuple("Answer", "status headers json")
DATA = b"\x80model\r\n--\r\n\0" * 1000


class Site:
    """A server to send to, `root` its storage: send(method, target, body, **headers with _ for ->)."""

    def __init__(self, app_or_server, root):
        self.server, self.root = app_or_server, Path(root)

    def put(self, target, data=DATA, **headers):
        return self.send("PUT", target, data, **headers)

    def post(self, fields, query="", **headers):
        """`fields`: (name, value) or (name, (filename, content)), in this order."""
        body, kind = encode_multipart_formdata(fields)
        return self.send("POST", "/models/upload" + query, body, Content_Type=kind, **headers)

    def files(self):
        """Every path around and below the storage but the server's own, with what tells whether it was touched."""
        paths = list[Path]()
        for place, folders, files in os.walk(self.root.parent):
            folders[:] = {*folders} - {".staging"}      # in which drafts come and go meanwhile
            paths += [Path(place, name) for name in (*folders, *files)]
        return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in paths if p.is_file() or p.parent == self.root}


class Live(Site):
    def send(self, method, target, body=b"", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.request(method, target, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, response.headers, json.loads(response.read() or "null"))
        finally:
            connection.close()


class UnderWebTest(Site):
    def send(self, method, target, body=b"", **headers):
        headers = {k.replace("_", "-"): v for k, v in headers.items()}
        response = self.server.request(target, method=method, body=body, headers=headers, expect_errors=True)
        return Answer(response.status_int, response.headers, json.loads(response.body or "null"))


@contextmanager
def site_of(way, directory, overwrite=True):
    """A site on a storage in this directory, under the server itself or under WebTest."""
    if way == "live":
        with running(directory / "models", MODEL_OVERWRITE="allow" if overwrite else "deny") as server:
            yield Live(server, server.storage)
    else:
        with Storage(directory / "models") as store:
            yield UnderWebTest(app_of(store, overwrite=overwrite), store.root)


@pytest.fixture(params=["live", "webtest"], scope="module")
def site(request, tmp_path_factory):
    with site_of(request.param, tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(params=["live", "webtest"])
def denying(request, tmp_path):
    with site_of(request.param, tmp_path, overwrite=False) as site:
        yield site


@pytest.fixture
def names(project):
    return {"project_id": project, "app_name": "app", "version": "1.0", "model_name": "m.pt"}


@pytest.fixture
def target(names):
    return "/models/" + "/".join(names.values())


FILE = ("file", ("orig.pt", DATA))


def stores_nothing(site, send, status):
    """The answer to `send()`, which must have this status, say why, and leave the storage as it is."""
    before = site.files()
    answer = send()
    assert answer.status == status and answer.json["detail"]
    assert site.files() == before and staged(site.root) == []
    return answer
