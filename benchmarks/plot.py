"""Goal 7, how cost grows: .venv/bin/python benchmarks/plot.py (docs/benchmarks.md)

Draws benchmarks/growth.png: seconds of an upload against its size, and milliseconds of a page and of the full list
against the number of models, ours and the peers'. Each point is a median of --rounds.
A smoke run: --largest 64M --models 1000 --rounds 1 --out /tmp/growth.png
"""

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import many_models
import peers
import tree
import upload
from many_models import FULL, PAGE, enough, timed
from peers import FASTAPI, MIB, NGINX_PEER, OURS

SIZES = [MIB << power for power in (0, 3, 6, 8, 10, 13)]      # 1 MiB to 8 GiB
COUNTS = (1000, 10_000, 100_000)
SLOW_UP_TO = 1024 * MIB     # beyond it FastAPI's form, the slowest here, would take most of the time of this script
Points = dict[str, list[tuple[float, float]]]


def grow_uploads(root: Path, largest: int, rounds: int) -> Points:
    points: Points = {}
    contestants = [(OURS, "multipart", upload.form), (OURS, "PUT", upload.put), (NGINX_PEER, "DAV PUT", upload.put),
                   (FASTAPI, "multipart", upload.form)]
    with ExitStack() as running:
        servers = {peer.name: running.enter_context(peer.running(root / peer.name.split()[0]))
                   for peer in peers.available(OURS, NGINX_PEER, FASTAPI)}
        for size in (size for size in SIZES if size <= largest):
            source = peers.source_file(root / "source", size)
            results = peers.interleaved(rounds, {
                f"{peer.name}, {how}": partial(upload.measure, servers[peer.name], commands, source, 1)
                for peer, how, commands in contestants
                if peer.name in servers and (peer is not FASTAPI or size <= SLOW_UP_TO)})
            for name, series in results.items():
                points.setdefault(name, []).append((size / MIB, series.median("seconds")))
            source.unlink()
            print(f"{size >> 20} MiB: {points}", file=sys.stderr)
    return points


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
            others = many_models.peer_lists(root / f"peers{models}", shape, count, running)
            asked |= {"MLflow search_model_versions": others["MLflow page"]} if "MLflow page" in others else {}
            asked |= {"pypiserver /simple/": others["pypiserver index"]} if "pypiserver index" in others else {}
            full |= {"MLflow search_model_versions": others["MLflow full"]} if "MLflow full" in others else {}
            full |= {"pypiserver /packages/": others["pypiserver full"]} if "pypiserver full" in others else {}
            timed(server, FULL)
            for contestants, points in ((asked, pages), (full, lists)):
                for name, series in peers.interleaved(rounds, contestants).items():
                    points.setdefault(name, []).append((count, series.median("total")))
    return pages, lists


def draw(uploads: Points, pages: Points, lists: Points, out: str) -> None:
    import matplotlib  # here, so that main() can say that it is missing
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 5), layout="constrained")
    for axis, points, title, x, y in (
        (axes[0], uploads, "Upload", "MiB", "seconds"),
        (axes[1], pages, "List: first page of 100", "models", "milliseconds"),
        (axes[2], lists, "List: all models", "models", "milliseconds"),
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
    peers.need_space(Path(options.scratch), 2.5 * options.largest)
    with peers.scratch(options.scratch) as root:
        uploads = grow_uploads(root, options.largest, options.rounds)
        pages, lists = grow_lists(root, options.models, options.rounds)
    for title, points, unit in (("upload", uploads, "s"), ("first page", pages, "ms"), ("all models", lists, "ms")):
        columns = sorted({x for line in points.values() for x, _ in line})
        rows = [[name, *(f"{dict(line)[x]:.3g} {unit}" if x in dict(line) else "" for x in columns)]
                for name, line in points.items()]
        peers.table([title, *(f"{x:g}{' MiB' if unit == 's' else ''}" for x in columns)], rows, " ")
    draw(uploads, pages, lists, options.out)
    print(f"drawn: {options.out}")


if __name__ == "__main__":
    main()
