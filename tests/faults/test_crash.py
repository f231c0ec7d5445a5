"""kill -9, at random moments and at every system call of every operation: what was acknowledged is there, nothing else.

A killed process leaves its file system as it was, so this tries the order of the steps; test_power_loss tries fsync.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.common import ROOT, sha256, staged
from support.ledger import SIZES, Ledger
from support.live import running
from support.tracing import CALLS, NO_EXCHANGE, WITHOUT_EXCHANGE, count_calls, points, strace, threads_of, verifying
from support.witness import Version, assert_knows, delete, half_models, listed, patch, perform, post, put, send

OLD, NEW = Version(b"old " * 1000, "old"), Version(b"new!" * 1500, "new")
AMENDED = OLD._replace(description="amended")
KEPT = "kept/app/1/m"
OPERATIONS = {  # name: the version before, the request, the version after
    "publish": (None, lambda key: post(key, NEW), NEW),
    "replace": (OLD, lambda key: put(key, NEW), NEW),
    "delete": (OLD, delete, None),
    "amend": (OLD, lambda key: patch(key, AMENDED), AMENDED),
}
CRASHES = (*CALLS, "sendto")    # the last: the answer is ready and is never sent


def prepare(server, key, version):
    assert perform(server, put(KEPT, OLD)).status in (200, 201)     # which also warms the server up
    if version:
        assert perform(server, put(key, version)).status == 201


def crash_at(server, log, key, operation, kind, call, n, *expressions):
    """The answer that still came, None for none, of an operation whose server dies entering its n-th `call`."""
    thread = threads_of(server)[kind]
    inject = f"inject={call}:signal=KILL:when={n}"
    with strace(log, [thread], "trace=" + ",".join(CRASHES), inject, *expressions):
        answer = perform(server, operation(key))
        if answer:      # the call comes behind the answer or, this time, not at all
            time.sleep(0.05)
    server.stop(signal.SIGKILL)
    return answer


@pytest.mark.parametrize(("name", "model", "expressions"), [
    *((name, "m", ()) for name in OPERATIONS),
    ("publish", "onnx/sub/m", ()), ("replace", "m", (NO_EXCHANGE,)),
], ids=[*OPERATIONS, "publish in a folder", "replace without exchange"])
def test_a_crash_at_any_system_call_leaves_the_old_or_the_new(tmp_path, single, some, say, name, model, expressions):
    before, operation, after = OPERATIONS[name]
    storage, log = tmp_path / "models", tmp_path / "strace.log"
    server = single(storage)
    first = f"count/app/1/{model}"
    prepare(server, first, before)
    counted = count_calls(server, log, lambda: perform(server, operation(first)), CRASHES, *expressions)
    cases = points(counted)
    if expressions:     # all that is new is in the thread that renames; the injections of a tracer are for one thread
        cases = [case for case in cases if case[0] == "task"]
    cases = some(cases, 25 if expressions else 20,
                 always=lambda case: case[1] not in ("openat", "write", "mkdirat", "sendto") and case[2] % 2)
    outcomes, wrong = {before: 0, after: 0}, []
    for number, (kind, call, n) in enumerate(cases):
        key = f"n{number}/app/1/{model}"
        prepare(server, key, before)
        answer = crash_at(server, log, key, operation, kind, call, n, *expressions)
        assert answer is None or answer.status in (200, 201), (kind, call, n, answer)
        server = single(storage)
        where = f"killed at {call} {n} of the {kind} thread"
        found = assert_knows(server, key, *((after,) if answer else (before, after)))
        assert_knows(server, KEPT, OLD)
        outcomes[found] += 1
        if rest := half_models(storage) + staged(storage):
            wrong.append(f"{where}: {rest} left")
        if found:
            assert perform(server, delete(key)).status == 200
    assert listed(server) - {first, "warm/app/1/m"} == {KEPT}
    say(f"{name} {model}{' without exchange' if expressions else ''}: {len(cases)} crashes, of "
        f"{sum(counted.values())} calls; {outcomes[before]} left the old, {outcomes[after]} the new")
    assert wrong == []
    assert all(outcomes.values()), "it died before everything or after everything, each time"


RESULT = (("mkdirat", 1), ("mkdirat", 5), ("fsync", 1), ("fsync", 8), ("renameat", 1), ("fsync", 9), ("fsync", 13))


@pytest.mark.parametrize(("call", "n"), RESULT, ids=str)
def test_a_crash_while_a_result_is_written_leaves_the_metadata_as_it_was_or_with_it(tmp_path, call, n):
    storage, large = tmp_path / "models", OLD._replace(data=bytes(1 << 20))
    with running(storage, MODEL_VERIFY_RATE="1M") as server:
        assert perform(server, put("p/app/1/m", large)).status == 201
        with (storage / "p/app/1/m/model").open("r+b") as file:
            file.write(b"bad")
        with strace(tmp_path / "log", [verifying(server)], f"trace={call}", f"inject={call}:signal=KILL:when={n}"):
            server.process.wait(20)
        assert server.stop() == -signal.SIGKILL
    with running(storage) as server:
        known, state = (send(server, "GET", path).json for path in ("/models/p/app/1/m/info", "/health"))
        assert known["sha256"] == sha256(large.data)
        written = known["verified_at"] is not None
        assert written == (call == "fsync" and n > 8), "the mark is first and has seven, then comes metadata.json"
        assert (known["corrupt"], state["status"]) == (written, "degraded" if written else "healthy")
        assert send(server, "GET", "/models/p/app/1/m").status == (409 if written else 200)
        assert half_models(storage) == []
        assert staged(storage)[-1:] == (["corrupt/p/app/1/m"] if written else []), "which is the mark"


def dies_at_start(storage, tmp_path, call, n):
    """Whether a server that is killed at its n-th `call` gets to it before it serves."""
    output = tmp_path / "output"
    tracer = ("strace", "-f", "-D", "-qq", "-o", str(tmp_path / "strace.log"), "-e", f"trace={call}",
              "-e", f"inject={call}:signal=KILL:when={n}")
    with output.open("w") as out:
        server = subprocess.Popen([*tracer, sys.executable, str(ROOT / "model_server.py")], stdout=out, stderr=out,
                                  env={**os.environ, "MODEL_STORAGE_PATH": str(storage), "SERVER_HOST": "127.0.0.1",
                                       "SERVER_PORT": "0", "PYTHONDONTWRITEBYTECODE": "1"})
    while server.poll() is None:
        if " serving " in output.read_text():
            server.kill()
            server.wait()
            return False
        time.sleep(0.005)
    return True


def test_a_crash_while_a_crash_is_mended_is_mended_too(tmp_path, single, some, say):
    """The worst case of the file systems without exchange: the old version stands aside when the server starts."""
    storage, log, key = tmp_path / "models", tmp_path / "strace.log", "twice/app/1/m"
    server = single(storage)
    prepare(server, key, OLD)
    counted = count_calls(server, log, lambda: perform(server, put(key, NEW)), CRASHES, NO_EXCHANGE)
    assert perform(server, put(key, OLD)).status == 200
    died, wrong, crashed = 0, [], []
    for kind, call, n in points(counted):
        if kind == "task" and call in ("rename", "renameat"):
            crash_at(server, log, key, lambda key: put(key, NEW), kind, call, n, NO_EXCHANGE)
            if (storage / ".staging/replaced" / key).exists():
                crashed.append(storage.with_name(f"crashed-{call}-{n}"))
                shutil.copytree(storage, crashed[-1])
            server = single(storage)
            perform(server, put(key, OLD))
    server.stop(signal.SIGKILL)
    assert len(crashed) == 2, "the old version stands aside before the new one is in place, and after"
    # of the two calls that are left out an interpreter makes hundreds on its own
    cases = [(call, where) for where in crashed for call in CALLS if call not in ("openat", "write")]
    for call, where in some(cases, 8):
        expected = NEW if (where / key).exists() else OLD
        for n in some(range(1, 100), 20):
            shutil.rmtree(storage)
            shutil.copytree(where, storage)
            reached = dies_at_start(storage, tmp_path, call, n)
            died += reached
            with running(storage) as server:
                assert_knows(server, key, expected)
                assert_knows(server, KEPT, OLD)
                wrong += [f"{call} {n}: {name}" for name in staged(storage) + half_models(storage)]
            if not reached:
                break
    assert wrong == []
    say(f"{died} starts killed while they mended a crash")


@pytest.mark.parametrize("prefix", [(), WITHOUT_EXCHANGE], ids=["", "without exchange"])
def test_a_kill_at_a_random_moment_loses_nothing(tmp_path, count, say, prefix):
    rounds = count(10, 150)
    ledger, seed = Ledger(), random.randrange(10**9)
    moments = random.Random(seed)
    begun, changes, left = time.monotonic(), 0, []
    for number in range(rounds):
        with running(tmp_path / "models", *prefix) as server:
            def kill(workers, server=server):
                while sum(worker.acknowledged for worker in workers) < 3:
                    time.sleep(0.001)
                time.sleep(moments.random() * 0.3)
                server.process.kill()

            changes += ledger.disturb(server, 6, SIZES, kill, f"{seed} {number}")
            server.stop(signal.SIGKILL)
            assert not re.search("Traceback|ERROR", server.log()), server.log()[-5000:]
        with running(tmp_path / "models") as server:
            assert ledger.losses(server) == [], f"round {number} of seed {seed}"
            assert half_models(server.storage) == []
            left += staged(server.storage)
    assert left == []
    say(f"{rounds} kills at random moments, {changes} acknowledged changes, none lost, "
        f"{time.monotonic() - begun:.0f} s")
