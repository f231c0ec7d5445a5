"""Aliases when something goes wrong: kill -9 at each system call, two servers that move them while others read."""

import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.common import sha256, staged
from support.live import several
from support.tracing import CALLS, count_calls, points, strace, threads_of
from support.witness import Version, attempt, perform, put, send

APP, ALIAS = "/models/p/a", "/models/p/a/@production"
VERSIONS = {"1": Version(b"one" * 1000, "one"), "2": Version(b"two" * 2000, "two")}
CRASHES = (*CALLS, "symlinkat", "sendto")
MOVES = {   # what is asked, where it points before and after
    "made": (("PUT", f"{ALIAS}?version=2", b""), None, "2"),
    "moved": (("PUT", f"{ALIAS}?version=2", b""), "1", "2"),
    "removed": (("DELETE", ALIAS, None), "1", None),
}


def upload_both(server):
    for version, model in VERSIONS.items():
        assert perform(server, put(f"p/a/{version}/m", model)).status in (200, 201)


def set_to(server, version):
    """Lets the alias point there, None: removes it."""
    answer = send(server, *(("PUT", f"{ALIAS}?version={version}", b"") if version else ("DELETE", ALIAS)))
    assert answer.status in (200, 201, 404)


def pointing(server):
    """Where the alias points, in which reading through it and the list of the application have to agree."""
    version = send(server, "GET", APP).json["aliases"].get("@production")
    got = send(server, "GET", f"{ALIAS}/m")
    assert (got.status, got.headers.get("x-model-version")) == ((200, version) if version else (404, None))
    assert version is None or got.body == VERSIONS[version].data
    return version


@pytest.mark.parametrize("name", MOVES)
def test_a_crash_at_any_system_call_leaves_an_alias_as_it_was_or_as_it_is_to_be(tmp_path, single, some, say, name):
    request, before, after = MOVES[name]
    storage, log = tmp_path / "models", tmp_path / "strace.log"
    server = single(storage)
    upload_both(server)
    set_to(server, before)
    counted = count_calls(server, log, lambda: perform(server, request), CRASHES)
    outcomes, wrong = Counter(), []
    cases = some(points(counted), 10, always=lambda case: case[1] in ("renameat", "rename", "symlinkat", "fsync"))
    for kind, call, n in cases:
        set_to(server, before)
        inject = f"inject={call}:signal=KILL:when={n}"
        with strace(log, [threads_of(server)[kind]], "trace=" + ",".join(CRASHES), inject):
            answer = perform(server, request)
            time.sleep(0.05 if answer else 0)   # the call comes behind the answer or, this time, not at all
        server.stop(signal.SIGKILL)
        server = single(storage)
        found = pointing(server)
        assert found in ((after,) if answer else (before, after)), (kind, call, n, found)
        outcomes[found] += 1
        wrong += [f"killed at {call} {n} of the {kind} thread: {rest} left" for rest in staged(storage)]
    assert wrong == [] and outcomes.keys() == {before, after}
    say(f"{name}: {len(cases)} crashes of {sum(counted.values())} calls; {dict(outcomes)}")


@pytest.fixture(params=[1, 2], ids=["one server", "two servers"])
def servers(request, tmp_path):
    with several(request.param, tmp_path / "models") as started:
        yield started


def test_an_alias_is_moved_and_readers_see_one_version_whole(servers, count, say):
    rounds, done, wrong, read = count(100, 2000), threading.Event(), [], Counter()
    upload_both(servers[0])
    set_to(servers[0], "1")

    def watch(n):
        while not done.is_set():
            got = attempt(servers[n % len(servers)], "GET", f"{ALIAS}/m")
            version = got and got.headers.get("x-model-version")
            if not got or got.status != 200 or got.headers["etag"] != f'"{sha256(VERSIONS[version].data)}"' \
                    or got.body != VERSIONS[version].data:
                wrong.append(got)
            read[version] += 1

    readers = [threading.Thread(target=watch, args=(n,)) for n in range(4)]
    [reader.start() for reader in readers]
    for number in range(rounds):
        version = "21"[number % 2]
        set_to(servers[number // 2 % len(servers)], version)
        assert {pointing(server) for server in servers} == {version}, "a move shows at once"
    done.set()
    [reader.join() for reader in readers]
    assert wrong == [] and len(read) == 2
    say(f"{rounds} moves, {sum(read.values())} reads, each of one version whole")


def test_of_16_clients_that_move_an_alias_from_one_version_one_does(servers, count):
    for version in range(16):
        assert perform(servers[0], put(f"p/a/{version}/m", Version(b"%d" % version, "x"))).status == 201
    assert send(servers[0], "PUT", f"{ALIAS}?version=0", b"").status == 201
    at = "0"
    for _ in range(count(5, 50)):
        barrier = threading.Barrier(16)

        def move(n, barrier=barrier, at=at):
            barrier.wait()
            server = servers[n % len(servers)]
            return send(server, "PUT", f"{ALIAS}?version={n}", b"", If_Match=f'"{at}"').status

        with ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(move, range(16)))
        # the one that leaves it where it is lets another one move it, too
        winners = [str(n) for n, status in enumerate(statuses) if status == 200]
        assert len(set(winners) - {at}) <= 1 and set(statuses) <= {200, 412} and winners
        at = (set(winners) - {at} or {at}).pop()
        assert send(servers[-1], "GET", f"{ALIAS}/m").body == at.encode()


def test_an_alias_never_points_at_a_version_that_is_deleted_at_that_moment(servers, count, say):
    outcomes, late, step, made = Counter(), 0.0, 0.001, False
    with ThreadPoolExecutor(3) as pool:
        for number in range(count(60, 1500)):
            for name in "ab":
                assert perform(servers[0], put(f"p/a/{number}/{name}", VERSIONS["1"])).status == 201
            start, path = threading.Barrier(3), f"{APP}/{number}"
            whole = [("DELETE", f"{path}?recursive=true", None)] * 2
            single = [("DELETE", f"{path}/{name}", None) for name in "ab"]
            requests = [*(whole if number % 2 else single), ("PUT", f"{ALIAS}?version={number}", b"")]

            def ask(n, start=start, requests=requests, late=late):
                start.wait()
                time.sleep(max(0, late if n == 2 else -late))
                return send(servers[n % len(servers)], *requests[n]).status

            statuses = list(pool.map(ask, range(3)))
            assert set(statuses[:2]) <= {200, 404, 409} and statuses[2] in (200, 201, 404)
            found = {send(server, "GET", f"{ALIAS}?format=txt").status for server in servers}
            aliased = {send(server, "GET", APP).json["aliases"].get("@production") for server in servers}
            before, made = made, statuses[2] != 404
            # later if it came before the deletes, else earlier: so it meets them, at whatever pace the machine goes
            step = max(step / 2, 0.0001) if made != before else step * 1.5
            late += step if made else -step
            assert (found, aliased) == (({200}, {str(number)}) if made else ({404}, {None})), statuses
            outcomes[made] += 1
            if made:
                assert send(servers[0], "DELETE", f"{path}?recursive=true&aliases=true").status == 200
    say(f"{outcomes[True]} aliases came before, {outcomes[False]} after their version was deleted")
    assert outcomes[True] and outcomes[False]
