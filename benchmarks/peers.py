"""For all benchmarks: servers on free loopback ports, their CPU and memory, medians of alternating runs, one table.

Nothing is installed: a peer that needs something the machine lacks is left out, and the output says what it needs.
"""

import argparse
import functools
import importlib.util
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
TICK = os.sysconf("SC_CLK_TCK")
START_WITHIN = 120  # seconds; MLflow creates its database first
PACKAGE_OF = {"nginx": "apt install nginx", "rclone": "apt install rclone", "curl": "apt install curl"}

NGINX = """
daemon off; worker_processes auto; pid {root}/nginx.pid; error_log {root}/error.log;
{user}
events {{ worker_connections 4096; }}
http {{
    client_body_temp_path {root}/body; proxy_temp_path {root}/t1; fastcgi_temp_path {root}/t2;
    uwsgi_temp_path {root}/t3; scgi_temp_path {root}/t4;
    access_log {root}/access.log; default_type application/octet-stream; client_max_body_size 0;
    sendfile on; tcp_nopush on; keepalive_requests 1000000000;
    server {{
        listen 127.0.0.1:{port}{tls};
        root {data};
        dav_methods PUT; create_full_put_path on;
        {more}
    }}
}}
"""


# ---- servers


@dataclass
class Server:
    """A server that runs, in a process group of its own; `data` is where its files are."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    data: Path
    started: float = 0.0    # seconds from its start to its first answer
    tls: bool = False

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """It and its workers."""
        family = [self.process.pid]
        for pid in family:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    family += map(int, task.read_text().split())
        return family

    def cpu(self) -> float:
        """Seconds of processor time up to now, in user mode and in the kernel."""
        total = 0
        for pid in self.pids:
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / TICK

    def memory(self, what: str = "VmHWM") -> float:
        """MiB resident, at its peak or (VmRSS) now; of several processes the sum."""
        total = 0
        for pid in self.pids:
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith(what + ":"))
        return total / 1024

    def connect(self, timeout: float = 60) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)     # the group that we started, nobody else's
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(15)


@dataclass(frozen=True)
class Peer:
    """How a server is started: `command` of a directory for its files and a port; `needs` says what it is made of."""

    name: str
    command: Callable[[Path, int], list[str]]
    needs: tuple[str, ...] = ()
    env: Callable[[Path, int], dict[str, str]] = lambda root, port: {}
    data: str = ""          # below its root, where its files are
    ready: str = "/"        # a path that it answers as soon as it serves
    tls: bool = False

    def lacks(self) -> str:
        """What is missing to run it; empty when nothing is."""
        missing = [PACKAGE_OF.get(need, f"pip install {need} (benchmarks/requirements.txt)") for need in self.needs
                   if not find(need)]
        return ", ".join(missing)

    @contextmanager
    def running(self, root: Path) -> Iterator[Server]:
        (root / self.data).mkdir(parents=True, exist_ok=True)
        port = free_port()
        log = root.parent / f"{root.name}.log"
        begun = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(self.command(root, port), stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                                       env={**os.environ, **self.env(root, port)}, start_new_session=True)
        server = Server(self.name, port, process, root / self.data, tls=self.tls)
        try:
            server.started = wait_until_ready(server, self.ready, begun, log)
            yield server
        finally:
            server.stop()


def find(need: str) -> bool:
    """Whether a program or a Python module is installed."""
    return bool(shutil.which(need) if need in PACKAGE_OF else importlib.util.find_spec(need))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(server: Server, path: str, begun: float, log: Path) -> float:
    while time.monotonic() - begun < START_WITHIN:
        if server.process.poll() is not None:
            break
        try:
            connection = server.connect()
            connection.request("GET", path)
            connection.getresponse().read()
            connection.close()
            return time.monotonic() - begun
        except OSError:
            time.sleep(0.002)
    raise SystemExit(f"{server.name} did not start:\n{log.read_text(errors='replace')[-2000:]}")


def nginx_command(root: Path, port: int, tls: str = "", more: str = "") -> list[str]:
    user = "user root;" if os.getuid() == 0 else ""     # or its workers, as another user, could not write here
    configuration = root / "nginx.conf"
    configuration.write_text(NGINX.format(root=root, data=root / "data", port=port, user=user, tls=tls, more=more))
    return ["nginx", "-c", str(configuration)]


def uvicorn(*options: str) -> Callable[[Path, int], list[str]]:
    return lambda root, port: [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "--host", "127.0.0.1",
                               "--port", str(port), *options, "fastapi_app:app"]


def mlflow_command(root: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{root}/mlflow.db",
            "--artifacts-destination", str(root / "data"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


OURS = Peer("this server", lambda root, port: [sys.executable, str(HERE.parent / "model_server.py")], ("waitress",),
            lambda root, port: {"MODEL_STORAGE_PATH": str(root), "SERVER_HOST": "127.0.0.1", "SERVER_PORT": str(port),
                                "MODEL_MAX_SIZE": "", "MODEL_OVERWRITE": "allow", "SERVER_THREADS": ""},
            ready="/health")
NGINX_PEER = Peer("nginx", nginx_command, ("nginx",), data="data")
RCLONE_WEBDAV = Peer("rclone serve webdav", lambda root, port: [
    "rclone", "serve", "webdav", str(root), "--addr", f"127.0.0.1:{port}", "--config", os.devnull], ("rclone",))
RCLONE_HTTP = Peer("rclone serve http", lambda root, port: [
    "rclone", "serve", "http", str(root), "--addr", f"127.0.0.1:{port}", "--config", os.devnull], ("rclone",))
FASTAPI = Peer("FastAPI + uvicorn", uvicorn("--http", "h11", "--loop", "asyncio"),
               ("fastapi", "uvicorn", "python_multipart"), lambda root, port: {"STORAGE": str(root)}, ready="/health")
FASTAPI_FAST = Peer("FastAPI + uvicorn[standard]", uvicorn("--http", "httptools", "--loop", "uvloop"),
                    ("fastapi", "uvicorn", "python_multipart", "httptools", "uvloop"),
                    lambda root, port: {"STORAGE": str(root)}, ready="/health")
UPLOADSERVER = Peer("uploadserver", lambda root, port: [
    sys.executable, "-m", "uploadserver", "--bind", "127.0.0.1", "--directory", str(root), str(port)],
    ("uploadserver",))
WSGIDAV = Peer("wsgidav", lambda root, port: [
    sys.executable, "-m", "wsgidav.server.server_cli", "--host", "127.0.0.1", "--port", str(port), "--root", str(root),
    "--auth", "anonymous", "--no-config", "-q"], ("wsgidav", "cheroot"))
MLFLOW = Peer("MLflow", mlflow_command, ("mlflow",), lambda root, port: {
    "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},     # idle it is to be idle
              data="data", ready="/health")
PYPISERVER = Peer("pypiserver", lambda root, port: [
    sys.executable, "-m", "pypiserver", "run", "-i", "127.0.0.1", "-p", str(port), "--disable-fallback", str(root)],
    ("pypiserver",), ready="/health")
COPYPARTY = Peer("copyparty", lambda root, port: [
    sys.executable, "-m", "copyparty", "-q", "-i", "127.0.0.1", "-p", str(port), "-v", f"{root / 'data'}::rwd",
    "--no-crt"], ("copyparty",), lambda root, port: {"XDG_CONFIG_HOME": str(root)}, data="data")


FLOOR = Peer("nothing else", lambda root, port: [sys.executable, str(HERE / "floor.py"), str(root), str(port)])


def available(*peers: Peer) -> list[Peer]:
    """Those that can run here; says of each other one what it lacks."""
    for peer in peers:
        if lacking := peer.lacks():
            print(f"left out: {peer.name} needs {lacking}", file=sys.stderr)
    return [peer for peer in peers if not peer.lacks()]


# ---- files


@contextmanager
def scratch(parent: str) -> Iterator[Path]:
    """A directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent, ignore_cleanup_errors=True) as path:
        yield Path(path)


def source_file(path: Path, size: int) -> Path:
    """A file of random bytes, in the page cache and on disk."""
    block = os.urandom(min(size, 16 * MIB))
    with path.open("wb") as file:
        for at in range(0, size, len(block)):
            file.write(block[:size - at])
        file.flush()
        os.fsync(file.fileno())
    return path


def need_space(path: Path, size: float) -> None:
    free = shutil.disk_usage(path).free
    if free < size + 2 * 1024 * MIB:
        raise SystemExit(f"{path} has {free >> 20} MiB free and this takes {int(size) >> 20}: choose another --scratch "
                         "or smaller sizes")


def empty(root: Path, *kept: str) -> None:
    """Removes what an upload left, and waits until the disk is quiet: nobody pays for another one's pages."""
    for path in root.iterdir():
        if path.name in kept or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    os.sync()


# ---- clients


CURL = ("curl", "-sS", "--fail-with-body", "-o", os.devnull, "-H", "Expect:")     # some peers never answer 100


def together(commands: list[list[str]]) -> float:
    """Seconds until all of these commands, begun at once, are done; each must succeed."""
    begun = time.monotonic()
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in running]
    seconds = time.monotonic() - begun
    if any(codes):
        raise SystemExit(f"{' '.join(commands[0])[:300]} ended with {codes}")
    return seconds


def get(connection: HTTPConnection, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    connection.request(method, path, body)
    response = connection.getresponse()
    return response.status, response.read()


# ---- numbers


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@dataclass
class Series:
    """One contestant's figures, one of each kind a round."""

    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **figures: float) -> None:
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return statistics.median(self.figures[name]) if self.figures.get(name) else float("nan")

    def spread(self, name: str, form: str = ".2f") -> str:
        values = self.figures.get(name) or [float("nan")]
        return f"{min(values):{form}}-{max(values):{form}}"


def interleaved(rounds: int, contestants: dict[str, Callable[[], dict[str, float]]]) -> dict[str, Series]:
    """Runs them in turn, each round beginning with another one, so that none has the quiet moments to itself."""
    results = {name: Series() for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            results[name].add(**contestants[name]())
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return results


def table(heads: list[str], rows: list[list[str]], title: str = "") -> None:
    """One markdown table, its columns aligned."""
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    if title:
        print(f"\n{title}\n")
    for row in (heads, ["-" * width for width in widths], *rows):
        cells = [cell.ljust(width) if not cell[:1].isdigit() else cell.rjust(width)
                 for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join(cells)} |")


# ---- the command line


def size(text: str) -> int:
    """Bytes of 500M or 1G."""
    unit = "KMGT".find(text[-1].upper()) + 1
    return int(text[:-1] if unit else text) << 10 * unit


def arguments(description: str | None, **options: tuple[Callable[[str], object], object, str]) -> argparse.Namespace:
    """Options of a script: name=(type, default, help); --scratch and --rounds it always has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", default="/var/tmp", help="where the files go: a real disk (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many (default: %(default)s)")
    for name, (kind, default, text) in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default,
                            help=f"{text} (default: %(default)s)")
    chosen = parser.parse_args()
    Path(chosen.scratch).mkdir(parents=True, exist_ok=True)
    sys.stdout.reconfigure(line_buffering=True)     # what was measured is seen, whatever comes after
    machine()
    return chosen


@functools.cache
def machine() -> None:
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "?")
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} x {model}, Linux {os.uname().release}, Python {sys.version.split()[0]}, "
          f"load before {load:.1f}")
    if load > 0.5:
        print("the machine is not quiet: take these figures as preliminary")
