"""What lists know from one start to the next, in this server's file and in SQLite: benchmarks/kept_in_sqlite.py

Both hold the same lines and check them against the disk by the server's own functions. The database is the plainest one
that answers lists: models in the order of their places, an index of frameworks, WAL. On a tree as in many_models.py,
each round starts one process for each of the two, which makes the first page, the full list, the full list again at
once, when nothing has to be checked, and a page of a framework that no model has.
A million: --models 1000000 --rounds 1, with --tree as in many_models.py.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from sqlite3 import connect
from time import perf_counter
from typing import Any

import peers
import tree

sys.path.insert(0, str(peers.HERE.parent))
from repository import indexed
from repository.indexed import State
from repository.model import told_by
from server.listing import list_response
from storage import Storage

PAGE = 100
TABLES = """
PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
CREATE TABLE directories (place TEXT PRIMARY KEY, changed INTEGER, inode INTEGER) WITHOUT ROWID;
CREATE TABLE models (place TEXT, name TEXT, state INTEGER, framework TEXT, line BLOB, PRIMARY KEY (place, name))
    WITHOUT ROWID;
CREATE INDEX of_framework ON models (framework, place, name);
"""
ROWS = """
SELECT place, name, state, line, changed, inode FROM models JOIN directories USING (place) ORDER BY place, name
"""
LINES = "SELECT line FROM models ORDER BY place, name"
OF_FRAMEWORK = "SELECT line FROM models WHERE framework = 'none of them' ORDER BY place, name"
CALL = "import json, sys, kept_in_sqlite as k; print(json.dumps(getattr(k, sys.argv[1])(*sys.argv[2:])))"


def main() -> None:
    options = peers.arguments(__doc__, models=(int, 100_000, "models"), tree=(str, "", "where the models are"))
    with peers.scratch(options.scratch) as root:
        models, database = Path(options.tree or root / "models"), root / "database"
        if not models.exists():
            tree.build(models, tree.shape_of(options.models))
        written = called("write", models, database)
        results = peers.interleaved(options.rounds, {
            "this server": partial(called, "of_this_server", models),
            "SQLite": partial(called, "of_sqlite", models, database)})
    rows = [[what, *(f"{written[f'{name}, {what}']:.0f}" for name in results for _ in "12")]
            for what in ("ms to write all", "MiB on disk")]
    for what in results["SQLite"].figures:
        rows.append([what, *(text for each in results.values()
                             for text in (f"{each.median(what):.1f}", each.spread(what, ".1f")))])
    peers.table(["what", "this server", "range", "SQLite", "range"], rows,
                f"{options.models} models, medians of {options.rounds}, ms")


def called(what: str, *arguments: Path) -> dict[str, float]:
    """The figures that a function of this module returns in a process of its own."""
    command = [sys.executable, "-c", CALL, what, *map(str, arguments)]
    figures: dict[str, float] = json.loads(
        subprocess.run(command, cwd=peers.HERE, stdout=subprocess.PIPE, check=True).stdout)
    return figures


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and the result."""
    begun = perf_counter()
    result = what()
    return (perf_counter() - begun) * 1000, result


def memory() -> float:
    """MiB at the peak of this process."""
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024


def write(models: str, database: str) -> dict[str, float]:
    """Reads the whole tree, and writes it for both."""
    indexed.KEPT_BYTES = sys.maxsize
    with Storage(Path(models)) as store:
        for _ in store.index.lines(()):
            pass
        ours, _ = timed(store.index._write)
        theirs, _ = timed(lambda: write_database(store, database))
    sizes = [file.stat().st_size / peers.MIB for file in (Path(models) / ".staging/index", Path(database))]
    return {"this server, ms to write all": ours, "SQLite, ms to write all": theirs,
            "this server, MiB on disk": sizes[0], "SQLite, MiB on disk": sizes[1]}


def write_database(store: Storage, database: str) -> None:
    known = connect(database, isolation_level=None)
    known.executescript(TABLES)
    known.execute("BEGIN")
    for names, directory in store.index._directories.items():
        if directory.lines:
            place = "\1".join(names)     # which sorts below all that a name can have
            known.execute("INSERT INTO directories VALUES (?, ?, ?)", (place, *directory.state))
            known.executemany("INSERT INTO models VALUES (?, ?, ?, ?, ?)", (
                (place, name, directory.states[name], told_by(line)["framework"], line)
                for name, line in directory.lines.items()))
    known.execute("COMMIT")
    known.close()


def of_this_server(models: str) -> dict[str, float]:
    with Storage(Path(models)) as store:
        lines = store.index.lines
        first, _ = timed(lambda: (store.index.remember(), store.index.count(()), page_of(lines((), (), PAGE))))
        after_start, count = timed(lambda: sum(len(batch.lines) for batch in lines(())))
        again, same = timed(lambda: sum(len(batch.lines) for batch in lines(())))
        of_framework, answer = timed(lambda: list_response(
            store, {}, [()], {"framework": "none of them", "limit": str(PAGE)}, "", ()))
        assert count == same and b'"total_models": 0' in answer.body
    return {"first page": first, "full list after a start": after_start, "full list again at once": again,
            "page of a framework": of_framework, "memory, MiB": memory()}


def page_of(batches: Iterable[indexed.Batch]) -> list[bytes]:
    return list(islice((line for batch in batches for line in batch.lines.values()), PAGE + 1))


def of_sqlite(models: str, database: str) -> dict[str, float]:
    with Storage(Path(models)) as store:
        first, _ = timed(lambda: checked(store, connect(database).execute(f"{ROWS} LIMIT {PAGE + 1}")))
        known = connect(database)
        after_start, count = timed(lambda: checked(store, known.execute(ROWS)))
        again, same = timed(lambda: sum(1 for _ in known.execute(LINES)))
        of_framework, none = timed(lambda: known.execute(OF_FRAMEWORK).fetchall())
        assert count == same and not none
    return {"first page": first, "full list after a start": after_start, "full list again at once": again,
            "page of a framework": of_framework, "memory, MiB": memory()}


def checked(store: Storage, rows: Iterable[tuple[Any, ...]]) -> int:
    """How many models there are in these rows, each checked as the server does before it tells a line."""
    count, disk = 0, store.index._disk
    for (place, changed, inode), group in groupby(rows, key=lambda row: (row[0], row[4], row[5])):
        names, states = tuple(place.split("\1")), {name: state for _, name, state, *_ in group}
        assert disk.is_unchanged(names, State(changed, inode)), names
        assert len(disk.unchanged(names, states)) == len(states), names
        count += len(states)
    return count


if __name__ == "__main__":
    main()
