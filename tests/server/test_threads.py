"""Worker threads: as many as are wanted, none woken in vain, all that was submitted is done."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.common import ROOT, eventually

from server import threads
from server.metrics import Metrics
from server.threads import Workers

AT_EXIT = """
from server.metrics import Metrics
from server.threads import Workers
workers = Workers("w", 2, Metrics())
for number in range(5):
    workers.submit(lambda number=number: print(f"{number}\\n", end=""))
"""


def together(workers, number):
    """Has `number` threads work at the same time."""
    meeting, done = threading.Barrier(number), []
    for _ in range(number):
        workers.submit(lambda: (meeting.wait(30), done.append(None)))
    eventually(lambda: len(done) == number)


def named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def switches(name):
    """How often each thread of this name has waited."""
    lines = {thread.ident: Path(f"/proc/self/task/{thread.native_id}/status").read_text() for thread in named(name)}
    return {ident: int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for ident, text in lines.items()}


@pytest.mark.parametrize(("most", "pieces"), [(1, 5), (3, 2), (3, 30)])
def test_no_more_threads_work_than_are_permitted(most, pieces):
    workers, go, names, done = Workers(f"at most {most}", most, Metrics()), threading.Event(), set(), []
    for number in range(pieces):
        workers.submit(lambda number=number: (go.wait(30), names.add(threading.get_ident()), done.append(number)))
    eventually(lambda: workers.busy == (pieces > most))
    go.set()
    eventually(lambda: len(done) == pieces)
    assert len(names) <= most and not workers.busy
    assert most > 1 or done == sorted(done)


def test_a_piece_of_work_wakes_one_thread_and_no_other(monkeypatch):
    monkeypatch.setattr(threads, "REST", 5.0)   # on a busy machine, all of this takes longer than they rest
    workers, idents = Workers("resting", 8, Metrics()), []
    together(workers, 8)
    eventually(lambda: len(workers._resting) == 8)
    before = switches("resting")
    for number in range(20):
        workers.submit(lambda: idents.append(threading.get_ident()))
        eventually(lambda number=number: len(idents) > number and len(workers._resting) == 8)
    waits = {ident: count - before[ident] for ident, count in switches("resting").items()}
    assert len(set(idents)) == 1 and sum(waits.values()) == waits[idents[0]] > 0


def test_threads_end_without_work_and_others_begin():
    workers, done = Workers("short", 4, Metrics()), []
    for _ in range(2):
        together(workers, 4)
        eventually(lambda: not named("short"))
    workers.submit(lambda: done.append(None))
    eventually(lambda: done)


def test_a_fault_in_a_piece_of_work_is_counted_and_the_others_are_done():
    metrics, done = Metrics(), []
    workers = Workers("faulty", 1, metrics)
    for work in (lambda: 1 / 0, lambda: done.append(None)):
        workers.submit(work)
    eventually(lambda: done)
    assert metrics.troubles() == {"faults": {"faulty": 1}}


def test_what_was_submitted_is_done_before_the_process_ends():
    run = subprocess.run([sys.executable, "-c", AT_EXIT], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (sorted(run.stdout.split()), run.stderr) == (["0", "1", "2", "3", "4"], "")
