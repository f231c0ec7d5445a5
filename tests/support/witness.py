"""A client's view of a server: versions of models, operations on them, and what is stored afterwards."""

import errno
import http.client
import json
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from support.common import sha256

STILL_READ = re.compile(r"somebody still reads \S*\.staging/(\S+), which")
FORM = "multipart/form-data; boundary=cut"


class Answer(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Version(NamedTuple):
    """A model as a client sees it."""

    data: bytes
    description: str
    stage: str = "test"

    def __repr__(self):
        return f"<{len(self.data)} bytes {sha256(self.data)[:8]} {self.description!r}>"


def send(server, method, target, body=None, timeout=30, **headers):
    """The answer to a request; raises OSError or HTTPException if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        connection.request(method, target, body, {k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def attempt(server, *request, **headers):
    """The answer to a request, or None if the server died before it."""
    try:
        return send(server, *request, **headers)
    except (OSError, http.client.HTTPException):
        return None


def put(key, version):
    """The request that uploads `version` to `key`, the four names of a model with slashes between, as a raw body."""
    return "PUT", f"/models/{key}?description={version.description}&stage={version.stage}", version.data


def post(key, version):
    """The same upload as a form."""
    fields = zip(("project_id", "app_name", "version", "model_name"), key.split("/", 3), strict=True)
    parts = [*fields, ("description", version.description), ("stage", version.stage), ('file"; filename="m', None)]
    body = b"".join(b'--cut\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (
        name.encode(), version.data if value is None else value.encode()) for name, value in parts)
    return "POST", "/models/upload", body + b"--cut--\r\n"


def perform(server, request, **headers):
    """The answer to a request made by put(), post(), delete() or patch(); None if there is none."""
    method, target, body = request
    return attempt(server, method, target, body, **({"Content_Type": FORM} if method == "POST" else {}), **headers)


def delete(key):
    return "DELETE", f"/models/{key}", None


def patch(key, version):
    return "PATCH", f"/models/{key}/info", json.dumps(
        {"description": version.description, "metadata": {"stage": version.stage}}).encode()


def see(server, key):
    """The version at `key`, whose bytes and info have to agree; None if there is none."""
    model, info = send(server, "GET", f"/models/{key}"), send(server, "GET", f"/models/{key}/info")
    assert model.status == info.status and model.status in (200, 404), (key, model.status, info.status, model, info)
    if model.status == 404:
        return None
    known, digest = info.json, sha256(model.body)
    headers = model.headers.get("etag"), model.headers.get("x-checksum-sha256")
    assert headers == (f'"{digest}"', digest), f"{key} is torn: its bytes are not what its headers say"
    assert (known["sha256"], known["size"]) == (digest, len(model.body)), f"{key} is torn: bytes and info differ"
    assert known["uploaded_at"], f"{key} has lost its metadata"
    return Version(model.body, known["description"], known["metadata"].get("stage"))


def listed(server):
    answer = send(server, "GET", "/models/list")
    assert answer.status == 200, answer
    return {"/".join((m["project_id"], m["app_name"], m["version"], m["model_name"])) for m in answer.json["models"]}


def fill(path):
    """Fills the disk to its last byte."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC


def half_models(root):
    """Directories in versions that are neither a model with its metadata alone, nor a folder without files."""
    found = []
    for path, directories, names in os.walk(root):
        inside = Path(path).relative_to(root).parts
        whole = (sorted(names) == ["metadata.json", "model"] and not directories) or not names
        if len(inside) >= 4 and inside[0] != ".staging" and not whole:
            found.append((path, names))
    return found


def leftovers(root):
    """What was left in .staging. Empty directories below `replaced` do not count: they are kept while a server runs."""
    found = []
    for path, directories, names in os.walk(Path(root) / ".staging"):   # entries may vanish meanwhile
        inside = Path(path).relative_to(root).parts[1:]
        if inside[:1] != ("locks",):
            found += ["/".join((*inside, name)) for name in (*directories, *names)
                      if inside and (inside[0] != "replaced" or len(inside) >= 4)]
    return found


def assert_whole(*servers):
    """No incomplete model in the tree, and no draft once the servers have noticed that their clients are gone.

    But for what they say that somebody still read when it was removed: on NFS, its directory stays until they stop.
    """
    def left():
        read = [name for server in servers for name in STILL_READ.findall(server.log())]
        return [path for path in leftovers(servers[0].storage) if "/".join(path.split("/")[:2]) not in read]

    assert half_models(servers[0].storage) == []
    until = time.monotonic() + 30     # a busy GlusterFS takes seconds to remove a draft
    while left() and time.monotonic() < until:
        time.sleep(0.05)
    assert left() == []


def assert_knows(server, key, *versions):
    """One of these versions is stored at `key`, and listed; None stands for no model. Returns that version."""
    seen = see(server, key)
    assert seen in versions, f"{key} is {seen}, not one of {versions}"
    assert (key in listed(server)) == (seen is not None)
    return seen
