"""The opcodes of pickles, as pickletools tells them: what they take and leave, and how their arguments are read."""

import io
import pickletools
import re
from typing import NamedTuple

from inspection.reader import BLOCK, BudgetExceeded, Malformed
from inspection.values import MAX_NAME, NULL, OTHER

IMPORTABLE = re.compile(r"[\w<][\w.<>-]*")   # a line of text may begin with the opcode that imports
WIDTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
          pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}
NUMBERS = {"BININT": True, "BININT1": False, "BININT2": False, "LONG1": True, "LONG4": True}    # whether signed
CONSTANTS = {"NONE": NULL, "NEWTRUE": OTHER, "NEWFALSE": OTHER, "EMPTY_LIST": OTHER, "EMPTY_SET": OTHER,
             "EMPTY_TUPLE": ()}


class Operation(NamedTuple):
    name: str
    argument: int | None    # its length, or one of pickletools' codes for where the length is
    pops: int               # below the mark when there is one
    to_mark: bool
    pushes: bool
    result: object          # OTHER, or None where it may be a string


def operation(code: pickletools.OpcodeInfo) -> Operation:
    before, after = ([each.name for each in side] for side in (code.stack_before, code.stack_after))
    to_mark, result = "mark" in before, CONSTANTS.get(code.name, None if "any" in after else OTHER)
    return Operation(code.name, code.arg.n if code.arg else None, before.index("mark") if to_mark else len(before),
                     to_mark, bool(after), result)


OPERATIONS = {code.code.encode("latin-1"): operation(code) for code in pickletools.opcodes}
CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX"}
TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
SAME = {"APPEND", "APPENDS", "ADDITEMS", "READONLY_BUFFER"}     # what is below stays


def line(stream: io.BufferedReader) -> bytes:
    """The bytes up to the end of the line, not more than are too many for a name.

    A last line without its end loses its last byte, as it does in the unpickler that is written in Python.
    """
    text = rest = stream.readline(MAX_NAME + 3)     # with quotes and the end
    while not rest.endswith(b"\n") and (rest := stream.readline(BLOCK)):
        pass
    return text[:-1]


def name_of(text: bytes) -> str | None:
    """A name in an opcode that imports, None for a long one; raises Malformed for what no module is called."""
    name = text[:MAX_NAME].decode("utf-8", "ignore" if len(text) > MAX_NAME else "replace")
    if not IMPORTABLE.fullmatch(name):
        raise Malformed("it imports what can have no name")
    return name if len(text) <= MAX_NAME else None


def place_of(op: Operation, argument: bytes | None) -> int:
    """A place in the memo, in binary or, by PUT and GET, as digits; raises BudgetExceeded when they are too many."""
    digits = argument or b""
    if op.argument != pickletools.UP_TO_NEWLINE:
        return int.from_bytes(digits, "little")
    try:
        place = int(digits[:MAX_NAME])
    except ValueError as error:
        raise Malformed("a number in it is none") from error
    if len(digits) > MAX_NAME:
        raise BudgetExceeded
    return place
