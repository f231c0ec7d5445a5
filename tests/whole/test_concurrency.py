"""Many at once on the live server: every reader sees one whole version, every race has one winner, nothing is lost."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from support.common import sha256

WRITERS, WRITES, READERS = 8, 6, 4


def body_of(writer, number):
    """Bytes that tell at every place which upload they are of."""
    return f"<{writer}:{number}>".encode() * (5_000 + 1_000 * writer)


def together(jobs):
    """Runs the jobs at the same moment, each with a connection of its own; their results, or the first fault."""
    gate = threading.Barrier(len(jobs))

    def run(job):
        with requests.Session() as session:
            gate.wait(20)
            return job(session)

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(60) for future in [pool.submit(run, job) for job in jobs]]


@pytest.fixture
def base(live_server, project):
    return f"{live_server.url}/models/{project}"


def test_readers_see_one_whole_version_while_writers_replace_it(base):
    url, finished = f"{base}/a/1/m", []
    versions = {sha256(body): body for body in (body_of(w, n) for w in range(WRITERS) for n in range(WRITES))}
    first = body_of(0, 0)
    assert requests.put(url, data=first, params={"description": sha256(first)}).status_code == 201

    def writer(w):
        def write(session):
            try:
                for n in range(1, WRITES):
                    body = body_of(w, n)
                    got = session.put(url, data=body, params={"description": sha256(body)}, timeout=30)
                    assert (got.status_code, got.json()["sha256"]) == (200, sha256(body))
            finally:
                finished.append(w)
        return write

    def reader(session):
        over, seen = False, 0
        while not over:
            over = len(finished) == WRITERS     # and once more, so that each reads at least once
            got = session.get(url, timeout=30)
            assert got.status_code == 200
            digest = got.headers["X-Checksum-Sha256"]
            assert got.headers["ETag"] == f'"{digest}"'
            assert got.content == versions[digest]
            part = session.get(url, headers={"Range": "bytes=10-99", "If-Range": f'"{digest}"'}, timeout=30)
            whole = versions[part.headers["X-Checksum-Sha256"]]
            assert part.content == (whole[10:100] if part.status_code == 206 else whole)
            seen += 1
        return seen

    def info_reader(session):
        over, seen = False, 0
        while not over:
            over = len(finished) == WRITERS     # and once more, so that each reads at least once
            info = session.get(url + "/info", timeout=30).json()
            assert info["size"] == len(versions[info["sha256"]])
            assert info["description"] == info["sha256"]
            listed = session.get(f"{base}/a", timeout=30).json()
            assert listed["total_models"] == 1      # it was there all the time
            assert listed["models"][0]["description"] == listed["models"][0]["sha256"]
            line = session.get(url + ".sha256", timeout=30)
            assert (line.status_code, line.text.split()[0] in versions) == (200, True)
            seen += 1
        return seen

    results = together([*(writer(w) for w in range(WRITERS)), *[reader] * READERS, info_reader, info_reader])
    assert all(seen > 0 for seen in results[WRITERS:])
    assert sha256(requests.get(url).content) == requests.get(url + "/info").json()["sha256"]


def test_listing_during_churn_never_fails_and_never_loses_what_stays(base):
    for name in ("stays-1", "stays-2"):
        assert requests.put(f"{base}/a/1/{name}", data=b"x").status_code == 201
    finished = []

    def churn(worker):
        def run(session):
            try:
                for n in range(10):
                    url = f"{base}/{'a' if worker % 2 else 'b'}/{n}/m{worker}"
                    assert session.put(url, data=b"x" * n).status_code == 201
                    assert session.patch(url + "/info", json={"description": "x"}).status_code == 200
                    assert session.delete(url).status_code == 200
            finally:
                finished.append(worker)
        return run

    def lister(form):
        def run(session):
            while len(finished) < WRITERS:
                got = session.get(base, params={"format": form} if form else {"limit": 1000}, timeout=30)
                assert got.status_code == 200
                names = got.text if form else [m["model_name"] for m in got.json()["models"]]
                assert "stays-1" in names
                assert "stays-2" in names
        return run

    together([*(churn(w) for w in range(WRITERS)), lister(None), lister("txt"), lister("ndjson")])
    assert requests.get(base, params={"format": "txt"}).text.count("\n") == 2


@pytest.mark.parametrize("kind", ["PUT", "form"])
def test_of_creators_there_is_one_winner(base, kind, live_server):
    for round_ in range(10):
        names = {"project_id": base.rpartition("/")[2], "app_name": "a", "version": str(round_), "model_name": "m"}
        url = f"{base}/a/{round_}/m"

        def creator(n, url=url, names=names):
            def create(session):
                body, only_new = f"creator {n}".encode() * 1000, {"If-None-Match": "*"}
                got = (session.put(url, data=body, headers=only_new) if kind == "PUT" else session.post(
                    f"{live_server.url}/models/upload", params=names, files={"file": body}, headers=only_new))
                return got.status_code, body
            return create

        results = together([creator(n) for n in range(8)])
        assert sorted(status for status, _ in results) == [201] + [412] * 7
        assert requests.get(url).content == next(body for status, body in results if status == 201)


def test_of_those_who_replace_what_they_saw_there_is_one_winner(base):
    url = f"{base}/a/1/m"
    etag = requests.put(url, data=b"first").headers["ETag"]
    for round_ in range(5):
        def replacer(n, round_=round_, etag=etag):
            return lambda session: session.put(url, data=f"{round_}:{n}", headers={"If-Match": etag})

        results = together([replacer(n) for n in range(8)])
        assert sorted(got.status_code for got in results) == [200] + [412] * 7
        etag = next(got.headers["ETag"] for got in results if got.status_code == 200)
        assert requests.get(url).headers["ETag"] == etag


def test_of_those_who_delete_what_they_saw_there_is_one_winner(base):
    for round_ in range(5):
        url = f"{base}/a/{round_}/m"
        etag = requests.put(url, data=b"x").headers["ETag"]

        def remove(session, url=url, etag=etag):
            return session.delete(url, headers={"If-Match": etag}).status_code

        results = together([remove] * 6)
        assert results.count(200) == 1
        assert set(results) <= {200, 404, 412}


def test_patches_at_once_are_all_kept(base):
    url = f"{base}/a/1/m"
    requests.put(url, data=b"x")
    together([lambda session, n=n: session.patch(url + "/info", json={"metadata": {f"k{n}": n}}) for n in range(8)])
    assert requests.get(url + "/info").json()["metadata"] == {f"k{n}": n for n in range(8)}


def test_a_delete_of_a_sibling_never_loses_an_upload(base, live_server):
    def worker(n):
        def run(session):
            url = f"{base}/a/1/m{n}"        # all in one directory, which is empty again and again
            for _ in range(15):
                assert session.put(url, data=b"x").status_code == 201
                assert session.get(url).status_code == 200
                assert session.delete(url).status_code == 200
        return run

    together([worker(n) for n in range(4)])
    assert not (live_server.storage / base.rpartition("/")[2]).exists()
