"""Many clients at the same names, by one server process or two on one storage: one winner, no 5xx, nothing torn."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.common import sha256
from support.live import running, several
from support.tracing import WITHOUT_EXCHANGE
from support.witness import Version, assert_whole, attempt, delete, listed, patch, perform, post, put, see, send

WRITERS = 16
LAG = 2.0       # seconds that a list may lag behind what another process did; everything else may not at all
KINDS = {"one process": (1, ()), "two processes": (2, ()), "one process without exchange": (1, WITHOUT_EXCHANGE),
         "two processes without exchange": (2, WITHOUT_EXCHANGE)}


@pytest.fixture(params=KINDS)
def servers(request, tmp_path):
    """Servers on one storage directory."""
    number, prefix = KINDS[request.param]
    with several(number, tmp_path / "models", *prefix) as started:
        yield started


def everywhere(number, act):
    """The results of act(0) to act(number - 1), begun at the same moment in a thread each."""
    barrier = threading.Barrier(number)

    def begin(n):
        barrier.wait()
        return act(n)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(begin, range(number)))


def assert_clean(servers):
    for server in servers:
        assert "Traceback" not in server.log() and " ERROR " not in server.log(), server.log()[-5000:]
    assert_whole(*servers)


def test_of_16_writers_with_if_none_match_one_wins(servers, count, say):
    rounds = count(6, 50)
    for number in range(rounds):
        key = f"p{number % 3}/app/{number}/m"
        versions = [Version(f"{number} {n}".encode() * 5000, f"writer{n}") for n in range(WRITERS)]
        answers = everywhere(WRITERS, lambda n, key=key, versions=versions: perform(
            servers[n % len(servers)], (put, post)[n // 2 % 2](key, versions[n]), If_None_Match="*"))
        statuses = [answer.status for answer in answers]
        assert Counter(statuses) == {201: 1, 412: WRITERS - 1}, f"round {number}"
        for server in servers:
            assert see(server, key) == versions[statuses.index(201)]
    assert_clean(servers)
    say(f"{rounds} rounds of {WRITERS} writers on one name at {len(servers)} servers: one winner each")


def test_of_16_writers_with_if_match_each_old_version_is_replaced_once(servers, count):
    key = "p/app/1/m"
    version = Version(b"start", "start")
    assert perform(servers[0], put(key, version)).status == 201
    for number in range(count(4, 50)):
        etag = f'"{sha256(version.data)}"'
        versions = [Version(f"{number} {n}".encode() * 500, f"writer{n}") for n in range(WRITERS)]
        statuses = [answer.status for answer in everywhere(WRITERS, lambda n, etag=etag, versions=versions: perform(
            servers[n % len(servers)], put(key, versions[n]), If_Match=etag))]
        assert Counter(statuses) == {200: 1, 412: WRITERS - 1}, f"round {number}"
        version = versions[statuses.index(200)]
        assert see(servers[-1], key) == version
    assert_clean(servers)


def test_delete_upload_list_and_download_together(servers, count, say):
    """Six names in two versions are fought for; what a download gives is always one upload whole, and never a 5xx."""
    until = time.monotonic() + count(2, 45)
    keys = [f"p/app/{n % 2}/m{n}" for n in range(6)]
    sent, wrong, done = {}, [], Counter()

    def write(n):
        chance = random.Random(n)
        while time.monotonic() < until and not wrong:
            key, act = chance.choice(keys), chance.choice((put, put, post, delete, patch))
            description = f"of{chance.randrange(10**9)}"
            data = description.encode() * chance.choice((1, 100, 9000))
            version = Version(data, description)
            if act is patch:    # a patch says who wrote the bytes that it found, hence the stage, which no upload has
                version = Version(b"", description, "patched")
            else:
                sent[sha256(data)] = description
            note(n, act, key, perform(servers[n % len(servers)], act(key) if act is delete else act(key, version)),
                 (200, 404) if act in (delete, patch) else (200, 201))

    def note(n, act, key, answer, allowed):
        name = act if isinstance(act, str) else act.__name__
        done[name] += 1
        if answer is None or answer.status not in allowed:
            wrong.append((name, key, answer and (answer.status, answer.body[:300])))

    def read(n):
        chance, server = random.Random(n), servers[n % len(servers)]
        while time.monotonic() < until and not wrong:
            key = chance.choice(keys)
            model = attempt(server, "GET", f"/models/{key}")
            note(n, "download", key, model, (200, 404))
            if model and model.status == 200 and model.headers.get("etag") != f'"{sha256(model.body)}"':
                wrong.append(("torn download", key, model.headers))
            for answer in (attempt(server, "GET", f"/models/{key}/info"), attempt(server, "GET", "/models/list")):
                note(n, "read", key, answer, (200, 404))
                for entry in answer.json.get("models", [answer.json]) if answer and answer.status == 200 else ():
                    whole = entry["sha256"] in sent and entry["uploaded_at"]
                    if not whole or (entry["metadata"] == {"stage": "test"}
                                     and entry["description"] != sent[entry["sha256"]]):
                        wrong.append(("torn info", key, entry))

    everywhere(12, lambda n: write(n) if n < 7 else read(n))
    assert not wrong, wrong[:5]
    assert_clean(servers)
    there = {key for key in keys if see(servers[0], key)}
    if len(servers) > 1:
        time.sleep(LAG)
    assert [listed(server) for server in servers] == [there] * len(servers)
    say(f"{dict(done)} at {len(servers)} servers, none wrong")


def test_a_delete_that_prunes_never_takes_an_upload_with_it(servers, count):
    """Each writer makes and deletes a model in the one directory that all the others want to prune, too."""
    def write(n):
        server = servers[n % len(servers)]
        for number in range(count(15, 200)):
            key = f"only/app/{number % 2}/m{n}"
            version = Version(f"{n} {number}".encode(), f"of{n}")
            assert (made := perform(server, put(key, version))).status == 201, made
            assert see(servers[(n + 1) % len(servers)], key) == version, "acknowledged and not there"
            again = version._replace(data=b"again " + version.data)
            assert (made := perform(server, put(key, again))).status == 200, made
            assert see(servers[(n + 1) % len(servers)], key) == again, "acknowledged and not there"
            assert perform(servers[(n + number) % len(servers)], delete(key)).status == 200

    everywhere(8, write)
    assert_clean(servers)
    if len(servers) > 1:
        time.sleep(LAG)
    assert listed(servers[0]) == set()
    assert send(servers[0], "GET", "/models/only").json["total_models"] == 0


def test_a_model_and_what_would_be_below_it_are_never_stored_both(servers, count, say):
    """First uploads alone, of which one name wins; then deletes among them, which prune what others make."""
    rounds = count(5, 50)
    for number in range(rounds):
        keys = [f"p/app/{number}/x", f"p/app/{number}/x/y", f"p/app/{number}/x/y/z"]
        version = Version(f"{number}".encode() * 3000, f"of{number}")
        answers = everywhere(WRITERS, lambda n, keys=keys, version=version: (
            keys[n % 3], perform(servers[n // 3 % len(servers)], (put, post)[n // 6 % 2](keys[n % 3], version)).status))
        stored = {key for key, status in answers if status in (200, 201)}
        assert len(stored) == 1 and {status for key, status in answers if key not in stored} == {409}, answers
        for server in servers:
            assert {key for key in keys if see_model(server, key)} == stored

    def disturb(n):
        chance = random.Random(n)
        for _ in range(count(15, 200)):
            act, key = chance.choice((put, put, delete)), f"p/app/mixed/x{chance.choice(('', '/y', '/y/z'))}"
            data = Version(f"{n}".encode() * chance.choice((1, 3000)), f"of{n}")
            answer = perform(chance.choice(servers), act(key) if act is delete else act(key, data))
            assert answer.status in (200, 201, 404, 409), answer

    everywhere(8, disturb)
    assert_clean(servers)
    time.sleep(LAG if len(servers) > 1 else 0)
    left = {key for key in listed(servers[0]) if "/mixed/" in key}
    assert len(left) <= 1 and all(see_model(server, key) for server in servers for key in left)
    say(f"{rounds} rounds of {WRITERS} writers for a model and two below it at {len(servers)} servers")


def see_model(server, key):
    """see(), but None for a folder, which has a list and no info."""
    return see(server, key) if send(server, "GET", f"/models/{key}/info").status == 200 else None


def test_a_process_that_starts_leaves_the_drafts_of_another_alone(tmp_path, count):
    with running(tmp_path / "models") as first:
        for number in range(count(3, 20)):
            version = Version(random.randbytes(3 << 20), f"of{number}")
            method, target, data = put(f"p/app/1/m{number}", version)
            with first.connect() as wire:
                wire.send(f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n",
                          data[:1 << 20])
                with running(tmp_path / "models") as second:
                    wire.send(data[1 << 20:])
                    assert wire.response()[0] == 201
                    assert see(second, f"p/app/1/m{number}") == version
        assert_clean([first])
