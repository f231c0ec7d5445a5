"""Goal 6, 100,000 models: .venv/bin/python benchmarks/many_models.py (docs/benchmarks.md)

The models are made without a server (tree.py): 100 projects of 10 apps of 20 versions of 5 names. Measured are: the
time to start, the first page and the first full list then; the first page after a change through the server and after
one by hand on disk, and how long until the latter is visible; the full list, after some idle seconds and again at once,
compared with a script that reads and parses every metadata.json; pages, quiet and while models come and go; `latest`;
memory. MLflow has 100,000 model versions in SQLite, pypiserver a directory with as many files.
One version of 10,000 files: --models 10000 --each 10000. A smoke run: --models 1000 --rounds 1
A million: --models 1000000 --peers 0 --full 0, with 10 GB and 2.5 million inodes free; --tree makes the models in a
directory that is kept, or takes those that are there. Without full lists it takes minutes and not a quarter of an hour.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import peers
import tree
from peers import MLFLOW, OURS, PYPISERVER, Series, Server, get, interleaved

PAGE = "/models/list?limit=100"
FULL = "/models/list"
SEARCH = "/api/2.0/mlflow/model-versions/search?max_results="
SEEN_WITHIN = 10.0
Ask = Callable[[], dict[str, float]]
PAGES = 200
KEPT_FROM = 10_000      # models from which on the server writes what it knows for the next start
KEPT_WITHIN = 600.0     # seconds
PAUSE = 3.0     # seconds without a request, after which the server looks at the disk again
READ_ALL = """
import sys, time, tree
begun = time.perf_counter()
tree.read_all(sys.argv[1])
print(time.perf_counter() - begun)
"""


# ---- what is asked, in milliseconds


def timed(server: Server, path: str, enough: Callable[[bytes], bool] = bool) -> dict[str, float]:
    """The first byte and the whole of one answer, on a connection of its own that is open already."""
    connection = server.connect(timeout=600)
    begun = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    pieces = [answer.read(1)]
    first = time.perf_counter()
    while piece := answer.read1(1 << 20):   # read() alone would copy what it has again and again
        pieces.append(piece)
    done = time.perf_counter()
    body = b"".join(pieces)
    connection.close()
    assert answer.status == 200, (path, answer.status, body[:500])
    assert enough(body), f"{server.name} answered {path} with too little: {body[:300]!r} … {body[-300:]!r}"
    return {"first": (first - begun) * 1000, "total": (done - begun) * 1000, "bytes": len(body)}


def page(connection: HTTPConnection) -> tuple[float, bytes]:
    begun = time.perf_counter()
    status, body = get(connection, PAGE)
    assert status == 200, body
    return (time.perf_counter() - begun) * 1000, body


def change_by_server(server: Server) -> dict[str, float]:
    """The first page after a new model, a change and a delete; each must be seen at once."""
    connection, model, took = server.connect(), "/models/project000/app00/1.0.0/a_new_one", {}
    patch = b'{"description": "changed now"}'
    for what, method, path, body, count in (
        ("new", "PUT", model, b"x", 1), ("patch", "PATCH", f"{model}/info", patch, 1),
        ("delete", "DELETE", model, None, 0),
    ):
        status, answer = get(connection, path, method, body)
        assert status in (200, 201), answer
        took[what], first = page(connection)
        assert first.count(b"a_new_one/model") == count, f"the {what} is not seen"
        assert what != "patch" or b"changed now" in first, "the change is not seen"
    connection.close()
    return took


def change_by_hand(server: Server) -> dict[str, float]:
    """Seconds until a model that appeared, changed and vanished on disk is seen, and the slowest page meanwhile."""
    connection, model = server.connect(), ("project000", "app00", "1.0.0", "by_hand")
    directory = server.data.joinpath(*model)
    took, slowest = {}, 0.0
    write = partial(tree.write_model, server.data, model)
    for what, change, seen in (
        ("appear", write, lambda body: b"by_hand/model" in body),
        ("change", partial(write, "edited by hand"), lambda body: b"edited by hand" in body),
        ("vanish", partial(shutil.rmtree, directory), lambda body: b"by_hand/model" not in body),
    ):
        change()
        changed = time.perf_counter()
        while True:
            milliseconds, body = page(connection)
            slowest = max(slowest, milliseconds)
            if seen(body):
                break
            assert time.perf_counter() - changed < SEEN_WITHIN, f"that models {what} on disk is not seen"
            time.sleep(0.02)
        took[what] = time.perf_counter() - changed
    connection.close()
    return {**took, "page": slowest}


def latest(server: Server) -> dict[str, float]:
    connection, took = server.connect(), []
    for number in range(20):
        begun = time.perf_counter()
        status, body = get(connection, f"/models/project000/app00/latest/model{number % 5}/info")
        took.append((time.perf_counter() - begun) * 1000)
        assert status == 200 and json.loads(body)["version"].count(".") == 2, body
    connection.close()
    return {"p50": peers.percentile(took, 50), "max": max(took)}


def full_list(server: Server, count: int) -> dict[str, float]:
    """The whole list after a pause, and again at once."""
    complete = partial(enough, count, b'"sha256"')
    time.sleep(PAUSE)
    first = timed(server, FULL, complete)
    return {**first, **{f"again {name}": value for name, value in timed(server, FULL, complete).items()}}


def pages(server: Server) -> dict[str, float]:
    """Pages here and there."""
    connection, took = server.connect(timeout=600), []
    for number in range(PAGES):
        after = f"&after=project{number * 7 % 10:03}/app{number % 10:02}/1.{number % 20}.0/model1"
        begun = time.perf_counter()
        status, body = get(connection, PAGE + after * (number % 2))
        took.append((time.perf_counter() - begun) * 1000)
        assert status == 200, body
        time.sleep(0.02)
    connection.close()
    return {"p50": peers.percentile(took, 50), "p99": peers.percentile(took, 99)}


def pages_in_churn(server: Server) -> dict[str, float]:
    """Pages while models come and go, some 50 a second."""
    stopping = threading.Event()

    def change() -> None:
        connection, number = server.connect(timeout=600), 0
        while not stopping.wait(0.02):
            model = f"/models/project{number // 2 % 10:03}/app00/1.0.0/comes_and_goes"
            status, answer = get(connection, *((model, "DELETE") if number % 2 else (model, "PUT", b"x")))
            assert status in (200, 201), answer
            number += 1
        connection.close()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        return pages(server)
    finally:
        stopping.set()
        changing.join()


def read_all(root: Path) -> dict[str, float]:
    command = [sys.executable, "-c", READ_ALL, str(root)]
    seconds = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={"PYTHONPATH": str(peers.HERE)}).stdout
    return {"total": float(seconds) * 1000}


def very_first(root: Path, count: int, full: bool) -> dict[str, float]:
    """The first list there ever was, and MiB that are written for the next start, for which this waits."""
    index = root / ".staging/index"
    index.unlink(missing_ok=True)
    begun = time.time()
    with OURS.running(root) as server:
        took = timed(server, FULL, partial(enough, count, b'"sha256"')) if full else timed(server, PAGE)
        listed = time.time() if full else 0.0   # a page has nothing read that was not before
        while count >= KEPT_FROM and not (index.exists() and index.stat().st_mtime > listed):
            assert time.time() < begun + KEPT_WITHIN, "nothing is written for the next start"
            time.sleep(0.1)
    return {"total": took["total"], "written": index.stat().st_size / peers.MIB if index.exists() else 0.0}


def start(root: Path, count: int, full: bool) -> dict[str, float]:
    """Milliseconds from the start of the process to the first answer, of the first page and of the first full list."""
    with OURS.running(root) as server:
        started = server.started * 1000
        begun = time.perf_counter()
        _, body = page(server.connect(timeout=600))
        assert json.loads(body)["models"]
        first = (time.perf_counter() - begun) * 1000
        listed = timed(server, FULL, partial(enough, count, b'"sha256"'))["total"] if full else 0.0
        return {"start": started, "page": first, "full": listed}


# ---- the peers' models


def fill_mlflow(data_base: Path, shape: tuple[int, ...]) -> None:
    """As many model versions as we have, straight into the tables that MLflow made."""
    moment = 1_769_860_800_000
    with sqlite3.connect(data_base) as connection:
        families: dict[str, int] = {}
        rows = []
        for project, app, version, name in tree.names(shape):
            family = f"{project}.{app}.{name}"
            families[family] = families.get(family, 0) + 1
            rows.append((family, families[family], moment, moment, "fine-tuned on the reviews of last year", "None",
                         f"mlflow-artifacts:/{project}/{app}/{version}/{name}", "READY"))
        connection.executemany("INSERT INTO registered_models (name, creation_time, last_updated_time, description) "
                               "VALUES (?, ?, ?, '')", [(family, moment, moment) for family in families])
        connection.executemany("INSERT INTO model_versions (name, version, creation_time, last_updated_time, "
                               "description, current_stage, source, status) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.executemany("INSERT INTO model_version_tags (name, version, key, value) VALUES (?, ?, 'stage', "
                               "'candidate')", [row[:2] for row in rows])
    connection.close()


def fill_pypiserver(directory: Path, shape: tuple[int, ...]) -> None:
    for project, app, version, name in tree.names(shape):
        (directory / f"{project}_{app}_{name}-{version}.tar.gz").write_bytes(tree.BYTES)


def main() -> None:
    options = peers.arguments(__doc__, models=(int, 100_000, "how many"),
                              each=(int, tree.SHAPE[-1], "how many of them in a version, 5 or more"),
                              peers=(int, 1, "0 leaves MLflow and pypiserver out"),
                              full=(int, 1, "0 leaves full lists out"),
                              tree=(str, "", "where the models are made, or are already, and stay"))
    shape = tree.shape_of(options.models, options.each)
    with peers.scratch(options.scratch) as root, ExitStack() as running:
        models = Path(options.tree or root / "models")
        count = tree.count_of(shape) if options.tree and models.exists() else tree.build(models, shape)
        first = very_first(models, count, options.full)
        script = {"read_all": partial(read_all, models)} if options.full else {}
        starts = interleaved(options.rounds, {
            "start": partial(start, models, count, options.full), **script, "empty": partial(start_empty, root)})
        ours = running.enter_context(OURS.running(models))
        before = ours.memory("VmRSS")
        page(ours.connect())
        contestants = {
            "page": partial(timed, ours, PAGE), "by server": partial(change_by_server, ours),
            "by hand": partial(change_by_hand, ours), "latest": partial(latest, ours), "pages": partial(pages, ours),
            "pages in churn": partial(pages_in_churn, ours),
        }
        if options.full:
            contestants |= {"full": partial(full_list, ours, count), **script}
            timed(ours, FULL)   # warm
        if options.peers:
            contestants |= peer_lists(root, shape, count, running)
        results = interleaved(options.rounds, contestants)
        after, peak = ours.memory("VmRSS"), ours.memory()
    report(results, starts, first, count, options.rounds, (before, after, peak))


def start_empty(root: Path) -> dict[str, float]:
    with OURS.running(root / "nothing") as server:
        return {"start": server.started * 1000, "memory": server.memory("VmRSS")}


def enough(count: int, word: bytes, body: bytes) -> bool:
    return body.count(word) >= count


def peer_lists(root: Path, shape: tuple[int, ...], count: int, running: ExitStack) -> dict[str, Ask]:
    """What MLflow and pypiserver are asked, each with as many models as we have."""
    lists: dict[str, Ask] = {}
    for peer in peers.available(MLFLOW, PYPISERVER):
        place = root / peer.name
        place.mkdir(parents=True)
        if peer is MLFLOW:
            with peer.running(place):   # makes its tables
                pass
            fill_mlflow(place / "mlflow.db", shape)
            server = running.enter_context(peer.running(place))
            lists["MLflow page"] = partial(timed, server, f"{SEARCH}100")
            complete = partial(enough, count, b'"creation_timestamp"')
            lists["MLflow full"] = partial(timed, server, f"{SEARCH}200000", complete)
        else:
            fill_pypiserver(place, shape)
            server = running.enter_context(peer.running(place))
            lists["pypiserver index"] = partial(timed, server, "/simple/")
            lists["pypiserver full"] = partial(timed, server, "/packages/", partial(enough, count, b".tar.gz</a>"))
        print(f"{peer.name} has its models", file=sys.stderr)
    return lists


def report(results: dict[str, Series], starts: dict[str, Series], first: dict[str, float], count: int, rounds: int,
           memory: tuple[float, ...]) -> None:
    def row(what: str, series: Series, figure: str, goal: str, unit: str = "ms", form: str = ".1f") -> list[str]:
        return [what, f"{series.median(figure):{form}} {unit}", series.spread(figure, form), goal]

    def lists_after_the_start() -> list[list[str]]:
        script = starts["read_all"].median("total")
        return [
            row("full list right after that", starts["start"], "full", ""),
            row("a script reads every metadata.json, meanwhile", starts["read_all"], "total", ""),
            ["full list after the start / script", f"{starts['start'].median('full') / script:.2f}", "", "1.5"],
            ["the same after the very first start", f"{first['total'] / script:.2f}", "", ""]]

    def lists_later() -> list[list[str]]:
        full, script = results["full"], results["read_all"]
        again = script.median("total") / full.median("again total")
        return [
            row("full list after a pause, first byte", full, "first", ""),
            row("full list after a pause", full, "total", ""),
            row("full list again at once, first byte", full, "again first", "50 ms"),
            row("full list again at once", full, "again total", ""),
            row("a script reads every metadata.json", script, "total", ""),
            ["script / full list after a pause", f"{script.median('total') / full.median('total'):.1f}", "", ""],
            ["script / full list again at once", f"{again:.1f}", "", "10"]]

    memory_goal = 500 if count >= 1_000_000 else starts["empty"].median("memory") + 200
    rows = [
        row("start until /health answers", starts["start"], "start", "1000 ms"),
        row("first page right after the start", starts["start"], "page", "100 ms"),
        *(lists_after_the_start() if "full" in results else ()),
        ["written for the next start", f"{first['written']:.1f} MiB", "", ""],
        row("page, nothing changed", results["page"], "total", "10 ms"),
        *(row(f"page after a {what} through the server", results["by server"], what, "10 ms")
          for what in ("new", "patch", "delete")),
        *(row(f"seen: models that {what} on disk", results["by hand"], what, "2 s", "s", ".2f")
          for what in ("appear", "change", "vanish")),
        row("slowest page meanwhile", results["by hand"], "page", "10 ms"),
        *(lists_later() if "full" in results else ()),
        *(row(f"{what}, {figure}", results[what], figure, "20 ms" if figure == "p99" else "")
          for what in ("pages", "pages in churn") for figure in ("p50", "p99")),
        row("info of latest", results["latest"], "p50", "5 ms"),
        row("info of latest, the slowest of 20", results["latest"], "max", "5 ms"),
        ["memory, nothing stored", f"{starts['empty'].median('memory'):.0f} MiB", "", ""],
        ["memory after all of this", f"{memory[1]:.0f} MiB (peak {memory[2]:.0f})", "", f"{memory_goal:.0f} MiB"],
    ]
    named = (("MLflow page", "MLflow: search_model_versions, 100"),
             ("MLflow full", "MLflow: search_model_versions, all"), ("pypiserver index", "pypiserver: /simple/"),
             ("pypiserver full", "pypiserver: /packages/"))
    rows += [row(text, results[name], "total", "") for name, text in named if name in results]
    peers.table(["what", "median", "range", "goal"], rows, f"{count} models, medians of {rounds}")


if __name__ == "__main__":
    main()
