"""Whether there is a pickle, and all that unpickling would import; nothing is imported, built or called.

Each one is walked opcode by opcode with a stack of what is known of its values: not by pickletools.genops, which reads
an argument whole however long it is, and gives up on arguments that pickle itself takes.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from inspection.found import (
    EXTENSION,
    MAX_NAME,
    MAX_VALUES,
    NULL,
    OTHER,
    WRAPPER,
    Found,
    Global,
    Made,
    array_of,
    kept,
    text_of,
    update,
)
from inspection.reader import BLOCK, OPCODE, Budget, BudgetExceeded, Malformed, exactly, skip

MAX_MEMO = 750_000      # values a pickle may refer back to, 40 MB; a vocabulary of 250,000 words needs fewer
TENSOR = "torch._utils._rebuild_tensor"
MAX_PADDING = 16        # bytes that joblib puts before an array, which no unpickler takes for opcodes
CAREFUL = 16            # simple opcodes that any other one costs
MAX_PICKLES = 64        # one after another in a file; torch's old format has 5
TORCH_MAGIC = 0x1950A86A20F9469CFC6C    # the first of the pickles in a file of torch.save before 1.6
TORCH_PICKLES = 5       # the storages follow as raw bytes
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")  # what a text has none of
IMPORTABLE = re.compile(r"[\w<][\w.<>-]*")   # a line of text may begin with the opcode that imports

# Of pickletools' opcodes: how long the length before an argument is, which are signed numbers, and what others push.
WIDTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
          pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}
NUMBERS = {"BININT": True, "BININT1": False, "BININT2": False, "LONG1": True, "LONG4": True}
CONSTANTS = {"NONE": NULL, "NEWTRUE": OTHER, "NEWFALSE": OTHER, "EMPTY_LIST": OTHER, "EMPTY_SET": OTHER,
             "EMPTY_TUPLE": ()}
CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX"}
SAME = {"APPEND", "APPENDS", "ADDITEMS", "READONLY_BUFFER"}     # what is below stays

# The opcodes that large pickles are made of, by their bytes, and how many each takes with its argument.
MARK, MEMOIZE, BININT, SHORT_BINBYTES, TUPLE1, TUPLE3, TUPLE, SETITEM, APPEND, REDUCE, NONE = b"(\x94JC\x85\x87tsaRN"
TO_MARK = b"eu"         # APPENDS, SETITEMS
NUMBER_WIDTHS = {ord("K"): 2, ord("M"): 3, BININT: 5}
GETS, PUTS, SIZED = {ord("h"): 2, ord("j"): 5}, {ord("q"): 2, ord("r"): 5}, {0x8C: 2, ord("X"): 5, SHORT_BINBYTES: 2}
ARGUMENT_WIDTHS = NUMBER_WIDTHS | GETS | PUTS | SIZED
PLAIN_WIDTHS = dict.fromkeys(b"N\x88\x89]\x8f", 1) | {ord("G"): 9}     # that push a value of no interest
UNSIZED_WIDTHS = PLAIN_WIDTHS | NUMBER_WIDTHS | dict.fromkeys(b")}", 1)    # of none while there are no arrays
LONGEST = 9             # of these widths


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


class Walk:
    """One pickle from its first opcode to STOP.

    `idle` is True while nothing that was imported was called; `unpadded` once raw bytes were passed over that
    pickle.load may take for opcodes.
    """

    def __init__(self, stream: io.BufferedReader, found: Found, budget: Budget, arrays: bool = True) -> None:
        self._stream, self._found, self._budget, self._arrays = stream, found, budget, arrays
        self._stack: list[Any] = []
        self._marks: list[int] = []     # places in the stack
        self._memo: dict[int, Any] = {}
        self._sized = self._wrapped = False     # whether values that say the size of an array, and the array, may come
        self.idle, self.unpadded = True, False

    def run(self) -> Any:
        """What is known of the value; raises BudgetExceeded, and Malformed where every unpickler would fail."""
        while True:
            try:
                self._run_quickly()
            except LookupError as error:
                raise Malformed("it takes what is not there") from error
            op = OPERATIONS.get(self._stream.read(1))
            if op is None:
                raise Malformed("it has something else than opcodes")
            argument = None if op.argument is None else self._argument(op.argument)
            if op.name == "STOP":
                return self._pop()
            if op.name == "MARK":
                self._marks.append(len(self._stack))
            elif op.name.endswith(("PUT", "GET", "MEMOIZE")):
                self._remember(op, argument)
            elif op.name in ("GLOBAL", "INST"):
                imported = self._import(name_of(argument or b""), name_of(line(self._stream)))
                self._operands(op)      # for INST, which the unpickler in Python imports before it looks for them
                self.idle &= op.name == "GLOBAL"
                self._stack.append(imported if op.name == "GLOBAL" else Made(imported.name, None))
            else:
                result = self._result(op, argument, *self._operands(op))
                self._stack += [result] * (op.pushes + (op.name == "DUP"))

    def _run_quickly(self) -> None:
        """As run(), for the opcodes that large pickles are made of, as far as the buffer goes; raises LookupError.

        Strings stay bytes until somebody asks for them.
        """
        data, at, count = self._stream.peek(), 0, CAREFUL
        end, simple, width_of = len(data), not self._sized, (PLAIN_WIDTHS if self._sized else UNSIZED_WIDTHS).get
        stack, push, memo, marks = self._stack, self._stack.append, self._memo, self._marks
        while at + LONGEST <= end:
            code, count = data[at], count + 1
            if width := width_of(code):
                push(NULL if code == NONE else OTHER)
            elif width := ARGUMENT_WIDTHS.get(code, 0):
                number = data[at + 1] if width == 2 else int.from_bytes(
                    data[at + 1:at + width], "little", signed=code == BININT)
                if code in PUTS:
                    memo[number] = stack[-1]
                elif code in GETS or code in NUMBER_WIDTHS:
                    push(memo[number] if code in GETS else number)
                elif at + width + number > end or (number > MAX_NAME and code != SHORT_BINBYTES):
                    break
                else:
                    push(OTHER if code == SHORT_BINBYTES else data[at + width:at + width + number])
                    width += number
            elif code == MEMOIZE:
                memo[len(memo)], width = stack[-1], 1
            elif code == MARK:
                marks.append(len(stack))
                width = 1
            elif TUPLE1 <= code <= TUPLE3 and len(stack) >= (taken := code - TUPLE1 + 1) and (
                    not self._wrapped or Global not in map(type, stack[-taken:])):
                stack[-taken:], width = (OTHER if simple else kept(stack[-taken:]),), 1
            elif code == REDUCE and type(stack[-2]) is Global:
                arguments, width = stack.pop(), 1
                stack[-1] = self._call(stack[-1], arguments)
            elif simple and code in (APPEND, SETITEM):
                del stack[-1 if code == APPEND else -2:]
                width = 1
            elif not self._wrapped and (code == TUPLE or (simple and code in TO_MARK)):
                values, width = stack[(begin := marks.pop()):begin + MAX_VALUES + 1], 1
                del stack[begin:]
                if code == TUPLE:
                    push(OTHER if simple else kept(values))
            else:
                break
            at += width
        self._stream.read(at)
        self._budget.take(count * OPCODE)
        if len(memo) > MAX_MEMO:
            raise BudgetExceeded

    def _call(self, function: Any, arguments: Any) -> Made:
        """What something makes of arguments, if it was imported."""
        self.idle &= type(function) is not Global
        name = function.name if type(function) is Global else "?"
        if name.startswith(TENSOR):
            self._found.rebuild(arguments)
        return Made(name, arguments if type(arguments) is tuple else None)

    def _import(self, module: str | None, name: str | None) -> Global:
        self._budget.step()     # decoding and checking two names takes longer than other opcodes
        imported = self._found.add(module, name)
        self._wrapped |= self._arrays and (imported.name.endswith(WRAPPER) or "?" in imported.name)
        self._sized |= self._wrapped or imported.name == "numpy.dtype" or imported.name.startswith(TENSOR)
        return imported

    def _argument(self, kind: int) -> bytes | None:
        """The bytes of an argument; None instead of more than a name has."""
        if kind == pickletools.UP_TO_NEWLINE:
            return line(self._stream)
        if kind >= 0:
            return exactly(self._stream, kind)
        length = int.from_bytes(exactly(self._stream, WIDTHS[kind]), "little",
                                signed=kind == pickletools.TAKEN_FROM_ARGUMENT4)
        if length < 0:
            raise Malformed("a length in it is negative")
        if length <= MAX_NAME:
            return exactly(self._stream, length)
        skip(self._stream, length)
        return None

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Malformed("its stack is empty")
        return self._stack.pop()

    def _remember(self, op: Operation, argument: bytes | None) -> None:
        """Puts the value on top into the memo, or one of the memo on top."""
        digits, place = argument or b"", int.from_bytes(argument or b"", "little")
        if op.name == "MEMOIZE":
            place = len(self._memo)
        elif op.argument == pickletools.UP_TO_NEWLINE:
            try:
                place = int(digits[:MAX_NAME])
            except ValueError as error:
                raise Malformed("a number in it is none") from error
        if len(self._memo) >= MAX_MEMO or len(digits) > MAX_NAME:
            raise BudgetExceeded
        if op.name.endswith("GET"):
            if place not in self._memo:
                raise Malformed("it refers to what is not there")
            self._stack.append(self._memo[place])
        elif not self._stack:
            raise Malformed("its stack is empty")
        else:
            self._memo[place] = self._stack[-1]

    def _operands(self, op: Operation) -> tuple[list[Any], list[Any]]:
        """The values that it takes from below the mark, and those from above; without a mark all are below."""
        above: list[Any] = []
        if op.to_mark:
            if not self._marks:
                raise Malformed("it has no mark")
            begin = self._marks.pop()
            above = self._stack[begin:]
            del self._stack[begin:]
        elif op.name == "POP" and self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
            return [], []
        return [self._pop() for _ in range(op.pops)][::-1], above

    def _result(self, op: Operation, argument: bytes | None, below: list[Any], above: list[Any]) -> Any:
        """What is known of the value that an opcode pushes."""
        name = op.name
        if name == "STACK_GLOBAL":
            below = [text_of(value) if type(value) is bytes else value for value in below]
            if any(value is not None and not isinstance(value, str | Made) for value in below):
                raise Malformed("it imports what is no name")
            return self._import(*(value if isinstance(value, str) else None for value in below))
        if name.startswith("EXT"):
            self._found.add(EXTENSION[:-1], str(int.from_bytes(argument or b"", "little")))
        elif name == "PROTO":
            if argument and argument[0] > pickle.HIGHEST_PROTOCOL:
                raise Malformed("it is of a protocol that is not known")
        elif name in ("PERSID", "BINPERSID"):
            self._found.persistent_ids = True
        elif name in ("STRING", "UNICODE"):
            text = text_of(argument)
            return None if not text or "\\" in text else text.strip("'\"") if name == "STRING" else text
        elif name in NUMBERS:
            return OTHER if argument is None else int.from_bytes(argument, "little", signed=NUMBERS[name])
        elif name in STRINGS:
            return text_of(argument)
        else:
            return self._combined(op, below, above)
        return op.result

    def _combined(self, op: Operation, below: list[Any], above: list[Any]) -> Any:
        """What an opcode makes of values that it takes."""
        name = op.name
        if self._wrapped and Global in map(type, (*below[name in CALLS:], *above)):
            self._found.complete &= not any(type(value) is Global and value.name.endswith(WRAPPER)
                                            for value in (*below, *above))
        if name.startswith("TUPLE"):
            return kept(above or below)
        if name in ("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"):
            target = {} if name.endswith("DICT") else below[0]
            if isinstance(target, dict):
                update(target, above or below[1:])
            return target if self._sized else OTHER
        if name in CALLS:
            return self._call(below[0], below[1] if len(below) == 2 else None)
        if name == "OBJ":
            self.idle &= not (above and isinstance(above[0], Global))
        if name == "BUILD":
            self.idle &= not isinstance(below[0], Global) or isinstance(below[1], str | bytes | Global)
            return self._build(*below)
        return below[0] if name == "DUP" or name in SAME else op.result

    def _build(self, target: Any, state: Any) -> Any:
        """Gives an object its state. In the place of joblib's wrapper of an array come the array's raw bytes then."""
        if isinstance(target, Made):
            target.state = state if target.state is None else OTHER     # of two the effect is not known
            if not target.name.endswith(WRAPPER) and "?" not in target.name:
                return target
        if not self._wrapped:
            return target
        array = array_of(target.state) if isinstance(target, Made) and target.arguments == () else None
        if array is None:   # whether joblib would read an array here is not known
            self._found.complete = False
            return target
        size, padded = array
        if size is None:    # an array of objects is a pickle in the pickle
            self._found.complete = False    # for pickle.load the same pickle going on
            Walk(self._stream, self._found, self._budget, arrays=False).run()
            return OTHER
        padding = exactly(self._stream, 1)[0] if padded else 0
        if padding > MAX_PADDING:
            raise Malformed("an array in it is not aligned")    # what pickle.load would take for opcodes
        self.unpadded |= not padded
        skip(self._stream, padding + size)
        return OTHER


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
