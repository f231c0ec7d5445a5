"""A client that repeats one request over keep-alive connections, and measures how many it gets answered per second.

.venv/bin/python benchmarks/load.py PORT METHOD PATH CONNECTIONS SECONDS
It prints requests per second, and the median and 99th percentile of their duration in milliseconds. Each connection
waits for an answer before its next request.
"""

import select
import socket
import sys
import time


def answer_length(head: bytes, method: str) -> int:
    """The length in bytes of the answer that begins with this head; its status must be 200."""
    end = head.index(b"\r\n\r\n") + 4
    lines = head[:end].lower().split(b"\r\n")
    assert lines[0].split()[1] == b"200", head
    lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
    return end + (0 if method == "HEAD" else lengths[0])


def run(port: int, method: str, path: str, connections: int, seconds: float) -> tuple[float, float, float]:
    request = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n\r\n".encode()
    poll, begun, pending = select.epoll(), {}, {}
    sockets = {}
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[client.fileno()] = client
        poll.register(client.fileno(), select.EPOLLIN)
    start = time.perf_counter()
    stop, took = start + seconds, []
    for number, client in sockets.items():
        begun[number], pending[number] = time.perf_counter(), b""
        client.sendall(request)
    while (now := time.perf_counter()) < stop:
        for number, _ in poll.poll(1):
            data = sockets[number].recv(65536)
            if not data:
                raise SystemExit("the server closed a connection")
            data = pending[number] + data
            pending[number] = data
            if b"\r\n\r\n" not in data or len(data) < answer_length(data, method):
                continue
            now = time.perf_counter()
            took.append(now - begun[number])
            begun[number], pending[number] = now, b""
            sockets[number].sendall(request)
    elapsed = time.perf_counter() - start
    took.sort()
    return len(took) / elapsed, took[len(took) // 2] * 1000, took[len(took) * 99 // 100] * 1000


if __name__ == "__main__":
    print(*run(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
