"""Models larger than what the server and the proxy in front of it may hold of them, on their way in and out."""

import hashlib
import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from support.common import sparse
from support.live import running
from support.proxy import TRUSTED, proxy

SIZE = int(os.environ.get("PROXY_TEST_MIB") or "512") << 20     # of the upload and download whose memory is watched
DATA = bytes(range(256)) * 4096


def peak(pid):
    """The most memory a process has ever had, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


@pytest.mark.needs("nginx", "openssl")
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_large_model_goes_up_and_down_in_flat_memory(tmp_path, tls, version):
    """PROXY_TEST_MIB sets its size."""
    source = sparse(tmp_path / "large", SIZE)
    with running(tmp_path / "models", **TRUSTED) as server, proxy(tmp_path / "nginx", tls, server.port) as front:
        def use(name, file):
            url = f"{front.url}/models/p/app/1/{name}"
            began = time.monotonic()
            answer = json.loads(front.curl("--fail-with-body", version, "-T", file, url).stdout)
            between = time.monotonic()
            digest = hashlib.sha256()
            with subprocess.Popen(["curl", "-q", "-sSf", version, "--cacert", tls / "fullchain.pem", url],
                                  stdout=subprocess.PIPE) as down:
                while block := down.stdout.read(1 << 20):
                    digest.update(block)
            assert down.returncode == 0 and digest.hexdigest() == answer["sha256"]
            return between - began, time.monotonic() - between

        small = tmp_path / "small"
        small.write_bytes(DATA * 64)
        use("small", small)
        before = {pid: peak(pid) for pid in (server.process.pid, *front.processes())}
        up, down = use("large", source)
        grown = {pid: peak(pid) - size for pid, size in before.items()}
        with source.open("rb") as file:
            answer = front.session().get(f"{front.url}/models/p/app/1/large.sha256").text
            assert answer.split()[0] == hashlib.file_digest(file, "sha256").hexdigest()
        print(f"{version}: {SIZE >> 20} MiB up in {up:.1f} s, down in {down:.1f} s; the server grew by "
              f"{grown.pop(server.process.pid) >> 10} KiB to {peak(server.process.pid) >> 20} MiB, nginx by "
              f"{[size >> 10 for size in grown.values()]} KiB to {max(map(peak, front.processes())) >> 20} MiB")
        assert peak(server.process.pid) - before[server.process.pid] < 48 << 20     # 12 MiB may wait for the disk
        assert max(grown.values()) < 8 << 20


@pytest.mark.parametrize("form", [False, True], ids=["PUT", "form"])
def test_uploads_at_once_are_not_kept_in_memory(start, form):
    server = start()
    with server.storage.with_name("large").open("wb") as file:
        file.truncate(256 << 20)
    query = f"{server.url}/models/upload?project_id=p&app_name=a&model_name=m&version="
    lines = [["curl", "-sSf", "-F", f"file=@{file.name}", f"{query}{number}"] if form else
             ["curl", "-sSf", "-T", file.name, f"{server.url}/models/p/a/{number}/m"] for number in range(4)]
    clients = [subprocess.Popen(line, stdout=subprocess.DEVNULL) for line in lines]
    assert [client.wait(120) for client in clients] == [0] * 4
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())[1])
    assert peak < 120 << 10, f"{peak >> 10} MiB"
