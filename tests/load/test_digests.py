"""What it costs to know where the models of a digest are: some bytes for each model, and no walk of the tree."""

import gc
import hashlib
import json
import sys
import time
import tracemalloc

from resumption.instant import Hints
from storage import Storage

MODELS, MOST = 10_000, 100      # bytes for each: 10 MB for 100,000


def digest(number):
    return hashlib.sha256(b"%d" % number).hexdigest()


def plant(root):
    for number in range(MODELS):
        directory = root / f"p{number // 1000}" / f"a{number // 100 % 10}" / f"{number // 10 % 10}" / f"m{number % 10}"
        directory.mkdir(parents=True)
        (directory / "model").write_bytes(b"%d" % number)
        (directory / "metadata.json").write_text(json.dumps({
            "size": (directory / "model").stat().st_size, "sha256": digest(number)}))


def test_the_models_of_a_digest_are_found_without_a_walk_and_with_few_bytes_for_each(tmp_path, say):
    plant(tmp_path)
    looks, looking = [], False
    sys.addaudithook(lambda event, _: looks.append(event) if looking and event.startswith(("open", "os.")) else None)
    with Storage(tmp_path) as store:
        assert store.index.total().models == MODELS
        tracemalloc.start()
        try:
            hints = Hints(store)
            for place, names in store.index.known():
                hints.note(place, names)
            hints.learn(lambda: False)
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert taken < MODELS * MOST
        begun, looking = time.perf_counter(), True
        found = [list(hints.find(digest(number))) for number in range(-100, MODELS, 100)]
        looking, took = False, time.perf_counter() - begun
        assert looks == [] and [len(keys) for keys in found] == [0] + [1] * 100
        assert all(store.info(key).sha256 == digest(100 * number) for number, (key,) in enumerate(found[1:]))
    say(f"{taken / MODELS:.0f} bytes a model, {took / len(found) * 1000:.3f} ms a look-up")
