"""Two servers on two mounts of one GlusterFS volume of three replicas; deploy/prove_scaling.sh makes it and runs this.

The marker `scaling` leaves these tests out of a plain run.
"""

import collections
import contextlib
import os
import random
import secrets
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from faults.test_aliases import (
    test_an_alias_is_moved_and_readers_see_one_version_whole,
    test_an_alias_never_points_at_a_version_that_is_deleted_at_that_moment,
    test_of_16_clients_that_move_an_alias_from_one_version_one_does,
)
from faults.test_races import (
    assert_clean,
    everywhere,
    test_a_delete_that_prunes_never_takes_an_upload_with_it,
    test_delete_upload_list_and_download_together,
    test_of_16_writers_with_if_match_each_old_version_is_replaced_once,
    test_of_16_writers_with_if_none_match_one_wins,
)
from faults.test_resumption import (
    test_of_16_clients_on_one_upload_all_get_there,
    test_what_one_server_has_of_an_upload_the_other_continues_and_the_newest_writer_wins,
    test_when_a_server_dies_the_other_one_continues_its_uploads,
)
from support.common import sha256
from support.live import running
from support.proxy import TRUSTED, proxy, tls
from support.witness import Version, half_models, listed, perform, put, see

__all__ = [
    "test_a_delete_that_prunes_never_takes_an_upload_with_it",
    "test_an_alias_is_moved_and_readers_see_one_version_whole",
    "test_an_alias_never_points_at_a_version_that_is_deleted_at_that_moment",
    "test_delete_upload_list_and_download_together",
    "test_of_16_clients_on_one_upload_all_get_there",
    "test_of_16_clients_that_move_an_alias_from_one_version_one_does",
    "test_of_16_writers_with_if_match_each_old_version_is_replaced_once",
    "test_of_16_writers_with_if_none_match_one_wins",
    "test_what_one_server_has_of_an_upload_the_other_continues_and_the_newest_writer_wins",
    "test_when_a_server_dies_the_other_one_continues_its_uploads",
    "tls",
]

pytestmark = pytest.mark.scaling
PART = 1 << 20


@pytest.fixture
def count():
    """As in the fault suite; SCALING_ROUNDS=300 does as much as its long version."""
    rounds = int(os.environ.get("SCALING_ROUNDS") or "0")
    return lambda short, long: max(1, long * rounds // 300) if rounds else short


@pytest.fixture
def storages():
    """The same new directory, seen through either mount."""
    if "SCALING_MOUNTS" not in os.environ:
        pytest.fail("there is no volume: deploy/prove_scaling.sh makes it and runs these tests")
    name = secrets.token_hex(4)
    places = [Path(mount) / name / "models" for mount in os.environ["SCALING_MOUNTS"].split(":")]
    places[0].mkdir(parents=True)
    return places


@pytest.fixture
def servers(storages):
    with running(storages[0], **TRUSTED) as first, running(storages[1], **TRUSTED) as second:
        yield [first, second]
        for server in (first, second):  # seen when a test fails
            print(*[line for line in server.lines if " access " not in line], sep="")


def gluster(*command):
    done = subprocess.run(["gluster", "--mode=script", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def brick(number):
    """The process that keeps one replica."""
    place = Path("/run/gluster/vols") / os.environ["SCALING_VOLUME"]
    file, = place.glob(f"*-bricks-{number}.pid")
    return int(file.read_text())


def heal(seconds=120):
    """Brings dead bricks back and waits until each has what it missed; says how long that took."""
    begun = time.monotonic()
    gluster("volume", "start", os.environ["SCALING_VOLUME"], "force")
    while True:
        time.sleep(0.5)
        rows = []
        with contextlib.suppress(AssertionError):   # refused for the first moments
            gluster("volume", "heal", os.environ["SCALING_VOLUME"])
            rows = gluster("volume", "heal", os.environ["SCALING_VOLUME"], "info").splitlines()
            left = [row.rpartition(" ")[2] for row in rows if row.startswith("Number of entries")]
            if left == ["0"] * 3:
                return time.monotonic() - begun
        assert time.monotonic() < begun + seconds, rows


def begin(server, key, data):
    """An upload of which the first half has been sent."""
    wire = server.connect(60)
    wire.send(f"PUT /models/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n", data[:len(data) // 2])
    return wire


def test_what_one_server_acknowledged_the_other_has_at_once(servers, say):
    waits, sizes = [], collections.Counter()
    for number in range(60):
        key, server, other = f"p/app/{number % 5}/m{number % 7}", servers[number % 2], servers[(number + 1) % 2]
        version = Version(random.randbytes(random.choice((10, 10_000, 2 * PART))), f"of{number}")
        begun = time.monotonic()
        assert perform(server, put(key, version)).status in (200, 201)
        waits.append(time.monotonic() - begun)
        sizes[len(version.data)] += 1
        assert see(other, key) == see(server, key) == version
    assert_clean(servers)
    say(f"{len(waits)} uploads, each read at once through the other mount; median {sorted(waits)[30] * 1000:.0f} ms")


def test_the_speed_of_one_server_and_of_two(servers, say):
    """Figures alone: all three replicas are on one disk here, which writes each byte three times."""
    data = random.randbytes(128 * PART)

    def timed(act, number):
        begun = time.monotonic()
        everywhere(number, act)
        return f"{number * 128 / (time.monotonic() - begun):.0f} MiB/s"

    def up(n):
        assert requests.put(f"{servers[n].url}/models/p/app/1/m{n}", data=data).status_code in (200, 201)

    def down(n):
        assert len(requests.get(f"{servers[n].url}/models/p/app/1/m{n}").content) == len(data)

    say(f"up {timed(up, 1)} at one server, {timed(up, 2)} at two; down {timed(down, 1)} and {timed(down, 2)}")


def test_a_reader_in_the_middle_of_the_old_model_finishes_it_though_the_other_server_replaces_it(servers):
    data = random.randbytes(40 * PART)
    assert perform(servers[0], put("p/app/1/m", Version(data, "old"))).status == 201
    with servers[0].connect(60) as wire:
        wire.send("GET /models/p/app/1/m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        status, headers = wire.head()
        first = wire.file.read(PART)
        new = Version(b"new", "new")
        assert perform(servers[1], put("p/app/1/m", new)).status == 200
        assert see(servers[0], "p/app/1/m") == new
        assert status == 200 and sha256(first + wire.file.read()) == headers["x-checksum-sha256"] == sha256(data)


def test_a_server_that_starts_leaves_the_drafts_of_the_other_alone(servers, storages):
    data = random.randbytes(6 * PART)
    for number in range(5):
        with begin(servers[0], f"p/app/1/m{number}", data) as wire, running(storages[1]) as third:
            wire.send(data[len(data) // 2:])
            assert wire.response()[0] == 201
            assert see(third, f"p/app/1/m{number}").data == data
    assert_clean(servers)


def write_until_it_dies(server, last):
    """Replaces one model again and again; gives the version that was acknowledged last, and the one after it."""
    for number in range(10_000):
        version = Version(f"{time.monotonic()} {number}".encode() * 1000, f"of{number}")
        answer = perform(server, put("p/app/1/m", version))
        if answer is None:
            return last, version
        assert answer.status == 200, answer
        last = version
    raise AssertionError("it did not die")


def test_a_server_that_dies_in_the_middle_of_a_replacement_leaves_the_old_or_the_new_model(storages, say):
    """Without RENAME_EXCHANGE a replacement is three renames; kill -9 comes at a moment of chance."""
    with running(storages[1]) as other:
        found = collections.Counter()
        current = Version(b"of the start", "start")
        assert perform(other, put("p/app/1/m", current)).status == 201
        for number in range(12):
            with running(storages[0]) as server, ThreadPoolExecutor(1) as pool:
                writer = pool.submit(write_until_it_dies, server, current)
                time.sleep(0.3 + random.random() * 0.3)
                server.stop(signal.SIGKILL)
                acknowledged, under_way = writer.result()
            seen = see(other, "p/app/1/m")
            assert seen in (acknowledged, under_way)
            found["new" if seen == under_way else "old"] += 1
            current = seen._replace(description=f"again{number}")
            assert perform(other, put("p/app/1/m", current)).status == 200      # nothing stands in the way of the next
            assert see(other, "p/app/1/m") == current
        say(f"kill -9 in the middle of {sum(found.values())} replacements: what is there is {dict(found)}")
    assert half_models(storages[1]) == []


def test_a_brick_dies_in_the_middle_of_an_upload(servers, say):
    data = random.randbytes(64 * PART)
    before = Version(random.randbytes(PART), "before")
    assert perform(servers[0], put("p/app/1/before", before)).status == 201
    killed = brick(1)
    try:
        with begin(servers[0], "p/app/1/during", data) as wire:
            time.sleep(1)
            os.kill(killed, signal.SIGKILL)
            begun = time.monotonic()
            wire.send(data[len(data) // 2:])
            assert wire.response()[0] == 201
            took = time.monotonic() - begun
        after = Version(random.randbytes(PART), "after")
        assert perform(servers[1], put("p/app/1/after", after)).status == 201
        assert perform(servers[1], put("p/app/1/before", after)).status == 200
        for server in servers:
            assert see(server, "p/app/1/before") == see(server, "p/app/1/after") == after
            assert sha256(requests.get(f"{server.url}/models/p/app/1/during").content) == sha256(data)
    finally:
        seconds = heal()
    replica = Path(os.environ["SCALING_DIR"], "bricks/1", servers[0].storage.parent.name, "models/p/app/1")
    assert sha256((replica / "during/model").read_bytes()) == sha256(data)
    assert (replica / "before/model").read_bytes() == after.data
    assert_clean(servers)
    say(f"the upload ended {took:.1f} s after the brick's death; healed {seconds:.1f} s after its return")


def test_without_a_quorum_nothing_is_acknowledged_and_with_it_the_service_goes_on(servers, say):
    """Two of three replicas are gone: what is left must not take writes that the others would not know of."""
    before = Version(random.randbytes(PART), "before")
    assert perform(servers[0], put("p/app/1/m", before)).status == 201
    try:
        for number in (1, 2):
            os.kill(brick(number), signal.SIGKILL)
        time.sleep(1)
        refused = perform(servers[0], put("p/app/1/m", Version(b"x", "x")))
        health, read = (requests.get(f"{servers[1].url}{path}") for path in ("/health", "/models/p/app/1/m"))
        assert refused.status >= 500 and health.status_code == 503, (refused, health.text)
        assert read.status_code >= 500 or read.content == before.data
    finally:
        heal()
    for server in servers:
        assert see(server, "p/app/1/m") == before
        assert requests.get(f"{server.url}/health").status_code == 200
        assert perform(server, put(f"p/app/2/m{server.port}", before)).status == 201
    say(f"with one replica of three: an upload {refused.status}, health 503, a download {read.status_code}")


def test_a_server_dies_in_the_middle_of_an_upload(servers, storages, say):
    data = random.randbytes(32 * PART)
    before = Version(random.randbytes(PART), "before")
    assert perform(servers[0], put("p/app/1/m", before)).status == 201
    with begin(servers[0], "p/app/1/m", data), begin(servers[0], "p/app/1/other", data):
        time.sleep(1)
        servers[0].stop(signal.SIGKILL)
    assert see(servers[1], "p/app/1/m") == before
    assert listed(servers[1]) == {"p/app/1/m"}
    with begin(servers[1], "p/app/1/m", data) as wire:     # the client sends it again
        wire.send(data[len(data) // 2:])
        assert wire.response()[0] == 200
    with running(storages[0]) as again:     # clears away what the dead one left
        assert see(again, "p/app/1/m").data == data
        assert_clean([again, servers[1]])


def test_behind_nginx_nothing_acknowledged_is_lost_when_a_brick_and_a_server_die(servers, storages, tls, tmp_path, say):
    """Clients that try again write through nginx all the while; what was answered with 2xx is there at the end."""
    acknowledged, retries, stop = {}, collections.Counter(), threading.Event()
    slowest = [0.0]

    def write(n):
        with front.session(f"127.0.1.{n + 1}") as http:     # of an address each: nginx limits each
            number = 0
            while not stop.is_set():
                key, version = f"p{n}/app/{number}/m", random.randbytes(random.choice((1000, 200_000)))
                begun, number = time.monotonic(), number + 1
                while True:
                    try:
                        answer = http.put(f"{front.url}/models/{key}", data=version, timeout=60)
                        if answer.status_code in (200, 201):
                            break
                        retries[answer.status_code] += 1
                    except requests.RequestException as error:
                        retries[type(error).__name__] += 1
                    assert time.monotonic() < begun + 60, f"{key} does not go in: {retries}"
                    time.sleep(0.2)
                acknowledged[key] = sha256(version)
                slowest[0] = max(slowest[0], time.monotonic() - begun)

    def disturb():
        try:
            time.sleep(3)
            os.kill(brick(2), signal.SIGKILL)
            time.sleep(4)
            servers[0].stop(signal.SIGKILL)
            time.sleep(4)
            return len(acknowledged)
        finally:
            stop.set()

    with proxy(tmp_path / "nginx", tls, servers[0].port, servers[1].port, clean=False) as front:
        everywhere(5, lambda n: write(n) if n < 4 else disturb())
        healed = heal()
        with running(storages[0]) as again:
            for server in (servers[1], again):
                entries = requests.get(f"{server.url}/models/list").json()["models"]
                there = {entry["path"].removesuffix("/model"): entry["sha256"] for entry in entries}
                assert acknowledged.items() <= there.items()
            for key, digest in random.sample(sorted(acknowledged.items()), min(50, len(acknowledged))):
                assert sha256(requests.get(f"{again.url}/models/{key}").content) == digest
            assert_clean([again, servers[1]])
    say(f"{len(acknowledged)} models acknowledged through nginx, all there; retried {dict(retries)}; the slowest took "
        f"{slowest[0]:.1f} s; healed in {healed:.1f} s")
