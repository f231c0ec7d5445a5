"""Two thousand requests, one fifth of them broken off: what they took is given back."""

import random
import re
import time
from pathlib import Path

from support.witness import FORM, Version, assert_whole, delete, patch, perform, post, put, send


def resources(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return {"descriptors": server.descriptors(), "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
            "kilobytes": int(re.search(r"VmRSS:\s+(\d+)", status)[1])}


def break_off(server, chance):
    """A request that ends somewhere in its head, its body, or in the answer to it."""
    kind = chance.randrange(4)
    with server.connect() as wire:
        if kind == 0:
            wire.send("PUT /models/p/app/1/m HTTP/1.1\r\nHost:"[:chance.randrange(1, 44)])
        elif kind == 1:
            wire.send("PUT /models/p/app/1/broken HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
                      bytes(chance.randrange(900_000)))
        elif kind == 2:
            _, _, body = post("p/app/1/broken", Version(bytes(300_000), "broken"))
            wire.send(f"POST /models/upload HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\n"
                      f"Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n", body[:chance.randrange(len(body))])
        else:
            wire.send("GET /models/p/app/1/big HTTP/1.1\r\nHost: x\r\n\r\n")
            wire.sock.recv(chance.randrange(1, 65536))


def test_two_thousand_requests_a_fifth_of_them_broken_off_leave_nothing(server, count, say):
    requests, chance = count(500, 2000), random.Random(1)
    begun = time.monotonic()
    big = Version(bytes(3 << 20), "big")
    assert perform(server, put("p/app/1/big", big)).status == 201

    def one(number):
        key = f"p/app/{chance.randrange(3)}/m{chance.randrange(5)}"
        if number % 5 == 0:
            break_off(server, chance)
            return
        version = Version(chance.randbytes(chance.choice((0, 10, 50_000, 600_000))), f"of{number}")
        ask = chance.randrange(7)
        if ask < 4:
            answer = perform(server, (put(key, version), post(key, version), patch(key, version), delete(key))[ask])
        else:
            answer = send(server, "GET", ("/models/list", f"/models/{key}", "/health")[ask - 4])
        assert answer.status in (200, 201, 404), (number, answer)

    for number in range(100):   # which starts the threads, loads the modules and fills the caches
        one(number)
    before = settled(server)
    sizes = []
    for _half in range(2):
        for number in range(requests // 2):
            one(number)
        sizes.append(settled(server)["kilobytes"])
        assert_whole(server)
    after = settled(server)
    say(f"{requests} requests in {time.monotonic() - begun:.0f} s, a fifth broken off: before {before}, after {after}")
    assert after["descriptors"] == before["descriptors"]
    assert after["threads"] <= before["threads"] + 4, "more than the workers that are started when they are needed"
    assert sizes[1] - sizes[0] < 4096, f"the second half took memory again: {before['kilobytes']}, {sizes} kB"
    assert "Traceback" not in server.log() and " ERROR " not in server.log(), server.log()[-3000:]


def settled(server):
    """What it uses once it has seen that clients have gone."""
    least, until = resources(server), time.monotonic() + 2
    while time.monotonic() < until:
        time.sleep(0.1)
        now = resources(server)
        least = {name: min(least[name], now[name]) for name in now}
    return least
