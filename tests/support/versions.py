"""Generations of a version, each of which a client can tell from the others by any of its files."""

import hashlib
import io
import json
import tarfile

from support.tars import tar_with
from support.witness import attempt, send

FILES = 12


def generation(number, size=3000):
    """{name: bytes} of a version: some files of the same names as in all, and one that only every other has."""
    names = [f"f{n}" for n in range(FILES - 5)] + ["onnx/model.onnx", "a/b/c/deep", "a/b/shallow", f"only/{number % 2}"]
    return {name: f"{number} {name} ".encode() * (size // 10 + n) for n, name in enumerate(names)}


def put_version(server, version, number, timeout=60, **headers):
    return attempt(server, "PUT", f"/models/{version}", tar_with(generation(number)), timeout, **headers)


def number_of(files):
    """The generation that these {name: bytes} are, all of them; None for no files. Fails for a mixture."""
    if not files:
        return None
    number = int(next(iter(files.values())).split()[0])
    assert files == generation(number), f"a mixture: {({name: data[:20] for name, data in files.items()})}"
    return number


def listed(server, version):
    """The generation in a list, by digests alone."""
    models = send(server, "GET", f"/models/{version}").json["models"]
    found = {model["model_name"]: model["sha256"] for model in models}
    assert len(found) == len(models)
    return lambda known: next((number for number in known if digests(number) == found), found)


def digests(number):
    return {name: hashlib.sha256(data).hexdigest() for name, data in generation(number).items()}


def in_tar(server, version):
    """The generation in a tar; raises HTTPException or OSError where the connection breaks."""
    answer = send(server, "GET", f"/models/{version}?format=tar")
    if answer.status == 404:
        return None
    assert answer.status == 200, answer
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        return number_of({member.name: tar.extractfile(member).read() for member in tar})


def stored(server, version):
    """The generation that is there, file by file, and that is listed."""
    models = json.loads(send(server, "GET", f"/models/{version}").body)["models"]
    files = {model["model_name"]: send(server, "GET", f"/models/{version}/{model['model_name']}") for model in models}
    assert all(answer.status == 200 for answer in files.values()), files
    return number_of({name: answer.body for name, answer in files.items()})
