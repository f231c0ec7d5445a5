"""Clients that change models at random, each its own, and remember what the server acknowledged."""

import random
import threading

from support.witness import Version, delete, listed, patch, perform, post, put, see

SIZES = (0, 1, 5_000, 70_000, 300_000, 2_000_000)


class Client(threading.Thread):
    """Changes models that nobody else touches, until it is stopped or gets no answer."""

    def __init__(self, server, ledger, number, seed, sizes):
        super().__init__(daemon=True)
        self.server, self.ledger, self.sizes = server, ledger, sizes
        self.random = random.Random(seed)
        self.keys = [f"p{number}/app/{n % 2}/m{n}" for n in range(4)]
        self.acknowledged = 0
        self.enough = threading.Event()
        self.faults = []

    def run(self):
        while not self.enough.is_set():
            key = self.random.choice(self.keys)
            old = self.ledger.known(key)
            act = self.random.choice((put, put, post, delete, patch) if old else (put, post))
            new = None if act is delete else self.version()
            if act is patch:
                new = new._replace(data=old.data)
            self.ledger.under_way(key, old, new)
            answer = perform(self.server, act(key) if act is delete else act(key, new))
            if answer is None or answer.status >= 500:  # the server or its disk failed: either version may be stored
                return
            if answer.status not in (200, 201):
                self.faults.append((key, act, answer))
                return
            self.ledger.acknowledge(key, new)
            self.acknowledged += 1

    def version(self):
        size = self.random.choice(self.sizes)
        return Version(self.random.randbytes(size), f"of{self.random.randrange(10**9)}", str(size))


class Ledger:
    """What must be stored: one version of each model, or one of two if an answer is outstanding."""

    def __init__(self):
        self._possible = {}
        self._rng = random.Random()

    def known(self, key):
        return self._possible.get(key, (None,))[0]

    def under_way(self, key, old, new):
        self._possible[key] = (old, new)

    def acknowledge(self, key, new):
        self._possible[key] = (new,)

    def disturb(self, server, clients, sizes, act, seed):
        """Lets clients work until `act(clients)` returns; returns how many changes were acknowledged."""
        workers = [Client(server, self, number, f"{seed} {number}", sizes) for number in range(clients)]
        for worker in workers:
            worker.start()
        act(workers)
        for worker in workers:
            worker.enough.set()
            worker.join(60)
            assert not worker.is_alive() and not worker.faults, worker.faults
        return sum(worker.acknowledged for worker in workers)

    def losses(self, server):
        """Describes what was acknowledged and is not stored; afterwards, what is stored counts as acknowledged."""
        wrong = []
        for key, possible in sorted(self._possible.items()):
            try:
                seen = see(server, key)
            except AssertionError as error:
                wrong.append(f"{key}: {str(error).splitlines()[0]}")
                seen = possible[0]
            else:
                if seen not in possible:
                    wrong.append(f"{key} is {seen}, not one of {possible}")
            self._possible[key] = (seen,)
        there = {key for key, possible in self._possible.items() if possible[0]}
        if not wrong and there != (found := listed(server)):
            wrong.append(f"the list differs from what is there: {there ^ found}")
        return wrong
