"""Clients of the Hugging Face Hub read models from here, unmodified: whatever they call, as a user would.

tests/clients/hub/install.sh installs them. What has to be in the answers for them is also in tests/hub, without them.
"""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
import requests
from support import transcripts
from support.common import ROOT, eventually, sha256
from support.credentials import line
from support.live import running
from support.proxy import TRUSTED, proxy

pytestmark = pytest.mark.needs("huggingface_hub")
HUB, SCRIPTS = Path(sys.prefix) / "hub", ROOT / "tests/clients/hub"
PYTHON = HUB / "bin/python"
OLD = {"PYTHONPATH": str(HUB / "0.36")}
VERSIONS = {"newest": {}, "0.36": OLD}
REPO = "acme/tiny"
PATIENCE = 300      # seconds for a command; most need one or two, but the faults are tried beside these tests


class Person:
    """Somebody with a directory and a cache of their own, whose clients are told one endpoint."""

    def __init__(self, directory, endpoint, **settings):
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.environ = {**{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
                        "HF_ENDPOINT": endpoint, "HF_HOME": str(directory / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
                        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PATH": f"{HUB / 'bin'}:{os.environ['PATH']}",
                        "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1", **settings}

    def begin(self, *command, **more):
        return subprocess.Popen([*map(str, command)], cwd=self.directory, env=self.environ, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)

    def run(self, *command, fails=False):
        """What the command prints; what it complains of, where it is to fail."""
        process = self.begin(*command)
        output, complaint = process.communicate(timeout=PATIENCE)
        assert (process.returncode != 0) == fails, complaint
        return complaint if fails else output

    def python(self, text, *arguments, **more):
        return self.run(PYTHON, "-c", text, *arguments, **more)

    def told(self, *command):
        """The last line that the command prints, as JSON."""
        return json.loads(self.run(*command).strip().splitlines()[-1])


@pytest.fixture
def person(tmp_path):
    """person(endpoint, **settings): somebody who has asked for nothing yet."""
    return lambda endpoint, **settings: Person(tmp_path / "person", endpoint, **settings)


def put(url, repository, files):
    """Uploads {path: bytes} as the version 1.0.0."""
    with requests.Session() as http:
        for path, data in files.items():
            http.put(f"{url}/models/{repository}/1.0.0/{path}", data=data).raise_for_status()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(a directory with a small model in it, what it says of a sentence)."""
    place = tmp_path_factory.mktemp("made")
    maker = Person(place, "http://127.0.0.1:1", HF_HUB_OFFLINE="1")
    return place / "tiny", maker.told(PYTHON, SCRIPTS / "make_models.py", "tiny")


def files_of(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*"))
            if path.is_file() and ".cache" not in path.parts}


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny):
    """A server with the model in it."""
    with running(tmp_path_factory.mktemp("hub") / "models") as server:
        put(server.url, REPO, files_of(tiny[0]))
        put(server.url, REPO, {"onnx/int8/model.onnx": b"int8"})
        yield server


@pytest.fixture(scope="module")
def files(hub, tiny):
    return {**files_of(tiny[0]), "onnx/int8/model.onnx": b"int8"}


# ---- huggingface_hub, everything that it has a function for


@pytest.fixture(scope="module", params=VERSIONS)
def told(request, hub, tmp_path_factory):
    """(the answers that one version of it has got, the directory of its snapshot)."""
    place = tmp_path_factory.mktemp("told")
    return Person(place, hub.url, **VERSIONS[request.param]).told(PYTHON, SCRIPTS / "ask.py", "snapshot"), place


def test_files_come_alone_in_parts_and_as_a_snapshot(told, files):
    answers, place = told
    assert answers["downloaded"] == len(files["onnx/model.onnx"])
    assert answers["some"] == files["onnx/model.onnx"][9:16].decode()
    wanted = {path for path in files if path.endswith(".json") or path.startswith("onnx/")}
    assert files_of(place / "snapshot") == {path: files[path] for path in wanted}


def test_what_is_there_is_listed(told, files):
    answers, _ = told
    folders = {"onnx", "onnx/int8", "encoder", "1_Pooling"}
    assert sorted(answers["files"]) == sorted(files) and sorted(answers["all"]) == sorted([*files, *folders])
    assert answers["tree"] == ["onnx/int8/model.onnx"] and sorted(answers["paths"]) == ["config.json", "onnx"]
    assert answers["blobs"] == {path: sha256(data) for path, data in files.items()}
    assert answers["ls"] == ["acme/tiny@1.0.0/onnx/int8", "acme/tiny@1.0.0/onnx/model.onnx"]
    assert answers["glob"] == [f"acme/tiny/{path}" for path in sorted(files) if path.endswith("config.json")
                               and not path.endswith("tokenizer_config.json")]
    assert answers["models"] == [[REPO], [REPO], [REPO], [], [REPO]]
    assert answers["parameters"]["F32"] > 10_000


def test_what_exists_is_told_from_what_does_not(told):
    answers, _ = told
    assert answers["repositories"] == [True, False]
    assert answers["revisions"] == [True, True, True, False, False, False]
    assert answers["exist"] == [True, True, False, False, False]
    assert [error[0] for error in answers["errors"]] == [
        "RemoteEntryNotFoundError" if answers["version"] >= "1" else "EntryNotFoundError", "RevisionNotFoundError",
        "RepositoryNotFoundError", "RepositoryNotFoundError", answers["errors"][0][0]]
    assert "there is no none in acme/tiny/1.0.0" in answers["errors"][0][1]      # our words reach the user


def test_all_revisions_have_one_commit(told):
    answers, _ = told
    assert answers["refs"] == [["main", answers["sha"]], ["1.0.0", answers["sha"]]]
    assert answers["sha"] == answers["of_revision"] == answers["expanded"] and answers["whoami"] == "anonymous"


# ---- other libraries


@pytest.fixture(scope="module")
def loaded(hub, tmp_path_factory):
    """(what the libraries got, a person who has loaded everything)."""
    person = Person(tmp_path_factory.mktemp("loaded"), hub.url)
    return person.told(PYTHON, SCRIPTS / "load.py"), person


def test_transformers_and_the_others_load_it(loaded, tiny):
    answers, _ = loaded
    assert answers["same"] and answers["parameters"] > 10_000 and answers["features"] == [5, 32]
    assert answers["tokens"] == answers["fast_tokens"] and len(answers["tokens"]) == 5
    assert answers["sentence"] == pytest.approx(tiny[1], abs=1e-5)


def requests_since(server, mark):
    """(method, path) of the requests in the log from a line on."""
    return [tuple(line.split()[3:5]) for line in server.lines[mark:] if " INFO access " in line]


def test_what_is_loaded_again_is_not_sent_again(loaded, hub):
    mark, (_, person) = len(hub.lines), loaded
    person.python(f"from transformers import AutoModel, AutoTokenizer; AutoModel.from_pretrained('{REPO}');"
                  f"AutoTokenizer.from_pretrained('{REPO}')")
    again = requests_since(hub, mark)
    assert 0 < len(again) <= 12 and not [path for method, path in again if method == "GET" and "/resolve/" in path]


@pytest.mark.needs("@huggingface/hub")
def test_the_client_for_javascript_reads_everything(hub, files, person):
    node = Person(HUB / "js", hub.url)
    got = json.loads(node.run("node", "--input-type=module", "-e", (SCRIPTS / "ask.mjs").read_text()).splitlines()[-1])
    data = files["onnx/model.onnx"]
    assert (got["downloaded"], got["part"]) == (len(data), data[9:16].decode())
    assert got["size"] == got["raw"] == len(files["config.json"])
    assert got["etag"] == f'"{sha256(files["config.json"])}"'
    assert sorted(got["files"]) == sorted(files) and got["folder"] == ["onnx/int8", "onnx/model.onnx"]
    assert (got["paths"], got["exist"], got["none"]) == (["config.json"], [True, False], None)
    assert (got["model"], got["models"], got["who"]) == (REPO, [REPO], "anonymous")
    assert re.fullmatch("[0-9a-f]{40}", got["sha"]) and got["parameters"] == [57, 32]
    assert "there is no model below acme/none" in got["missing"]


def test_llama_cpp_finds_the_model_by_its_refs_and_tree(hub, http, tmp_path):
    """Its requests, as common/hf-cache.cpp and common/download.cpp send them."""
    data = b"GGUF" + bytes(range(256)) * 100
    put(hub.url, "acme/gguf", {"tiny-Q8_0.gguf": data, "README.md": b"# tiny"})
    branches = http.get(f"{hub.url}/api/models/acme/gguf/refs").json()["branches"]
    commit = next(branch["targetCommit"] for branch in branches if branch["name"] == "main")
    tree = http.get(f"{hub.url}/api/models/acme/gguf/tree/{commit}?recursive=true").json()
    file = next(each for each in tree if each["type"] == "file" and each["path"].endswith(".gguf"))
    url = f"{hub.url}/acme/gguf/resolve/{commit}/{file['path']}"
    head = http.head(url)
    told = head.headers
    assert (head.status_code, told["Accept-Ranges"], told["Content-Length"]) == (200, "bytes", str(len(data)))
    rest = http.get(url, headers={"Range": "bytes=1000-"})      # as it continues after a break
    assert (rest.status_code, rest.content) == (206, data[1000:]) and file["lfs"]["oid"] == sha256(data)


# ---- the lines of the documentation


def lines_of(page):
    """The lines of shell on a page that need these clients, and those that prepare them."""
    blocks = transcripts.blocks((ROOT / page).read_text(encoding="utf-8"))
    lines = [line for block in blocks if block.language == "bash" for line in block.commands]
    return [line for line in lines if re.match(r"tar c -C (bert|tiny) |export HF_ENDPOINT|hf |python -c \"from ", line)]


@pytest.mark.parametrize(("page", "folder", "number"), [("README.md", "bert", 3), ("docs/hub.md", "tiny", 8)])
def test_the_lines_of_a_page_work_as_they_stand(start, person, tiny, page, folder, number):
    server, lines = start(), lines_of(page)
    somebody = person("http://nobody.example")
    shutil.copytree(tiny[0], somebody.directory / folder)
    text = "\n".join(lines).replace("localhost:8000", f"127.0.0.1:{server.port}")
    assert len(lines) == number
    somebody.run("bash", "-euo", "pipefail", "-c", text)
    if page == "docs/hub.md":
        assert files_of(somebody.directory / "part").keys() == {"onnx/model.onnx"}


def test_the_first_branch_of_refs_is_main_and_nothing_stands_before_it(hub):
    """As a line of shell can tell."""
    assert requests.get(f"{hub.url}/api/models/{REPO}/refs").text.startswith('{"branches": [{"name": "main"')


# ---- what goes wrong


class Gate:
    """Passes on to a server what a client sends, but not the first request that has `word` in it, until go()."""

    def __init__(self, server, word):
        self.server, self.word = server, word
        self.reached, self.opened = threading.Event(), threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):      # closed
            while True:
                client, _ = self.listener.accept()
                onward = socket.create_connection(("127.0.0.1", self.server.port))
                for ends in ((client, onward), (onward, client)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source, target):
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.word in data:
                    self.reached.set()
                    assert self.opened.wait(PATIENCE)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.opened.set()
        self.listener.shutdown(socket.SHUT_RDWR)    # wakes the thread that accepts
        self.listener.close()


SNAPSHOT = "from huggingface_hub import snapshot_download; print(snapshot_download('acme/changing', max_workers=1))"
CHANGING = {"a.bin": b"a" * 1000, "b.bin": b"b" * 1000, "c.bin": b"c" * 1000}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("replaced", ["a.bin", "c.bin"])
def test_a_snapshot_goes_on_while_its_version_is_replaced_or_is_taken_again(start, person, version, replaced):
    server = start()
    put(server.url, "acme/changing", CHANGING)
    with Gate(server, b"/b.bin HTTP/1.1\r\n") as gate:
        somebody = person(gate.url, **VERSIONS[version])
        running = somebody.begin(PYTHON, "-c", SNAPSHOT)
        assert gate.reached.wait(PATIENCE)
        put(server.url, "acme/changing", {replaced: b"new"})
        gate.opened.set()
        output, complaint = running.communicate(timeout=PATIENCE)
        if replaced == "a.bin":     # which is there already: the others are still those of its commit
            assert running.returncode == 0 and files_of(Path(output.strip())) == CHANGING, complaint
        else:
            assert running.returncode != 0 and "has been replaced" in complaint, complaint
        assert files_of(Path(somebody.python(SNAPSHOT).strip())) == {**CHANGING, replaced: b"new"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_is_killed_continues_where_it_was(start, person, version):
    server, size = start(), 192 << 20
    data = b"weights " * (size // 8)
    put(server.url, "acme/large", {"model.bin": data})
    somebody = person(server.url, **VERSIONS[version])
    get = "import sys; from huggingface_hub import hf_hub_download; print(hf_hub_download('acme/large', 'model.bin'))"
    first = somebody.begin(PYTHON, "-c", get)
    unfinished = lambda: sum(path.stat().st_size for path in somebody.directory.rglob("*.incomplete"))  # noqa: E731
    eventually(lambda: unfinished() > 20 << 20)
    first.kill()
    first.communicate()
    assert 0 < unfinished() < size
    mark = len(server.lines)
    path = Path(somebody.python(get).strip())
    assert sha256(path.read_bytes()) == sha256(data)
    if version == "0.36":       # newer ones start the file again, by their own choice
        server.wait_for_log(" 206 ")
        assert [line for line in server.lines[mark:] if " 206 " in line]


def test_a_model_known_to_be_corrupt_is_refused_in_words_that_the_user_sees(start, person, http):
    server = start()
    put(server.url, "acme/bad", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"whole"})
    (server.storage / "acme/bad/1.0.0/model.safetensors/model").write_bytes(b"other")
    http.post(f"{server.url}/verify/acme/bad").raise_for_status()
    eventually(lambda: not http.get(f"{server.url}/verify").json()["running"])
    for environ in VERSIONS.values():
        complaint = person(server.url, **environ).python(
            "from huggingface_hub import snapshot_download; snapshot_download('acme/bad')", fails=True)
        assert "GatedRepoError" in complaint and "its bytes are not those that were uploaded" in complaint


GET = "import sys; from huggingface_hub import hf_hub_download; print(open(hf_hub_download(sys.argv[1], 'f')).read())"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_token_opens_what_it_may_read_and_the_endpoint_may_carry_it(start, person, tokens, version):
    server = start(MODEL_TOKENS_FILE=str(tokens(line("reader", "read", REPO), line("other", "read", "acme/other"),
                                                line("writer", "create", "*"))))
    for repository in (REPO, "acme/secret"):
        url = f"{server.url}/models/{repository}/1/f"
        requests.put(url, data=b"x", auth=("any", "token-of-writer")).raise_for_status()
    carrying = server.url.replace("//", "//any:token-of-reader@")
    for endpoint, settings in ((server.url, {"HF_TOKEN": "token-of-reader"}), (carrying, {})):
        somebody = person(endpoint, **VERSIONS[version], **settings)
        assert somebody.python(GET, REPO) == "x\n"
        assert "RepositoryNotFoundError" in somebody.python(GET, "acme/secret", fails=True)
    for settings in ({"HF_TOKEN": "token-of-other"}, {"HF_TOKEN": "unknown"}, {}):
        somebody = person(server.url, **VERSIONS[version], **settings, HF_HOME="another")
        assert "RepositoryNotFoundError" in somebody.python(GET, REPO, fails=True)


def test_whoami_is_the_name_of_the_token(start, person, tokens):
    server = start(MODEL_TOKENS_FILE=str(tokens(line("reader", "read", REPO))))
    assert "reader" in person(server.url, HF_TOKEN="token-of-reader").run("hf", "auth", "whoami")


LARGEST = 10_000    # files, as many as a tar may bring
LOOK = """
import sys, json
from huggingface_hub import HfApi, snapshot_download
place = snapshot_download("acme/largest", allow_patterns="part7/?07.json")
print(json.dumps([len(HfApi().list_repo_files("acme/largest")), place]))
"""


def test_a_repository_of_ten_thousand_files_costs_its_readers_no_walk_of_them_for_each(start, http, tmp_path):
    for repository, number in [*(("largest", number) for number in range(LARGEST)), ("small", 0)]:
        place = tmp_path / f"models/acme/{repository}/1/part{number % 100}/{number}.json"
        place.mkdir(parents=True)
        data = str(number).encode()
        (place / "model").write_bytes(data)
        (place / "metadata.json").write_text(json.dumps({"size": len(data), "sha256": sha256(data)}))
    server = start(storage=tmp_path / "models")
    wanted = {f"part7/{n}07.json": f"{n}07".encode() for n in range(1, 10)}
    for version, environ in VERSIONS.items():
        number, place = Person(tmp_path / version, server.url, **environ).told(PYTHON, "-c", LOOK)
        assert (number, files_of(Path(place))) == (LARGEST, wanted)

    def quickest(repository):
        url = f"{server.url}/acme/{repository}/resolve/main/part0/0.json"
        return min(http.head(url).elapsed for _ in range(50))
    assert quickest("largest") < 3 * quickest("small")


MANY = 300      # files: more than a client may have requests in a burst


@pytest.mark.needs("nginx", "openssl")
@pytest.mark.parametrize("version", VERSIONS)
def test_many_small_files_come_through_the_proxy_and_below_a_prefix(start, person, tmp_path, tls, version):
    server = start(URL_PREFIX="/models-eu", **TRUSTED)
    files = {f"part{number % 7}/{number}.json": str(number).encode() for number in range(MANY)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    url = f"{server.url}/models-eu/models/acme/many/1"
    requests.put(url, data=packed.getvalue()).raise_for_status()
    trusted = {name: str(tls / "fullchain.pem") for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")}
    with proxy(tmp_path / "nginx", tls, server.port, prefixed=server.port) as front:
        somebody = person(f"{front.url}/models-eu", **VERSIONS[version], **trusted)
        place = somebody.python("from huggingface_hub import snapshot_download; print(snapshot_download('acme/many'))")
        assert files_of(Path(place.strip())) == files
        assert " 429 " not in front.access_log()
