"""Goal 2, downloads: .venv/bin/python benchmarks/download.py (docs/benchmarks.md)

Downloads 1 GiB with curl, whole and in 64 parallel ranges like a download manager, and compares with nginx (sendfile).
Then measures the share of a core that 100 readers with curl --limit-rate cost the server, alone and during the ranges,
200 of them beside four uploads, and what TLS costs: our server behind an nginx, and an nginx that sends the file.
A smoke run: --size 64M --rounds 1 --readers 10 --seconds 3
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import peers
from peers import CURL, MIB, Server

MODEL = "p/a/1.0.0/m"
BEHIND = "this server behind nginx with TLS"
DISCARD = ("curl", "-sSk", "--fail", "-o", "/dev/null")
PROXY = """location /models {{
            proxy_pass {}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
            proxy_request_buffering off; proxy_buffering off;
        }}"""       # as deploy/nginx.conf has it


def with_tls(name: str, more: str = "") -> peers.Peer:
    """An nginx that speaks TLS."""
    def command(root: Path, port: int) -> list[str]:
        certificate, key = root / "tls.pem", root / "tls.key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
                        "/CN=localhost", "-out", certificate, "-keyout", key], check=True, stderr=subprocess.DEVNULL)
        more_of_it = f"ssl_certificate {certificate}; ssl_certificate_key {key}; {more}"
        return peers.nginx_command(root, port, " ssl", more_of_it)

    return peers.Peer(name, command, ("nginx",), data="data", tls=True)


def path_of(server: Server) -> str:
    """Our server and FastAPI have routes, the others serve the directory."""
    return f"/models/{MODEL}" if server.name in (peers.OURS.name, peers.FASTAPI.name, BEHIND) else f"/{MODEL}/model"


def download(server: Server, size: int) -> dict[str, float]:
    before = server.cpu()
    seconds = peers.together([[*DISCARD, f"{server.url}{path_of(server)}"]])
    return {"seconds": seconds, "rate": size / seconds / MIB, "cpu": server.cpu() - before}


def ranges_of(server: Server, size: int, count: int) -> list[str]:
    """One curl that asks for `count` ranges at once, each over a connection of its own."""
    step = size // count
    command = ["curl", "--no-progress-meter", "--parallel", "--parallel-immediate", "--parallel-max", str(count)]
    for number in range(count):
        last = size - 1 if number == count - 1 else (number + 1) * step - 1
        command += [*(["--next"] if number else []), *DISCARD[1:], "-r", f"{number * step}-{last}",
                    f"{server.url}{path_of(server)}"]
    return command


def ranges(server: Server, size: int, count: int) -> dict[str, float]:
    before = server.cpu()
    seconds = peers.together([ranges_of(server, size, count)])
    return {"seconds": seconds, "rate": size / seconds / MIB, "cpu": server.cpu() - before}


def slow_readers(server: Server, size: int, readers: int, rate: int, seconds: float,
                 work: Callable[[], float]) -> dict[str, float]:
    """Slow readers for so many seconds, and in the midst of it some work that says how long it took."""
    before, begun = server.cpu(), time.monotonic()
    running = [subprocess.Popen([*DISCARD, "--limit-rate", str(rate), f"{server.url}{path_of(server)}"],
                                stderr=subprocess.DEVNULL) for _ in range(readers)]
    try:
        time.sleep(seconds / 4)
        took = work()
        time.sleep(max(0, seconds - (time.monotonic() - begun)))
        elapsed = time.monotonic() - begun
        cores = (server.cpu() - before) / elapsed
        assert all(process.poll() in (None, 0) for process in running), "a slow reader was cut off"
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                process.terminate()
        for process in running:
            process.wait()
    return {"cores": cores, "seconds": took}


def beside_uploads(server: Server, source: Path, slow: tuple[int, int, int, float]) -> dict[str, float]:
    """Slow readers for so many seconds, and four uploads at once in the midst of it: how long those take."""
    size, readers, rate, seconds = slow
    urls = [server.url + path_of(server).replace("/a/", f"/b{n}/") for n in range(4)]

    def upload() -> float:
        return peers.together([[*CURL, "-T", str(source), url] for url in urls])

    figures = slow_readers(server, size, readers, rate, seconds, upload)
    return {**figures, "alone": upload()}


def main() -> None:
    options = peers.arguments(
        __doc__, size=(peers.size, 1024 * MIB, "of the file"), ranges=(int, 64, "at once"), few=(int, 8, "at once"),
        readers=(int, 100, "slow ones"), rate=(peers.size, MIB, "bytes a second of each slow reader"),
        seconds=(float, 10.0, "of slow reading"))
    with peers.scratch(options.scratch) as root, ExitStack() as running:
        peers.need_space(root, options.size)
        ours = running.enter_context(peers.OURS.running(root / "models"))
        source = peers.source_file(root / "source", options.size)
        peers.together([[*CURL, "-T", str(source), f"{ours.url}/models/{MODEL}"]])
        servers = [ours]
        for peer in peers.available(peers.NGINX_PEER, peers.RCLONE_HTTP, peers.FASTAPI):
            place = root / peer.name.split()[0]
            (place / peer.data).mkdir(parents=True)
            shutil.copytree(ours.data / "p", place / peer.data / "p", copy_function=os.link)
            servers.append(running.enter_context(peer.running(place)))
        encrypted = [running.enter_context(peer.running(root / name)) for name, peer in (
            ("behind", with_tls(BEHIND, PROXY.format(ours.url))), ("tls", with_tls("nginx with TLS")))]
        shutil.copytree(ours.data / "p", root / "tls/data/p", copy_function=os.link)
        for server in (*servers, *encrypted):
            download(server, options.size)      # warm
        whole = peers.interleaved(options.rounds, {s.name: partial(download, s, options.size) for s in servers})
        parts, few = (peers.interleaved(options.rounds, {s.name: partial(ranges, s, options.size, count)
                                                         for s in servers}) for count in (options.ranges, options.few))
        tls = peers.interleaved(options.rounds, {
            s.name: partial(download, s, options.size) for s in (*servers[:2], *encrypted)})
        slow = (options.size, options.readers, options.rate, options.seconds)
        both = peers.interleaved(options.rounds, {f"{s.name}|{count}": partial(slow_readers, s, *slow, partial(
            peers.together, [ranges_of(s, options.size, count)] if count else []))
            for s in servers[:2] for count in (0, options.ranges)})
        crowd = peers.interleaved(options.rounds, {s.name: partial(
            beside_uploads, s, source, (options.size, 2 * options.readers, *slow[2:])) for s in servers[:2]})
        memory = {server.name: server.memory() for server in (*servers, *encrypted)}
    rows = []
    for what, results in (("whole", whole), (f"{options.ranges} ranges", parts), (f"{options.few} ranges", few),
                          ("with TLS", tls)):
        for name, series in results.items():
            other = "nginx with TLS" if results is tls else "nginx"
            ratio = series.median("seconds") / results.get(other, peers.Series()).median("seconds")
            rows.append([what, name, f"{series.median('seconds'):.2f}", series.spread("seconds"),
                         f"{series.median('rate'):.0f}", f"{series.median('cpu'):.2f}", f"{memory[name]:.0f}",
                         f"{ratio:.2f}"])
    peers.table(["what", "server", "median s", "range s", "MiB/s", "CPU s", "peak MiB", "time / nginx"], rows,
                f"{options.size >> 20} MiB, medians of {options.rounds}")
    rows = [[name.split("|")[0], name.split("|")[1], f"{series.median('cores'):.2f}", series.spread("cores"),
             f"{series.median('seconds'):.2f}"] for name, series in both.items()]
    peers.table(["server", "ranges beside them", "cores", "range", "ranges took s"], rows,
                f"{options.readers} readers of {options.rate >> 10} KiB/s, {options.seconds:g} s, medians of "
                f"{options.rounds}")
    rows = [[name, f"{series.median('cores'):.2f}", f"{series.median('seconds'):.2f}", series.spread("seconds"),
             f"{series.median('alone'):.2f}"] for name, series in crowd.items()]
    peers.table(["server", "cores", "four uploads s", "range s", "without readers s"], rows,
                f"{2 * options.readers} readers and four uploads of {options.size >> 20} MiB")


if __name__ == "__main__":
    main()
