"""Uploads land where they are hashed and written from: pages of models of every size arrive whole, in each way."""

import os

import pytest
from support.uploading import WAYS, answered

MIB = 1 << 20
CONTENT = os.urandom(4 * MIB + 1)
LINE_ENDS = (b"\r\n--XX-" * 300_000)[:3 * MIB] + b"\r" * MIB     # which might be a boundary at each place


@pytest.mark.parametrize("content", [CONTENT, LINE_ENDS], ids=["random", "line ends"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [2 * MIB - 1, 2 * MIB, 4 * MIB + 1])
def test_models_around_the_size_of_what_is_written_at_once_arrive_whole(live_server, content, way, size):
    number = f"{way.__name__}-{size}-{len(content)}"
    with live_server.connect() as wire:
        wire.send(way(number, content[:size]))
        assert answered(wire)
    stored = [*(live_server.storage / "landing/app" / number).rglob("model")]
    assert stored and all(path.read_bytes() == content[:size] for path in stored)
