"""What the documentation promises operators: backup, restore, moving, the lines of the log, compose's settings."""

import json
import os
import random
import re
import shutil
import subprocess
import threading

import pytest
import requests
import yaml
from support.common import ROOT, sha256
from support.live import running
from support.process import NOT_ALMIGHTY
from support.tars import tar_with

SIZE = 300_000      # the same for all: a copy that mixes two versions has no other mark than its digest


def backup(source, target, **environ):
    return subprocess.run(["sh", ROOT / "deploy/backup.sh", source, target], capture_output=True, text=True,
                          timeout=120, env={**os.environ, **environ})


def holding(root):
    """The digest of each model of a server on this directory, its bytes compared to what its metadata says."""
    with running(root) as server:
        entries = requests.get(f"{server.url}/models/list").json()["models"]
        for entry in entries:
            data = requests.get(server.url + entry["url"].removeprefix(server.url)).content
            assert sha256(data) == entry["sha256"] and len(data) == entry["size"], entry["path"]
        return {entry["path"]: entry["sha256"] for entry in entries}


@pytest.mark.needs("rsync")
def test_a_backup_while_models_are_replaced_holds_each_model_whole(start, tmp_path):
    server, stop, written = start(), threading.Event(), set()
    still = {f"p/app/{number}/still/model": random.randbytes(SIZE) for number in range(20)}
    for path, data in still.items():
        assert requests.put(f"{server.url}/models/{path.removesuffix('/model')}", data=data).status_code == 201

    def replace():
        chance = random.Random(7)
        with requests.Session() as http:
            while not stop.is_set():
                data = chance.randbytes(SIZE)
                written.add(sha256(data))
                name = f"moving{chance.randrange(3)}"
                assert http.put(f"{server.url}/models/p/app/1/{name}", data=data).status_code in (200, 201)
                assert http.put(f"{server.url}/models/p/app/2/{name}", data=data).status_code in (200, 201)
                assert http.delete(f"{server.url}/models/p/app/2/{name}").status_code == 200
                stop.wait(0.02)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        copies = [tmp_path / f"backup{number}" for number in range(4)]
        for copy in copies:
            done = backup(server.storage, copy)
            assert done.returncode == 0, done.stderr
    finally:
        stop.set()
        writer.join()
    assert server.stop() == 0
    for copy in copies:
        found = holding(copy)
        assert {path: found.pop(path) for path in still} == {path: sha256(data) for path, data in still.items()}
        assert set(found.values()) <= written


# rsync as it comes, but for the first pass, between whose halves there is an upload
UNLUCKY = """#!/bin/sh
if [ -e {place}/done ]; then exec {rsync} "$@"; fi
touch {place}/done
{rsync} --exclude={second} "$@" && curl -q -sSf --noproxy '*' -o /dev/null -T - {url} <{place}/new &&
    exec {rsync} --exclude={first} "$@"
"""
VERSIONS = [tar_with({"a": data, "b": data}) for data in (b"old", b"new")]


@pytest.mark.needs("rsync")
@pytest.mark.parametrize(("path", "old", "new", "first", "second", "names"), [
    ("p/app/1/m", b"old", b"new", "metadata.json", "model", ["m"]),
    ("p/app/1", *VERSIONS, "a", "b", ["a", "b"]),
], ids=["a model", "a version"])
def test_what_is_replaced_between_two_of_its_files_is_copied_once_more(
        start, tmp_path, path, old, new, first, second, names):
    server, copy = start(), tmp_path / "backup"
    url = f"{server.url}/models/{path}"
    requests.put(url, data=old).raise_for_status()
    (tmp_path / "new").write_bytes(new)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/rsync").write_text(UNLUCKY.format(
        place=tmp_path, rsync=shutil.which("rsync"), url=url, first=first, second=second))
    (tmp_path / "bin/rsync").chmod(0o755)
    done = backup(server.storage, copy, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert done.returncode == 0
    assert done.stderr == f"{path} was replaced while it was copied: copying it again\n"
    assert holding(copy) == {f"p/app/1/{name}/model": sha256(b"new") for name in names}


@pytest.mark.needs("rsync")
def test_a_backup_is_brought_back_and_only_what_changed_is_copied_again(start, tmp_path):
    server, copy = start(), tmp_path / "backup"
    for number in range(3):
        requests.put(f"{server.url}/models/p/app/{number}/m", data=b"%d" % number).raise_for_status()
    assert backup(server.storage, copy).returncode == 0
    before = {path: path.stat().st_ino for path in copy.rglob("model")}
    requests.put(f"{server.url}/models/p/app/1/m", data=b"9").raise_for_status()
    requests.delete(f"{server.url}/models/p/app/2/m").raise_for_status()
    requests.put(f"{server.url}/models/p/app/1/onnx/m", data=b"in a folder").raise_for_status()
    requests.put(f"{server.url}/models/p/app/@production?version=1").raise_for_status()
    assert backup(server.storage, copy).returncode == 0
    after = {path: path.stat().st_ino for path in copy.rglob("model")}
    assert [path.parent.parent.name for path in after if after[path] == before.get(path)] == ["0"]
    assert not (copy / ".staging").exists()

    assert server.stop() == 0
    shutil.rmtree(server.storage)
    assert backup(copy, server.storage).returncode == 0
    assert holding(server.storage) == {"p/app/0/m/model": sha256(b"0"), "p/app/1/m/model": sha256(b"9"),
                                       "p/app/1/onnx/m/model": sha256(b"in a folder")}
    server = start()
    assert requests.get(f"{server.url}/models/p/app/@production/onnx/m").content == b"in a folder"


@pytest.mark.needs("rsync")
def test_a_backup_of_a_disk_that_is_not_mounted_deletes_no_copy(tmp_path):
    for name in ("p/a/1/m", "lost+found", ".staging"):
        (tmp_path / "source" / name).mkdir(parents=True)
    assert backup(tmp_path / "source", tmp_path / "copy").returncode == 0
    shutil.rmtree(tmp_path / "source/p")
    done = backup(tmp_path / "source", tmp_path / "copy")
    assert done.returncode == 1 and "is the disk of" in done.stderr
    assert (tmp_path / "copy/p/a/1/m").is_dir()
    for source, target in (("copy", "."), ("copy", "copy/p"), ("copy", "copy")):
        assert backup(tmp_path / source, tmp_path / target).returncode == 1
        assert (tmp_path / "copy/p/a/1/m").is_dir() and not (tmp_path / "copy/p/p").exists()
    assert f"{tmp_path}/nowhere is not a directory" in backup(tmp_path / "nowhere", tmp_path / "another").stderr
    assert not (tmp_path / "another").exists()
    assert backup(tmp_path / "source", tmp_path / "another").returncode == 0


@pytest.mark.needs("rsync")
def test_the_owner_of_the_models_copies_a_disk_whose_lost_and_found_belongs_to_root(tmp_path):
    (tmp_path / "source/p").mkdir(parents=True)
    (tmp_path / "source/lost+found").mkdir(mode=0)
    done = subprocess.run([*NOT_ALMIGHTY, "sh", ROOT / "deploy/backup.sh", tmp_path / "source", tmp_path / "copy"],
                          capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["p"]


@pytest.mark.needs("rsync")
def test_a_backup_copies_no_link_that_leads_out_and_nothing_that_is_no_file(tmp_path):
    source, copy = tmp_path / "-models", tmp_path / "a:copy"   # names that rsync would take for something else
    for place in ("p/app/1/m", "p/app/1/a b", "p/app/1/*", "p/app/1/-rf"):
        (source / place).mkdir(parents=True)
        (source / place / "model").write_bytes(b"data")
        (source / place / "metadata.json").write_text(json.dumps({"sha256": sha256(b"data"), "size": 4}))
    (tmp_path / "secret").write_text("secret")
    (source / "p/out").symlink_to(tmp_path)
    (source / "p/up").symlink_to("../../secret")
    (source / "p/app/@production").symlink_to("1")
    (source / "p/app/1/linked").mkdir()
    (source / "p/app/1/linked/model").symlink_to(tmp_path / "secret")
    os.mkfifo(source / "p/app/1/m/fifo")
    done = subprocess.run(["sh", ROOT / "deploy/backup.sh", source.name, copy.name], cwd=tmp_path, timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if not path.is_dir() or path.is_symlink())
    assert found == sorted(["p/app/@production", *(f"p/app/1/{name}/{file}" for name in ("m", "a b", "*", "-rf")
                                                   for file in ("model", "metadata.json"))])


@pytest.mark.needs("rsync")
def test_a_torn_copy_is_found_in_compact_metadata_too(tmp_path):
    place = tmp_path / "from/p/app/1/m"
    place.mkdir(parents=True)
    (place / "model").write_bytes(b"new")
    document = {"filename": '"sha256": "', "sha256": sha256(b"old"), "metadata": {"sha256": sha256(b"new")}}
    for indent in (2, None):
        (place / "metadata.json").write_text(json.dumps(document, indent=indent))
        done = backup(tmp_path / "from", tmp_path / f"to{indent}")
        assert done.stderr == "p/app/1/m was replaced while it was copied: copying it again\n"


@pytest.mark.needs("rsync")
def test_a_storage_is_moved_with_one_copy_while_it_is_used_and_one_after(start, tmp_path):
    server, new = start(), tmp_path / "new"
    models = {f"p/app/{number}/m/model": random.randbytes(1000) for number in range(3)}
    for number, (path, data) in enumerate(models.items()):
        if number == 2:     # which arrives between the two
            assert backup(server.storage, new).returncode == 0
        requests.put(f"{server.url}/models/{path.removesuffix('/model')}", data=data).raise_for_status()
    assert server.stop() == 0
    assert backup(server.storage, new).returncode == 0
    assert holding(new) == {path: sha256(data) for path, data in models.items()}


# ---- what the documentation says about the log and .env


def messages():
    """What the server and its entrypoint can write into the log beside the access log, in the words that never vary."""
    pattern = r'''(?:\blog\.(?:info|warning|error)\(|SystemExit\(f|\bsay )"([^"]*)"'''
    packages = [path for package in ("repository", "server", "folders", "inspection")
                for path in ROOT.glob(f"{package}/**/*.py")]
    for path in [*ROOT.glob("*.py"), *packages, ROOT / "docker-entrypoint.sh"]:
        for text in re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE):
            pieces = re.split(r"%\w|{[^}]*}|\$\w+|: ", text)
            yield [piece.strip() for piece in pieces if len(piece) > 3]


def test_every_line_of_the_log_is_explained():
    page = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| ", page.partition("## The log")[2], re.MULTILINE)
    found = list(messages())
    assert len(found) > 10
    for pieces in found:    # what follows a colon is a detail
        assert not pieces or any(pieces[0] in row for row in rows), pieces


def test_compose_passes_every_setting_on():
    """But for the three that are the container's own: where its models are, and its address inside."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    settings = set(re.findall(r"^\| `([A-Z_]+)` \|", readme.partition("## Settings")[2], re.MULTILINE))
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    passed = compose["services"]["ai-model-repository"]["environment"]
    assert passed.keys() == settings - {"MODEL_STORAGE_PATH", "SERVER_HOST", "SERVER_PORT"}
    assert passed.pop("MODEL_TOKENS_FILE").startswith("${TOKENS_FILE:+")    # a secret, which has its own place
    assert all(value.startswith(f"${{{name}:-") for name, value in passed.items())


def test_every_variable_of_compose_is_explained():
    compose = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text())) - {"NAME"}
    pages = "".join((ROOT / page).read_text() for page in ("README.md", "docs/deploying.md"))
    rows = "".join(line.split("|")[1] for line in pages.splitlines() if line.startswith("| `"))
    assert compose <= set(re.findall(r"`(\w+)`", rows))
