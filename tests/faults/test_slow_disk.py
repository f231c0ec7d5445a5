"""One look at a disk that takes long is waited for by those who asked for it, and by nobody else."""

import threading
import time

import pytest
import requests
from support.needs import need

DELAY = 1.5             # seconds of each look at the directory of one model
BOUND = 0.1             # seconds within which everybody else is answered
SLOW = "slow/app/1/m"   # as the server names it to the system, below the storage
ASKED = {   # the request that waits for the disk
    "info": ("GET", f"/models/{SLOW}/info", None), "HEAD": ("HEAD", f"/models/{SLOW}", None),
    "GET": ("GET", f"/models/{SLOW}", None), "an upload's admission": ("PUT", f"/models/{SLOW}", b"x"),
    "a form's admission": ("POST", "/models/upload?project_id=slow&app_name=app&version=1&model_name=m", b"x"),
    "PATCH": ("PATCH", f"/models/{SLOW}/info", b"{}"),
}


@pytest.fixture
def slow(start):
    need("strace", "a process that may be traced")
    return start("strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=openat2", "-P", SLOW,
                 "-e", f"inject=openat2:delay_enter={int(DELAY * 1e6)}")


def seconds(http, method, url, body=None):
    started = time.monotonic()
    headers = {"Content-Type": "multipart/form-data; boundary=B"} if method == "POST" else {}
    http.request(method, url, data=body, headers=headers, timeout=60)
    return time.monotonic() - started


@pytest.mark.parametrize("asked", ASKED)
def test_nobody_else_waits_for_a_slow_look_at_one_model(slow, asked):
    method, path, body = ASKED[asked]
    with requests.Session() as http:
        for model in (SLOW, "other/app/1/m"):
            http.put(f"{slow.url}/models/{model}", b"x", timeout=60)
        # both known by now, so that they may be answered without waking a thread
        seconds(http, "GET", f"{slow.url}/models/{SLOW}/info")
        seconds(http, "GET", f"{slow.url}/models/other/app/1/m/info")
        others = {other: float("inf") for other in (
            ("GET", "/health"), ("GET", "/models/other/app/1/m/info"), ("HEAD", "/models/other/app/1/m"),
            ("GET", "/models/other/app/1/m"))}
        for _ in range(3):      # what takes long here may be the load of the machine
            waited = []
            with requests.Session() as another:
                waiting = threading.Thread(
                    target=lambda *asked, to=waited: to.append(seconds(*asked)),
                    args=(another, method, slow.url + path, body))
                waiting.start()
                time.sleep(0.05)    # there is no telling from outside that it waits; what comes next shows it
                for other, path_of_other in others:
                    key = other, path_of_other
                    others[key] = min(others[key], seconds(http, other, slow.url + path_of_other))
                # else nobody could have waited for it
                assert max(others.values()) > BOUND or waiting.is_alive()
                waiting.join(60)
            assert waited[0] > DELAY
            if max(others.values()) < BOUND:
                return
    assert max(others.values()) < BOUND, others


def test_many_slow_looks_leave_the_other_requests_their_threads(slow):
    """Six of them at once, more than there are threads for the loop and fewer than there are for requests."""
    with requests.Session() as http:
        for model in (SLOW, "other/app/1/m"):
            http.put(f"{slow.url}/models/{model}", b"x", timeout=60)
        seconds(http, "GET", f"{slow.url}/models/{SLOW}/info")
        best = float("inf")
        for _ in range(3):
            waiting = [threading.Thread(target=seconds, args=(requests, "GET", f"{slow.url}/models/{SLOW}/info"))
                       for _ in range(6)]
            for thread in waiting:
                thread.start()
            time.sleep(0.1)     # as above
            taken = [seconds(http, "GET", slow.url + path) for path in ("/health", "/models/other/app/1/m/info") * 3]
            best = min(best, max(taken))
            assert best > BOUND or any(thread.is_alive() for thread in waiting)
            for thread in waiting:
                thread.join(60)
            if best < BOUND:
                break
        assert best < BOUND
    assert slow.stop() == 0
