"""A TCP proxy that breaks connections in the middle of what clients send, in three ways."""

import random
import select
import socket
import struct
import threading
from contextlib import contextmanager, suppress

WAYS = ("reset", "FIN", "half-open")
BLOCK = 64 << 10
IN_FLIGHT = 128 << 10   # bytes on their way to the server, which a reset loses: on a loopback there would be megabytes


class Breaking:
    """Breaks a connection after a random number of bytes from its client, `breaks` times; then it forwards all.

    `reset` resets both sides and `FIN` closes them. With `half-open` the client is cut off, and the server hears
    nothing of that. `sent` counts the bytes of all clients, `broken` the breaks.
    """

    def __init__(self, port, breaks, most, ways=WAYS, seed=None):
        self.port_of_server, self.breaks, self.most, self.ways = port, breaks, most, ways
        self.random = random.Random(seed)
        self.sent, self.broken = 0, 0
        self._silent = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def _accept(self):
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client):
        try:
            server = socket.create_connection(("127.0.0.1", self.port_of_server), 20)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, IN_FLIGHT)
        except OSError:     # it is being started again
            client.close()
            return
        left = self.random.randrange(1, self.most)
        try:
            while True:
                for ready in select.select([client, server], [], [], 60)[0]:
                    data = ready.recv(BLOCK if ready is server else min(BLOCK, left if self._breaks() else BLOCK))
                    if not data:
                        return
                    (client if ready is server else server).sendall(data)
                    if ready is client:
                        self.sent, left = self.sent + len(data), left - len(data)
                        if left <= 0 and self._break(client, server):
                            return
        except OSError:
            pass
        finally:
            client.close()
            if server not in self._silent:
                server.close()

    def _breaks(self):
        return self.broken < self.breaks

    def _break(self, client, server):
        with self._lock:
            if not self._breaks():
                return False
            way = self.ways[self.broken % len(self.ways)]
            self.broken += 1
        if way != "FIN":
            for side in (client, server) if way == "reset" else (client,):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if way == "half-open":
            self._silent.append(server)
        return True

    def close(self):
        self._listener.close()
        for server in self._silent:
            server.close()


@contextmanager
def breaking(server, *arguments, **options):
    proxy = Breaking(server.port, *arguments, **options)
    try:
        yield proxy
    finally:
        proxy.close()
