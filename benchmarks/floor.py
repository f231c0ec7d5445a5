"""The least an upload can take in Python: each byte is received once, hashed, and written past the page cache.

.venv/bin/python benchmarks/floor.py DIRECTORY PORT      (upload.py starts it)
It has hardly any HTTP, no names, no metadata, no limits, and one buffer for all three steps: a lower bound for our
server, which shows how much time the rest of it takes. Accepts `curl -T`, answers with the digest.
"""

import fcntl
import hashlib
import mmap
import os
import queue
import re
import socket
import sys
import threading
from pathlib import Path

BUFFER, BUFFERS = 2 << 20, 6


def work(todo: queue.SimpleQueue, do, done) -> threading.Thread:
    def run() -> None:
        while (number := todo.get()) is not None:
            do(number)
            done(number)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def store(connection: socket.socket, size: int, descriptor: int) -> str | None:
    """Receives so many bytes into the file; their SHA-256, None if the connection closed before the last one."""
    buffers = [memoryview(mmap.mmap(-1, BUFFER)) for _ in range(BUFFERS)]
    free, to_hash, to_write = queue.SimpleQueue(), queue.SimpleQueue(), queue.SimpleQueue()
    filled, pending, lock, digest = [0] * BUFFERS, [0] * BUFFERS, threading.Lock(), hashlib.sha256()
    for number in range(BUFFERS):
        free.put(number)

    def done(number: int) -> None:
        with lock:
            pending[number] -= 1
            if pending[number]:
                return
        free.put(number)

    def write(number: int) -> None:
        if filled[number] % mmap.PAGESIZE:      # the last one
            fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
        os.write(descriptor, buffers[number][:filled[number]])

    threads = [work(to_hash, lambda number: digest.update(buffers[number][:filled[number]]), done),
               work(to_write, write, done)]
    try:
        while size:
            number = free.get()
            expected = min(size, BUFFER)
            filled[number], pending[number] = connection.recv_into(buffers[number], expected, socket.MSG_WAITALL), 2
            if filled[number] < expected:
                break
            size -= expected
            to_hash.put(number)
            to_write.put(number)
    finally:
        for todo in (to_hash, to_write):
            todo.put(None)
        for thread in threads:
            thread.join()
    if size:
        return None
    os.fsync(descriptor)
    return digest.hexdigest()


def serve(connection: socket.socket, root: Path) -> None:
    with connection:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (byte := connection.recv(1)):
                return      # closed before its head: a client that only looked whether somebody listens
            head += byte
        answer = "ready"
        if found := re.match(rb"PUT /(\w+) .*content-length: (\d+)\r\n", head, re.DOTALL | re.IGNORECASE):
            descriptor = os.open(root / found[1].decode(), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
            answer = store(connection, int(found[2]), descriptor)
            os.close(descriptor)
        if answer is None:
            (root / found[1].decode()).unlink()
            return
        connection.sendall(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(answer)}\r\n\r\n".encode())
        connection.sendall(answer.encode())


def main() -> None:
    root, port = Path(sys.argv[1]), int(sys.argv[2])
    sys.setswitchinterval(0.0005)
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, root), daemon=True).start()


if __name__ == "__main__":
    main()
