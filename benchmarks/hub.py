"""Goal 2, clients of the Hub: .venv/bin/python benchmarks/hub.py (docs/benchmarks.md)

snapshot_download of 1 GiB in 10 files, and of 1,000 small ones, from the server and from nginx. That has the same
files, and the answers of the API as files, so it computes nothing.
A smoke run: --size 64M --files 20 --rounds 1
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import peers
from peers import MIB, Peer, Server

REPOSITORIES = ("acme/large", "acme/many")
LOCATIONS = """
        location = /api/models/{repository}/revision/main {{ default_type application/json; alias {data}/{name}.info; }}
        location ~ ^/api/models/{repository}/tree/ {{ default_type application/json; alias {data}/{name}.tree; }}
        location ~ ^/{repository}/resolve/[^/]+/(.+)$ {{
            add_header X-Repo-Commit {commit};
            alias {data}/{name}/$1/model;
        }}
"""
CLIENT = "import sys; from huggingface_hub import snapshot_download; snapshot_download(sys.argv[1])"


def nginx_with(commits: dict[str, str]) -> Peer:
    """nginx that answers with what the server said of these repositories."""
    def command(root: Path, port: int) -> list[str]:
        started, data = peers.nginx_command(root, port), root / "data"
        locations = "".join(LOCATIONS.format(repository=repository, name=repository.rpartition("/")[2], data=data,
                                             commit=commit) for repository, commit in commits.items())
        configuration = root / "nginx.conf"
        text = configuration.read_text().replace("create_full_put_path on;", f"create_full_put_path on;\n{locations}")
        configuration.write_text(text)
        return started

    return Peer("nginx", command, ("nginx",), data="data")


def fetch(server: Server, scratch: Path, repository: str) -> dict[str, float]:
    home, before = scratch / "home", server.cpu()
    os.environ.update(HF_ENDPOINT=server.url, HF_HOME=str(home), HF_HUB_DISABLE_PROGRESS_BARS="1",
                      HF_HUB_DISABLE_TELEMETRY="1")
    seconds = peers.together([[sys.executable, "-c", CLIENT, repository]])
    shutil.rmtree(home)
    return {"seconds": seconds, "cpu": server.cpu() - before}


def put_up(server: Server, root: Path, size: int, files: int) -> None:
    """Uploads both repositories, each as one tar."""
    for name, count, each in (("large", 10, size // 10), ("many", files, 2048)):
        folder = root / name
        folder.mkdir()
        for number in range(count):
            peers.source_file(folder / f"part-{number:05}.bin", each)
        tar = subprocess.Popen(["tar", "c", "-C", str(folder), "."], stdout=subprocess.PIPE)
        subprocess.run(["curl", "-sS", "--fail-with-body", "-o", os.devnull, "-T", "-",
                        f"{server.url}/models/acme/{name}/1.0.0"], stdin=tar.stdout, check=True)
        tar.communicate()
        shutil.rmtree(folder)


def captured(server: Server, data: Path) -> dict[str, str]:
    """Keeps the server's answers of the API, and its files, below `data`; returns the commit of each repository."""
    commits = {}
    for repository in REPOSITORIES:
        name, api = repository.rpartition("/")[2], f"/api/models/{repository}"
        _, info = peers.get(server.connect(), f"{api}/revision/main")
        _, tree = peers.get(server.connect(), f"{api}/tree/main?recursive=true")
        commits[repository] = json.loads(info)["sha"]
        (data / f"{name}.info").write_bytes(info)
        (data / f"{name}.tree").write_bytes(tree)
        shutil.copytree(server.data / f"acme/{name}/1.0.0", data / name)
        # nginx makes an ETag of time and size, and a client fetches files of one ETag once
        for number, file in enumerate(sorted((data / name).glob("*/model"))):
            os.utime(file, (number, number))
    return commits


def main() -> None:
    options = peers.arguments(__doc__, size=(peers.size, 1024 * MIB, "of the ten files together"),
                              files=(int, 1000, "small ones"))
    with peers.scratch(options.scratch) as root, ExitStack() as running:
        peers.need_space(root, 4 * options.size)
        ours = running.enter_context(peers.OURS.running(root / "models"))
        put_up(ours, root, options.size, options.files)
        data = root / "nginx/data"
        data.mkdir(parents=True)
        servers = [ours, *(running.enter_context(peer.running(root / "nginx"))
                           for peer in peers.available(nginx_with(captured(ours, data))))]
        results = {}
        for repository, what in zip(REPOSITORIES, (f"{options.size >> 20} MiB in 10 files",
                                                   f"{options.files} files of 2 KiB"), strict=True):
            for server in servers:
                fetch(server, root, repository)     # warm
            results[what] = peers.interleaved(options.rounds, {s.name: partial(fetch, s, root, repository)
                                                               for s in servers})
    rows = [[what, name, f"{series.median('seconds'):.2f}", series.spread("seconds"), f"{series.median('cpu'):.2f}",
             f"{series.median('seconds') / of_all.get('nginx', peers.Series()).median('seconds'):.2f}"]
            for what, of_all in results.items() for name, series in of_all.items()]
    peers.table(["what", "server", "median s", "range s", "CPU s", "time / nginx"], rows,
                f"snapshot_download, medians of {options.rounds}")


if __name__ == "__main__":
    main()
