"""Whole versions, replaced while they are read, written and killed: always one of them, and never a mixture."""

import http.client
import random
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.common import eventually, staged
from support.live import running, several
from support.tars import tar_with
from support.tracing import CALLS, NO_EXCHANGE, WITHOUT_EXCHANGE, count_calls, points, strace, threads_of
from support.versions import digests, generation, in_tar, listed, number_of, put_version, stored
from support.witness import attempt, fill, send

CRASHES = (*CALLS, "sendto")
KINDS = {"one server": (1, ()), "two servers": (2, ()), "two servers without exchange": (2, WITHOUT_EXCHANGE)}


@pytest.fixture(params=KINDS)
def servers(request, tmp_path):
    number, prefix = KINDS[request.param]
    with several(number, tmp_path / "models", *prefix) as started:
        yield started


def half_versions(root):
    """Directories that have one file of a model and not the other."""
    return [path for path in root.rglob("*") if path.is_dir() and ".staging" not in path.parts
            and len({"model", "metadata.json"} & {each.name for each in path.iterdir() if each.is_file()}) == 1]


def assert_clean(servers):
    for server in servers:
        assert not re.search("Traceback| ERROR ", server.log()), server.log()[-5000:]
    assert staged(servers[0].storage) == [] and half_versions(servers[0].storage) == []


# ---- readers


def test_readers_of_a_version_that_is_replaced_see_the_one_or_the_other(servers, count, say):
    """As a list, as a tar, and file by file as long as the version's ETag is the same."""
    rounds, version, done, seen, wrong = count(25, 500), "p/app/1", threading.Event(), Counter(), []
    assert put_version(servers[0], version, 0).status == 201
    for server in servers:      # whose lists may lag by two seconds
        eventually(lambda server=server: listed(server, version)([0]) == 0)

    def read(n):
        server, way = servers[n % len(servers)], (by_list, by_tar, by_file)[n // 2]
        rests = False
        while not rests and not wrong:      # the last look is at a version that rests
            rests = done.wait(0.005)        # the writer needs some of the processor, too
            try:
                way(server)
                seen[way.__name__] += 1
            except (http.client.HTTPException, OSError):
                seen[f"{way.__name__} broken off"] += 1
            except AssertionError as error:
                wrong.append(str(error))

    def by_list(server):
        known = range(max(0, written[0] - 60), rounds + 1)
        found = listed(server, version)(known)
        assert isinstance(found, int), f"a mixture in a list, at {written[0]}: {explain(found, known)}"

    def by_tar(server):
        assert in_tar(server, version) is not None

    def by_file(server):
        first = send(server, "GET", f"/models/{version}/f0")
        assert first.status == 200, first
        if "x-version-etag" not in first.headers:   # it was replaced before its version was found
            return
        files = {"f0": first.body}
        for name in generation(int(first.body.split()[0])):
            answer = send(server, "GET", f"/models/{version}/{name}", If_Match=first.headers["x-version-etag"])
            if answer.status in (404, 412):     # it has been replaced since
                seen["by_file given up"] += 1
                return
            assert answer.status == 200, answer
            files[name] = answer.body
        number_of(files)

    written = [0]
    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read, n) for n in range(6)]
        try:
            for number in range(1, rounds + 1):
                answer = put_version(servers[number % len(servers)], version, number)
                assert answer and answer.status == 200, answer
                written[0] = number
                if wrong:
                    break
        finally:
            done.set()
        for reader in readers:
            reader.result(60)
    assert wrong == []
    assert all(stored(server, version) == rounds for server in servers[:1])
    assert_clean(servers)
    assert seen["by_list"] and seen["by_tar"] and seen["by_file"], seen
    say(f"{rounds} replacements at {len(servers)} servers, {dict(seen)}, no mixture")


def explain(found, known):
    return {name: [number for number in known if digests(number).get(name) == digest] for name, digest in found.items()}


# ---- writers


def test_single_uploads_into_a_version_that_is_replaced_land_before_or_after(servers, count, say):
    rounds, version, done, wrong, landed = count(8, 200), "p/app/1", threading.Event(), [], Counter()
    assert put_version(servers[0], version, 0).status == 201

    def write(n):
        number = 0
        while not done.is_set() and not wrong:
            number += 1
            answer = attempt(servers[n % len(servers)], "PUT", f"/models/{version}/one/{n}", b"%d" % number)
            if answer is None or answer.status not in (200, 201):
                wrong.append(answer)
            landed[answer.status if answer else None] += 1

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, n) for n in range(6)]
        for number in range(1, rounds + 1):
            answer = put_version(servers[number % len(servers)], version, number)
            assert answer and answer.status == 200, answer
        done.set()
        for writer in writers:
            writer.result(60)
    assert wrong == []
    models = send(servers[0], "GET", f"/models/{version}").json["models"]
    files = {model["model_name"]: send(servers[0], "GET", f"/models/{version}/{model['model_name']}").body
             for model in models}
    assert number_of({name: data for name, data in files.items() if not name.startswith("one/")}) == rounds
    assert put_version(servers[-1], version, 0).status == 200
    assert stored(servers[-1], version) == 0
    assert_clean(servers)
    assert landed[201] > 0, "each of them is created anew after a replacement"
    say(f"{rounds} replacements while {sum(landed.values())} models were uploaded, {landed[201]} into a new version")


def test_of_8_writers_with_one_condition_one_wins(servers, count):
    for number in range(count(3, 30)):
        version, barrier = f"p/app/{number}", threading.Barrier(8)

        def write(n, version=version, barrier=barrier, **headers):
            barrier.wait()
            return put_version(servers[n % len(servers)], version, n, **headers)

        with ThreadPoolExecutor(8) as pool:     # of one version in one second, the same files have the same ETag
            created = list(pool.map(lambda n: write(n, If_None_Match="*"), range(8)))
            assert Counter(answer.status for answer in created) == {201: 1, 412: 7}
            winner = next(n for n, answer in enumerate(created) if answer.status == 201)
            eventually(lambda version=version, winner=winner: stored(servers[-1], version) == winner)
            barrier.reset()
            etag = created[winner].headers["etag"]
            replaced = list(pool.map(lambda n, etag=etag: write(n, If_Match=etag), range(8, 16)))
        assert Counter(answer.status for answer in replaced) == {200: 1, 412: 7}
    assert_clean(servers)


# ---- the worst moments


OPERATIONS = {"create": (None, ()), "replace": (1, ()), "replace without exchange": (1, (NO_EXCHANGE,))}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_crash_at_any_system_call_leaves_the_old_version_or_the_new_one(tmp_path, single, some, say, name):
    before, expressions = OPERATIONS[name]
    storage, log = tmp_path / "models", tmp_path / "strace.log"
    server = single(storage)

    def prepare(version):
        assert put_version(server, "kept/app/1", 7).status in (200, 201)    # which also warms it up
        if before is not None:
            assert put_version(server, version, before).status == 201

    prepare("count/app/1")
    counted = count_calls(server, log, lambda: put_version(server, "count/app/1", 2), CRASHES, *expressions)
    cases = points(counted)
    if expressions:     # what is new is in the thread that renames; the injections of a tracer are for one thread
        cases = [case for case in cases if case[0] == "task"]
    cases = some(cases, 16, always=lambda case: case[1].startswith("rename"))
    outcomes, wrong = Counter(), []
    for number, (kind, call, n) in enumerate(cases):
        version = f"n{number}/app/1"
        prepare(version)
        with strace(log, [threads_of(server)[kind]], "trace=" + ",".join(CRASHES),
                    f"inject={call}:signal=KILL:when={n}", *expressions):
            answer = put_version(server, version, 2)
            if answer:
                time.sleep(0.05)
        server.stop(signal.SIGKILL)
        assert answer is None or answer.status in (200, 201), (kind, call, n, answer)
        server = single(storage)
        found = stored(server, version)
        outcomes[found] += 1
        if found not in ((2,) if answer else (before, 2)) or stored(server, "kept/app/1") != 7:
            wrong.append(f"killed at {call} {n} of the {kind} thread: {found}")
        if rest := half_versions(storage) + staged(storage):
            wrong.append(f"killed at {call} {n} of the {kind} thread: {rest} left")
    assert wrong == []
    say(f"{name} a version: {len(cases)} crashes of {sum(counted.values())} calls, {dict(outcomes)}")
    assert outcomes[before] and outcomes[2], "it died before everything or after everything, each time"


@pytest.mark.parametrize("prefix", [(), WITHOUT_EXCHANGE], ids=["", "without exchange"])
def test_a_kill_at_a_random_moment_leaves_a_whole_version(tmp_path, count, say, prefix):
    last, rounds, moments, done = 0, count(6, 100), random.Random(), 0
    for number in range(rounds):
        with running(tmp_path / "models", *prefix) as server:
            killer = threading.Timer(0.05 + moments.random() * 0.4, server.process.kill)
            killer.start()
            tried = last
            while (answer := put_version(server, "p/app/1", tried + 1)) and answer.status in (200, 201):
                last = tried = tried + 1
                done += 1
            tried += 1
            killer.join()
            server.stop(signal.SIGKILL)
        with running(tmp_path / "models") as server:
            found = stored(server, "p/app/1")
            assert found in ((last or None), tried), f"round {number}: {last} was acknowledged and {found} is there"
            last = found or 0
            assert staged(server.storage) == [] and half_versions(server.storage) == []
    say(f"{rounds} kills, {done} versions acknowledged, the last one or the next was there each time")


def test_a_full_disk_leaves_the_old_version_and_nothing_else(small_disk):
    with running(small_disk / "models") as server:
        assert put_version(server, "p/app/1", 1).status == 201
        tar = tar_with({f"m{n}": random.randbytes(400_000) for n in range(12)})
        answer = send(server, "PUT", "/models/p/app/1", iter([tar]))    # in chunks, of no known length
        assert answer.status == 507, answer
        assert stored(server, "p/app/1") == 1 and staged(server.storage) == []
        fill(small_disk / "filled")
        assert put_version(server, "p/app/1", 2).status == 507
        assert stored(server, "p/app/1") == 1 and staged(server.storage) == []
        (small_disk / "filled").unlink()
        assert put_version(server, "p/app/1", 2).status == 200
        assert stored(server, "p/app/1") == 2
        assert generation(2)
