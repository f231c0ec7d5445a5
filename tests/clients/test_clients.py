"""Clients that people push models with: what each of them sends is stored, and answered, as they mean it."""

import asyncio
import json
import subprocess

import aiohttp
import httpx
import pytest
import requests
from support.common import sha256, staged

DATA = bytes(range(256)) * 12_000     # 3 MiB: more than any of them sends at once
NAME = "modèle 模型 (1).pt"
FIELDS = {"description": "größer: 模型", "stage": "prod", "metadata": '{"accuracy": 0.93, "tags": ["a", 1]}'}
NODE = """
import { openAsBlob, readFileSync } from "node:fs";
const [url, action, file, fields, second] = JSON.parse(readFileSync(0, "utf8"));
let answer;
if (action === "put") {
  answer = await fetch(url, { method: "PUT", body: (await openAsBlob(file)).stream(), duplex: "half" });
}
if (action === "post") {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  form.append("file", await openAsBlob(file), file);
  if (second) form.append("second", new Blob(["small"]), "second.txt");
  answer = await fetch(url, { method: "POST", body: form });
}
console.log(JSON.stringify([answer.status, await answer.json()]));
"""


class Curl:
    def __init__(self, directory):
        self.directory = directory

    def run(self, *arguments):
        done = subprocess.run(["curl", "-sS", "-w", "\n%{http_code}", *arguments], cwd=self.directory, text=True,
                              capture_output=True, timeout=60, check=True)
        text, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(text)

    def put(self, url):
        return self.run("-T", NAME, url)

    def post(self, url, fields, second=False):
        texts = [part for name, value in fields.items() for part in ("--form-string", f"{name}={value}")]
        return self.run(*texts, "-F", f"file=@{NAME}", *(["-F", f"second=@{NAME}"] if second else []), url)


class Requests:
    client = requests

    def __init__(self, directory):
        self.file = directory / NAME

    def put(self, url):
        with self.file.open("rb") as file:
            answer = self.client.put(url, **self.body(file))
        return answer.status_code, answer.json()

    def body(self, file):
        return {"data": file}

    def post(self, url, fields, second=False):
        with self.file.open("rb") as file:
            files = {"file": (NAME, file), **({"second": ("second.txt", b"small")} if second else {})}
            answer = self.client.post(url, data=fields, files=files)
        return answer.status_code, answer.json()


class Httpx(Requests):
    client = httpx

    def body(self, file):
        return {"content": file}


class Aiohttp:
    def __init__(self, directory):
        self.file = directory / NAME

    def put(self, url):
        return asyncio.run(self.send("PUT", url, lambda file: file))

    def post(self, url, fields, second=False):
        def form(file):
            data = aiohttp.FormData(fields, quote_fields=False)     # or the name travels as m%20.pt, as it stands
            data.add_field("file", file, filename=NAME)
            if second:
                data.add_field("second", b"small", filename="second.txt")
            return data
        return asyncio.run(self.send("POST", url, form))

    async def send(self, method, url, body):
        with self.file.open("rb") as file:
            async with aiohttp.ClientSession() as session, session.request(method, url, data=body(file)) as answer:
                return answer.status, await answer.json()


class Node:
    def __init__(self, directory):
        self.directory = directory

    def run(self, *arguments):
        done = subprocess.run(["node", "--no-warnings", "--input-type=module", "-e", NODE], cwd=self.directory,
                              input=json.dumps(arguments), text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def put(self, url):
        return self.run(url, "put", NAME)

    def post(self, url, fields, second=False):
        return self.run(url, "post", NAME, fields, second)


@pytest.fixture(params=[Curl, Requests, Httpx, Aiohttp, pytest.param(Node, marks=pytest.mark.needs("node"))],
                ids=lambda client: client.__name__.lower())
def client(request, tmp_path):
    (tmp_path / NAME).write_bytes(DATA)
    return request.param(tmp_path)


def test_what_a_client_puts_is_what_is_stored(client, live_server, http, project):
    url = f"{live_server.url}/models/{project}/a/1/m"
    status, answer = client.put(url)
    assert (status, answer["sha256"], answer["size"]) == (201, sha256(DATA), len(DATA))
    assert http.get(url).content == DATA


def test_a_form_keeps_the_name_of_its_file_and_its_fields(client, live_server, project):
    names = {"project_id": project, "app_name": "a", "version": "1", "model_name": "m"}
    status, answer = client.post(f"{live_server.url}/models/upload", names | FIELDS)
    assert (status, answer["sha256"], answer["filename"]) == (201, sha256(DATA), NAME)
    assert answer["description"] == FIELDS["description"]
    assert answer["metadata"] == {"stage": "prod", "accuracy": 0.93, "tags": ["a", 1]}


def test_a_second_file_in_a_form_is_refused(client, live_server, project):
    names = {"project_id": project, "app_name": "a", "version": "1", "model_name": "m"}
    status, answer = client.post(f"{live_server.url}/models/upload", names, second=True)
    assert (status, "second" in answer["detail"]) == (400, True)
    assert not (live_server.storage / project).exists() and staged(live_server.storage) == []


def test_a_form_that_is_put_is_refused_with_the_line_to_use_instead(live_server, http, project):
    url = f"{live_server.url}/models/{project}/a/1/m"
    for answer in (http.put(url, files={"file": DATA}), httpx.put(url, files={"file": DATA})):
        assert (answer.status_code, "curl -T" in answer.json()["detail"]) == (415, True)
    assert not (live_server.storage / project).exists()


@pytest.mark.needs("lftp")
def test_lftp_that_continues_an_upload_replaces_nothing_with_its_rest(live_server, http, project, tmp_path):
    """It asks how much is there and sends what is behind that, with a Range."""
    url = f"{live_server.url}/models/{project}/a/1/m"
    http.put(url, data=DATA[:1_000_000])
    (tmp_path / "m").write_bytes(DATA)
    script = f"set net:max-retries 1; open {live_server.url}/models/{project}/a/1/; put -c m"
    done = subprocess.run(["lftp", "-d", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "Range: bytes=1000000-" in done.stderr and "400" in done.stderr, done.stderr
    assert http.get(url).content == DATA[:1_000_000]
