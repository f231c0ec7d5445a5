"""Goal 7, how cost grows: .venv/bin/python benchmarks/plot.py (docs/benchmarks.md)

Draws benchmarks/growth.png: seconds of an upload and of a download against their size, of a model and of a version as a
tar, and milliseconds of a page and of the full list against the number of models, ours and the peers'. Each point is a
median of --rounds.
A smoke run: --largest 64M --models 1000 --rounds 1 --out /tmp/growth.png
"""

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import many_models
import peers
import tars
import tree
import upload
from many_models import FULL, PAGE, enough, timed
from peers import CURL, FASTAPI, MIB, NGINX_PEER, OURS

SIZES = [MIB << power for power in (0, 3, 6, 8, 10, 13)]      # 1 MiB to 8 GiB
FILES = 20                  # of a version
COUNTS = (1000, 10_000, 100_000, 1_000_000)
SLOW_UP_TO = 1024 * MIB     # beyond it FastAPI's form, the slowest here, would take most of the time of this script
PEERS_UP_TO = 100_000       # models; to fill MLflow's database with more takes longer than all the rest
Points = dict[str, list[tuple[float, float]]]


def grow_transfers(root: Path, largest: int, rounds: int) -> tuple[Points, Points]:
    """Seconds of uploads and of downloads, the latter from the page cache where it is large enough."""
    uploads: Points = {}
    downloads: Points = {}
    with ExitStack() as running:
        servers = {peer: running.enter_context(peer.running(root / peer.name.split()[0]))
                   for peer in peers.available(OURS, NGINX_PEER, FASTAPI)}
        for size in (size for size in SIZES if size <= largest):
            source, tar = peers.source_file(root / "source", size), tars.packed(root / "tar", [size // FILES] * FILES)
            ups, downs = {}, {}
            for peer, server in servers.items():
                if peer is FASTAPI and size > SLOW_UP_TO:
                    continue
                if peer is not NGINX_PEER:
                    ups[f"{peer.name}, multipart"] = partial(upload.measure, server, upload.form, source, 1)
                if peer is not FASTAPI:
                    ups[f"{peer.name}, PUT"] = partial(upload.measure, server, upload.put, source, 1)
                if peer is OURS:
                    ups[f"{peer.name}, tar of {FILES} files"] = partial(tars.upload, server, tar, tars.VERSION)
                    downs[f"{peer.name}, tar of {FILES} files"] = (server, tars.VERSION, "?format=tar", tar)
                downs[peer.name] = (server, "/models/p/a/0/m", "", source)
            add(uploads, size / MIB, "seconds", peers.interleaved(rounds, ups))
            for server, path, _, what in downs.values():
                peers.together([[*CURL, "-T", str(what), server.url + path]])
            asked = {name: partial(tars.download, server, path + query)
                     for name, (server, path, query, _) in downs.items()}
            for ask in asked.values():
                ask()   # into the page cache
            add(downloads, size / MIB, "seconds", peers.interleaved(rounds, asked))
            for each in (source, tar):
                each.unlink()
            for server in servers.values():
                peers.empty(server.data)
            print(f"{size >> 20} MiB: {uploads} {downloads}", file=sys.stderr)
    return uploads, downloads


def add(points: Points, x: float, figure: str, results: dict[str, peers.Series]) -> None:
    for name, series in results.items():
        points.setdefault(name, []).append((x, series.median(figure)))


def grow_lists(root: Path, most: int, rounds: int) -> tuple[Points, Points]:
    pages: Points = {}
    lists: Points = {}
    for models in (count for count in COUNTS if count <= most):
        shape, place = tree.shape_of(models), root / f"models{models}"
        count = tree.build(place, shape)
        with ExitStack() as running:
            server = running.enter_context(OURS.running(place))
            asked = {"this server": partial(timed, server, PAGE)}
            full = {"this server": partial(timed, server, FULL, partial(enough, count, b'"sha256"')),
                    "a script that reads every metadata.json": partial(many_models.read_all, place)}
            others = {}
            if models <= PEERS_UP_TO:
                others = many_models.peer_lists(root / f"peers{models}", shape, count, running)
            asked |= {"MLflow search_model_versions": others["MLflow page"]} if "MLflow page" in others else {}
            asked |= {"pypiserver /simple/": others["pypiserver index"]} if "pypiserver index" in others else {}
            full |= {"MLflow search_model_versions": others["MLflow full"]} if "MLflow full" in others else {}
            full |= {"pypiserver /packages/": others["pypiserver full"]} if "pypiserver full" in others else {}
            timed(server, FULL)
            for contestants, points in ((asked, pages), (full, lists)):
                add(points, count, "total", peers.interleaved(rounds, contestants))
    return pages, lists


def draw(uploads: Points, downloads: Points, pages: Points, lists: Points, out: str) -> None:
    import matplotlib  # here, so that main() can say that it is missing
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 10), layout="constrained")
    for axis, points, title, x, y in (
        (axes[0, 0], uploads, "Upload", "MiB", "seconds"),
        (axes[0, 1], downloads, "Download", "MiB", "seconds"),
        (axes[1, 0], pages, "List: first page of 100", "models", "milliseconds"),
        (axes[1, 1], lists, "List: all models", "models", "milliseconds"),
    ):
        for name, line in points.items():
            ours = name.startswith("this server")
            axis.plot(*zip(*line, strict=True), "o-" if ours else "s--", label=name, linewidth=2.5 if ours else 1.3)
        axis.set(xscale="log", yscale="log", title=title, xlabel=x, ylabel=y)
        axis.grid(which="both", alpha=0.25)
        axis.legend(fontsize=8)
    figure.savefig(out, dpi=90)
    pyplot.close(figure)


def main() -> None:
    options = peers.arguments(
        __doc__, largest=(peers.size, SIZES[-1], "upload"), models=(int, COUNTS[-1], "at most"),
        out=(str, str(peers.HERE / "growth.png"), "the picture"))
    if not peers.find("matplotlib"):
        raise SystemExit("plot.py needs matplotlib: pip install -r benchmarks/requirements.txt")
    peers.need_space(Path(options.scratch), 6 * options.largest)
    with peers.scratch(options.scratch) as root:
        uploads, downloads = grow_transfers(root, options.largest, options.rounds)
        pages, lists = grow_lists(root, options.models, options.rounds)
    for title, points, unit in (("upload", uploads, "s"), ("download", downloads, "s"), ("first page", pages, "ms"),
                                ("all models", lists, "ms")):
        columns = sorted({x for line in points.values() for x, _ in line})
        rows = [[name, *(f"{dict(line)[x]:.3g} {unit}" if x in dict(line) else "" for x in columns)]
                for name, line in points.items()]
        peers.table([title, *(f"{x:g}{' MiB' if unit == 's' else ''}" for x in columns)], rows, " ")
    draw(uploads, downloads, pages, lists, options.out)
    print(f"drawn: {options.out}")


if __name__ == "__main__":
    main()
