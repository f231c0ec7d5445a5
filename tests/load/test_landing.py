"""Uploads share little memory: those that stop keep none of it from the others, and end well when they go on."""

import os
from contextlib import ExitStack

import pytest
from support.common import eventually, staged
from support.uploading import WAYS, answered, tar

MIB = 1 << 20
CONTENT = os.urandom(5 * MIB + 4097)
STALLED = 24        # three for each piece of that memory


@pytest.mark.parametrize("way", WAYS)
def test_uploads_that_stop_keep_no_memory_from_others_and_end_well(start, way):
    server = start()
    with ExitStack() as wires:
        stopped = []
        for number in range(STALLED):
            message, wire = way(number, CONTENT), wires.enter_context(server.connect())
            most = 2 * MIB + number * 99_999
            wire.send(message[:most])
            stopped.append((wire, message[most:]))
        for other in WAYS:
            with server.connect() as wire:
                wire.send(other(f"other-{other.__name__}", CONTENT))
                assert answered(wire)
        for wire, rest in stopped:
            wire.send(rest)
        assert all(answered(wire) for wire, _ in stopped)
    stored = [*server.storage.rglob("model")]
    assert len(stored) == (STALLED + len(WAYS)) + (STALLED + 1 if way is tar else 1)
    assert all(path.read_bytes() == CONTENT for path in stored)
    eventually(lambda: staged(server.storage) == [])
