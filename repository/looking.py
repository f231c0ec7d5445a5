"""How the index looks at a directory: what is in it on the disk, and the models among that."""

import time
from collections.abc import Sequence
from sys import intern

from repository import indexed
from repository.indexed import BATCH_BYTES, Directory, Disk, Signature, State, identity_of
from repository.model import MAX_DEPTH, VERSION_DEPTH, Names

RACY = 2.0      # seconds in which a directory can change again without a new mtime, on the coarsest file system


def look(disk: Disk, names: Names, before: Directory, state: State, reading: bool) -> Directory:
    """Reads a directory that was in this state a moment ago; keeps the lines of `before` that are still right.

    With `reading`, missing lines are read, unless there are so many that a list should not wait for them.
    """
    if state.changed_ns < 0:
        return Directory(state=state)
    moment = time.monotonic()
    # compared with the clock before the directory is read: then a later change has a later time
    stamp = state.changed_ns if abs(time.time_ns() - state.changed_ns) > RACY * 1e9 else 0
    children = disk.subdirectories(*names)
    if len(names) >= VERSION_DEPTH and not disk.is_unchanged(names, state):
        # A model may have been set aside while this was read, and back in place while `replaced` was. Names that are
        # gone by now do no harm: they have no signature.
        children = sorted({*children, *disk.subdirectories(*names)})
    found = Directory(tuple(map(intern, children)), state=state, stamp=stamp,
                      since=before.since if identity_of(before.state) == identity_of(state) else moment)
    if len(names) >= VERSION_DEPTH:
        reading = reading and not found.is_large
        signatures, lines = look_at_models(disk, names, found.children, before, reading)
        found.models = found.children if len(signatures) == len(found.children) else tuple(signatures)
        found.size = sum(signature.stamp.size for signature in signatures.values())
        found.fingerprint = hash(tuple(signatures.items())) if signatures else 0
        found.compared = moment
        if not reading or disk.is_unchanged(names, state):      # otherwise the lines may be from two versions
            found.hold(lines, {name: signature.state for name, signature in signatures.items()})
        if len(names) == MAX_DEPTH - 1 and found.children is not found.models:
            # the others are too deep to be folders, but a file that is put into one makes it a model
            found.children, found.stamp = found.models, 0
    return found


def look_at_models(disk: Disk, place: Names, names: Sequence[str], before: Directory, reading: bool,
                   ) -> tuple[dict[str, Signature], dict[str, bytes]]:
    """The signatures of the models among these names, in order, and their lines as far as these are known and right.

    With `reading`, up to a batch of missing lines is read: a list would have to sign these models once more.
    """
    signatures, lines, size = dict[str, Signature](), dict[str, bytes](), 0
    with disk.models_in(place) as models:
        for name in names:
            if reading and name not in before.lines and size < BATCH_BYTES and (found := models.read(name)):
                signatures[name], line = found[0], found[1].line
                size += len(line)
            elif signature := models.sign(name):
                signatures[name] = signature
                line = before.lines[name] if before.states.get(name) == signature.state else b""
            else:
                continue
            if 0 < len(line) <= indexed.KEPT_LARGEST:
                lines[name] = line
    return signatures, lines
