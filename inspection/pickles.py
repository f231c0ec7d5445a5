"""Whether there is a pickle here, and all that unpickling would import; nothing is imported, built or called."""

import io
import re
from collections.abc import Callable
from contextlib import suppress

from inspection.found import Found
from inspection.reader import BLOCK, Budget, BudgetExceeded, Malformed
from inspection.walk import Walk

MAX_PICKLES = 64        # one after another in a file; torch's old format has 5
TORCH_MAGIC = 0x1950A86A20F9469CFC6C    # the first of the pickles in a file of torch.save before 1.6
TORCH_PICKLES = 5       # the storages follow as raw bytes
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")  # what a text has none of


def look(stream: io.BufferedReader, found: Found, budget: Budget, again: Callable[[], io.BufferedReader]) -> None:
    """Adds to `found` what unpickling would import here, where there need not be a pickle; raises BudgetExceeded.

    It is one when it has an import, or when it is whole and either says so in its first byte or ends with the file: in
    the raw bytes of a tensor some first bytes are opcodes by chance, and of those an EXT is an import that nobody has.
    Nor is it one when a text has a word that begins with c and another below it, as lists of labels have, unless STOP
    is its end or it does something with what it imports. `again` gives what is before it and here from the beginning.
    """
    protocol, here = stream.peek(1)[:1] == b"\x80", Found()
    walk = Walk(stream, here, budget)
    try:
        torch = walk.run() == TORCH_MAGIC
        if protocol or at_end(stream) or (here.named() and not (walk.idle and is_text(again()))):
            here.pickled, here.torch = True, torch
            here.complete = here.complete and look_on(stream, here, budget)
            if walk.unpadded:
                here.complete &= not hides_more(again(), here, budget)
            found.merge(here)
    except Malformed:
        if (protocol and here.imports) or (here.named() and not (walk.idle and is_text(again()))):
            here.pickled, here.complete = protocol, False   # performed before the fault shows
            found.merge(here)
    except BudgetExceeded:
        here.pickled = protocol or bool(here.imports)
        found.merge(here)
        raise


def look_on(stream: io.BufferedReader, found: Found, budget: Budget) -> bool:
    """Goes through the pickles that follow a first one; False when something else follows."""
    try:
        for _ in range(TORCH_PICKLES - 1 if found.torch else MAX_PICKLES):
            if at_end(stream):
                return not found.torch
            Walk(stream, found, budget).run()
    except Malformed:
        return False
    return found.torch


def hides_more(stream: io.BufferedReader, found: Found, budget: Budget) -> bool:
    """Whether pickle.load, for which an array of joblib's is more opcodes, imports what joblib.load does not."""
    plain = Found()
    with suppress(Malformed):
        Walk(stream, plain, budget, arrays=False).run()
    return not plain.imports.keys() <= found.imports.keys()


def is_text(stream: io.BufferedReader) -> bool:
    return not CONTROL.search(stream.read(BLOCK))


def at_end(stream: io.BufferedReader) -> bool:
    return not stream.peek(1)
