"""Whether there is a pickle, and all that unpickling would import; nothing is imported, built or called.

Each one is walked opcode by opcode with a stack of what is known of its values: not by pickletools.genops, which reads
an argument whole however long it is, and gives up on arguments that pickle itself takes.
"""

import math
import pickle
import pickletools
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from inspection.found import EXTENSION, Found
from inspection.reader import BLOCK, BudgetExceeded, Malformed, Stream

MAX_MEMO = 750_000      # values a pickle may refer back to, 40 MB; a vocabulary of 250,000 words needs fewer
MAX_NAME = 128          # characters of a module or of a name in it; the longest of scikit-learn has 60
MAX_VALUES = 64         # values kept of a tuple or dict: the shape of an array, the fields of its wrapper
MAX_INTEGER = 16        # bytes of a number that is kept: those of shapes have 8
MAX_PADDING = 16        # bytes that joblib puts before an array, which no unpickler takes for opcodes
CAREFUL = 1400          # what an opcode that is not simple takes, in bytes read
TORCH_MAGIC = 0x1950A86A20F9469CFC6C    # the first of the pickles in a file of torch.save before 1.6
TORCH_PICKLES = 5       # the storages follow as raw bytes
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")  # what a text has none of
IMPORTABLE = re.compile(r"[\w<][\w.<>-]*")   # a line of text may begin with the opcode that imports
TENSOR = "torch._utils._rebuild_tensor"
WRAPPER = ".NumpyArrayWrapper"      # joblib's, under whatever name it is reached
DTYPE = re.compile(rb"([biufcSUVmMO])([0-9]{1,9})")
HAS_OBJECTS = 1         # a flag in the state of a dtype


# ---- values on the stack of an unpickler: strings as bytes, numbers, tuples and dicts of these, and what follows


class Global(NamedTuple):
    """Something imported."""

    name: str


@dataclass(eq=False, slots=True)
class Made:
    """The result of calling something imported, with its arguments, as far as they are known, and its state."""

    name: str
    arguments: Any
    state: Any = None


# Stand for values that are not known: OTHER for one that is no string, NULL for None, None for what may be a string.
OTHER, NULL = object(), object()
UNSURE = object()       # a key of a dict that may have other values than are known


def kept(values: list[Any]) -> Any:
    """A tuple of these."""
    return tuple(values) if len(values) <= MAX_VALUES else OTHER


def update(target: Any, items: list[Any]) -> None:
    """Puts keys and values in turn into a dict, where it is known that it is one."""
    for key, value in zip(items[::2], items[1::2], strict=False) if type(target) is dict else ():
        known = type(key) is bytes and (len(target) < MAX_VALUES or key in target)
        target[key if known else UNSURE] = value


def array_of(state: Any) -> tuple[int | None, bool] | None:
    """What joblib reads in the place of a wrapper with this state; None where that is not certain.

    It is so many bytes, None for a pickle; and whether there is padding before it.
    """
    if type(state) is not dict or UNSURE in state:
        return None
    shape, dtype, alignment = map(
        state.get, (b"shape", b"dtype", b"numpy_array_alignment_bytes"), (0, 0, NULL))
    if type(shape) is not tuple or any(type(length) is not int or length < 0 for length in shape):
        return None
    if type(dtype) is not Made or dtype.name != "numpy.dtype" or (alignment is not NULL and type(alignment) is not int):
        return None
    name, state = dtype.arguments[:1] if type(dtype.arguments) is tuple else (), dtype.state
    code = DTYPE.fullmatch(name[0]) if name and type(name[0]) is bytes else None
    if not code or (state is not None and (type(state) is not tuple or len(state) not in (8, 9) or state[0] not in (
            3, 4) or state[2] is not NULL or type(state[5]) is not int or type(state[7]) is not int)):
        return None     # numpy's __setstate__ goes by the length, the version, a part that is an array, size and flags
    if code[1] == b"O" or (state and state[7] & HAS_OBJECTS):
        return None, False
    size = int(code[2]) * (4 if code[1] == b"U" else 1)
    if state and code[1] in b"SUV":     # the other types keep theirs
        size = state[5]
    return (math.prod(shape) * size, alignment is not NULL) if size >= 0 else None


# ---- opcodes


class Opcode(NamedTuple):
    """What pickletools knows about an opcode."""

    name: str
    argument: int       # its length in bytes; a negative one is a code of pickletools for how it is found
    takes: int          # values from the stack, below the mark if there is one
    mark: bool          # whether it takes all that is above the last mark
    result: Any         # what it pushes, unless the interpreter finds something more precise
    pushes: int         # how many of these


def described(op: pickletools.OpcodeInfo) -> Opcode:
    mark = pickletools.markobject in op.stack_before
    return Opcode(op.name, op.arg.n if op.arg else 0,
                  op.stack_before.index(pickletools.markobject) if mark else len(op.stack_before), mark,
                  None if pickletools.anyobject in op.stack_after else OTHER, len(op.stack_after))


OPCODES = {ord(op.code): described(op) for op in pickletools.opcodes}
# How long the length before an argument is, by pickletools' codes for it.
WIDTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
          pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
# The opcodes that large pickles consist of, by their byte. Each has an action; a length in bytes, with the argument or,
# if that is of any size, with its length field; what the action needs (the value to push, the sign bit, or the number
# of values to take); and a cost, as if so many bytes were read. Objects that the garbage collector tracks cost more.
PUSH, SIZED, NUMBER, GET, PUT, MARK, CALL, ITEMS, TUPLE, TAKE = range(10)
SIMPLE: dict[int, tuple[int, int, Any, int]] = {
    **dict.fromkeys(b"\x88\x89]\x8f}", (PUSH, 1, OTHER, 48)), ord("G"): (PUSH, 9, OTHER, 48),
    ord("N"): (PUSH, 1, NULL, 48), ord(")"): (PUSH, 1, (), 48),
    ord("K"): (NUMBER, 2, 0, 96), ord("M"): (NUMBER, 3, 0, 128), ord("J"): (NUMBER, 5, 1 << 31, 160),
    0x8C: (SIZED, 2, None, 96), ord("X"): (SIZED, 5, None, 112), ord("C"): (SIZED, 2, OTHER, 96),
    0x94: (PUT, 1, 0, 80), ord("q"): (PUT, 2, 0, 96), ord("r"): (PUT, 5, 0, 144),
    ord("h"): (GET, 2, 0, 96), ord("j"): (GET, 5, 0, 144), ord("("): (MARK, 1, 0, 128), ord("R"): (CALL, 1, 0, 224),
    ord("t"): (ITEMS, 1, True, 160), ord("e"): (ITEMS, 1, False, 160), ord("u"): (ITEMS, 1, False, 160),
    0x85: (TUPLE, 1, 1, 192), 0x86: (TUPLE, 1, 2, 192), 0x87: (TUPLE, 1, 3, 192),
    ord("a"): (TAKE, 1, 2, 112), ord("s"): (TAKE, 1, 3, 112)}
PLAIN = [SIMPLE.get(code) for code in range(256)]
WITH_ARRAYS = [None if code in b"}tue\x85\x86\x87as" else simple for code, simple in enumerate(PLAIN)]
LONGEST = 9 + MAX_NAME  # bytes of one of these with an argument that is kept


class Walk:
    """Pickles in a stream, one after another, each from its first opcode to STOP.

    `idle` is True while nothing that was imported was called or changed; `unpadded` once raw bytes were passed over
    that pickle.load may take for opcodes.
    """

    def __init__(self, source: Stream, found: Found, arrays: bool = True) -> None:
        self._source, self._found, self._arrays = source, found, arrays
        self.idle, self.unpadded = True, False

    def run(self) -> Any:
        """What is known of the next value; raises BudgetExceeded, and Malformed where every unpickler would fail."""
        self._stack: list[Any] = []             # above the last mark
        self._below: list[list[Any]] = []       # the stacks below the marks
        self._memo: dict[int, Any] = {}
        self._wrapped = False                   # whether an array may come
        try:
            while True:
                self._run_simple()
                op = OPCODES[self._source.exactly(1)[0]]
                if op.name == "STOP":
                    return self._stack.pop()
                self._perform(op, self._argument(op.argument))
        except LookupError as error:
            raise Malformed("it takes what is not there") from error

    def _run_simple(self) -> None:
        """Goes on up to an opcode that is not simple; raises LookupError. Strings stay bytes until they are needed."""
        stack, memo, cost = self._stack, self._memo, CAREFUL
        data, at, last = self._source.data, self._source.at, len(self._source.data) - LONGEST
        table = WITH_ARRAYS if self._wrapped else PLAIN
        try:
            while True:
                if at > last:
                    (data, at, last), cost = self._ahead(at, cost), 0
                if not (simple := table[data[at]]):
                    break
                kind, width, value, price = simple
                number = 0 if width == 1 or kind == PUSH else data[at + 1] if width == 2 else int.from_bytes(
                    data[at + 1:at + width], "little")
                at, cost = at + width, cost + price
                if kind == PUSH:
                    stack.append(value)
                elif kind == SIZED:
                    stack.append(data[at:at + number] if number <= MAX_NAME and value is None else value)
                    at += number
                elif kind == NUMBER:
                    stack.append((number ^ value) - value)
                elif kind == GET:
                    stack.append(memo[number])
                elif kind == PUT:
                    memo[number if width > 1 else len(memo)] = stack[-1]
                elif kind == MARK:
                    self._below.append(stack)
                    stack = []
                elif kind == CALL:
                    stack.append(self._call(stack.pop(), stack.pop()))
                    table = WITH_ARRAYS if self._wrapped else PLAIN
                elif kind == ITEMS:
                    items, stack = stack, self._below.pop()
                    if value:
                        stack.append(kept(items))
                    else:
                        self._change(stack[-1], data[at - 1:at] == b"u")
                elif len(stack) < value:
                    raise LookupError
                elif kind == TUPLE:
                    stack[-value:] = (tuple(stack[-value:]),)
                else:
                    del stack[1 - value:]
                    self._change(stack[-1], value == 3)
        finally:
            self._stack = stack
            self._source.budget.take(cost)
        self._source.skip(at - self._source.at)

    def _ahead(self, at: int, cost: int) -> tuple[bytes, int, int]:
        """Pays and goes on: the bytes here, where in them, and up to where an opcode is whole there."""
        self._source.budget.take(cost)
        if len(self._memo) > MAX_MEMO:
            raise BudgetExceeded
        self._source.skip(at - self._source.at)
        more = len(self._source.ahead(LONGEST)) == LONGEST
        return self._source.data, self._source.at, len(self._source.data) - LONGEST * more

    def _argument(self, kind: int) -> bytes | None:
        """The bytes of an argument; None instead of more than a name has."""
        if kind == pickletools.UP_TO_NEWLINE:
            return line(self._source)
        if kind >= 0:
            return self._source.exactly(kind)
        length = int.from_bytes(self._source.exactly(WIDTHS[kind]), "little",
                                signed=kind == pickletools.TAKEN_FROM_ARGUMENT4)
        if length < 0:
            raise Malformed("a length in it is negative")
        if length <= MAX_NAME:
            return self._source.exactly(length)
        self._source.skip(length)
        return None

    def _perform(self, op: Opcode, argument: bytes | None) -> None:
        """Does what an opcode does to the stack and the memo; raises LookupError, and Malformed."""
        name, result = op.name, op.result
        if name in ("GLOBAL", "INST"):  # first of all, as the unpickler does that is written in Python
            imported = self._import(name_of(argument or b""), name_of(line(self._source)))
        below, above = self._operands(op)
        match name:
            case "GLOBAL":
                result = imported
            case "INST":
                result, self.idle = Made(imported.name, None), False
            case "STACK_GLOBAL":
                result = self._import(*map(written, below))
            case "EXT1" | "EXT2" | "EXT4":
                self._found.add(EXTENSION[:-1], str(int.from_bytes(argument or b"", "little")))
            case "PROTO":
                if argument and argument[0] > pickle.HIGHEST_PROTOCOL:
                    raise Malformed("it is of a protocol that is not known")
            case "PERSID" | "BINPERSID":
                self._found.persistent_ids = True
            case "STRING" | "UNICODE":
                text = (argument or b"")[1:-1] if name == "STRING" else argument or b""     # without its quotes
                result = None if b"\\" in text else text
            case "BINUNICODE8" | "BINSTRING" | "SHORT_BINSTRING":
                result = argument
            case "LONG1" | "LONG4" if argument is not None and len(argument) <= MAX_INTEGER:
                result = int.from_bytes(argument, "little", signed=True)
            case "GET":
                result = self._memo[place(argument or b"")]
            case "PUT":
                self._memo[place(argument or b"")] = self._stack[-1]
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                result = kept(above or below)
            case "EMPTY_DICT" | "DICT" | "SETITEM" | "SETITEMS":
                result = {} if name.endswith("DICT") else below[0]
                update(result, above or below[1:])
                self._change(result, True)
            case "DUP" | "APPEND" | "APPENDS" | "ADDITEMS" | "READONLY_BUFFER":
                result = below[0]
                self._change(result, False)
            case "NEWOBJ" | "NEWOBJ_EX":
                result = self._call(below[1] if name == "NEWOBJ" else None, below[0])
            case "OBJ":
                self.idle &= type(above[0]) is not Global
            case "BUILD":
                result = self._build(*below)
        self._stack += [result] * op.pushes

    def _operands(self, op: Opcode) -> tuple[list[Any], list[Any]]:
        """The values that it takes from below the mark, and those from above; without a mark all are below."""
        takes, above = op.takes, list[Any]()
        if op.mark or (op.name == "POP" and not self._stack):
            above, self._stack = self._stack, self._below.pop()
            takes -= not op.mark
        below = [self._stack.pop() for _ in range(takes)][::-1]
        if self._wrapped:
            self._source.budget.step()
            taken = (*below[op.name in ("NEWOBJ", "NEWOBJ_EX", "REDUCE"):], *above)
            if any(type(value) is Global and may_wrap(value.name) for value in taken):
                self._found.complete = False    # whatever takes it may use it to read an array
        return below, above

    def _call(self, arguments: Any, function: Any) -> Made:
        """What something makes of arguments, if it was imported."""
        if type(function) is not Global:
            self._wrapped |= self._arrays   # of what was made itself
            return Made("?", arguments)
        self.idle = False
        if function.name.startswith(TENSOR):
            self._source.budget.step()
            self._found.rebuild(arguments)
        return Made(function.name, arguments)

    def _change(self, target: Any, keys: bool) -> None:
        """Counts a change of an imported object as a call: it may append to sys.path, or replace builtins.open."""
        if type(target) is Global and (keys or target.name.partition(".")[0] in sys.stdlib_module_names):
            self.idle = False       # a text may seem to append to what is not there

    def _import(self, module: str | None, name: str | None) -> Global:
        self._source.budget.step(2)     # decoding and checking two names takes longer than other opcodes
        imported = Global(self._found.add(module, name))
        self._wrapped |= self._arrays and may_wrap(imported.name)
        return imported

    def _build(self, target: Any, state: Any) -> Any:
        """Gives an object its state. In the place of joblib's wrapper of an array come the array's raw bytes then."""
        self.idle &= type(target) is not Global or type(state) in (bytes, Global)
        if type(target) is Made:
            target.state = state if target.state is None else OTHER     # of two the effect is not known
        if not self._wrapped or (type(target) is Made and not may_wrap(target.name)):
            return target
        array = array_of(target.state) if type(target) is Made and target.arguments == () else None
        if array is None:   # whether joblib would read an array here is not known
            fails = type(state) is dict and not {UNSURE, b"shape"} & state.keys()   # joblib, with such a wrapper
            self._found.complete &= fails and type(target) is Made and target.name == "?"
            return target
        size, padded = array
        if size is None:    # an array of objects is a pickle in the pickle
            self._found.complete = False    # for pickle.load the same pickle going on
            Walk(self._source, self._found, arrays=False).run()
            return OTHER
        padding = self._source.exactly(1)[0] if padded else 0
        if padding > MAX_PADDING:
            raise Malformed("an array in it is not aligned")    # what pickle.load would take for opcodes
        self.unpadded |= not padded
        self._source.skip(padding + size)
        return OTHER


def may_wrap(name: str) -> bool:
    """Whether this is joblib's wrapper of an array, under whatever name it is reached, or may be."""
    return name.endswith(WRAPPER) or "?" in name


def line(source: Stream) -> bytes:
    """The bytes up to the end of the line, not more than are too many for a name.

    A last line without its end loses its last byte, as it does in the unpickler that is written in Python.
    """
    text = b""
    for piece in source.until(b"\n"):
        text = (text + piece)[:MAX_NAME + 3]    # with quotes and the end
    return text[:-1]


def name_of(text: bytes) -> str | None:
    """A name in an opcode that imports, None for a long one; raises Malformed for what no module is called."""
    name = text[:MAX_NAME].decode("utf-8", "ignore" if len(text) > MAX_NAME else "replace")
    if not IMPORTABLE.fullmatch(name):
        raise Malformed("it imports what can have no name")
    return name if len(text) <= MAX_NAME else None


def written(value: Any) -> str | None:
    """A name on the stack, None where it is not known; raises Malformed for what is none."""
    if value is not None and type(value) not in (bytes, Made):
        raise Malformed("it imports what is no name")
    text = value.decode("utf-8", "replace") if type(value) is bytes else ""
    return text if 0 < len(text) <= MAX_NAME and text.isprintable() else None


def place(digits: bytes) -> int:
    """The key of a value in the memo, which was written as text."""
    try:
        key = int(digits[:MAX_NAME])
    except ValueError as error:
        raise Malformed("a number in it is none") from error
    if len(digits) > MAX_NAME:
        raise BudgetExceeded
    return key


# ---- pickles in a file


def look(source: Stream, found: Found) -> None:
    """Adds to `found` what unpickling would import here, where there need not be a pickle; raises BudgetExceeded."""
    here, protocol = Found(), source.ahead(1) == b"\x80"
    try:
        if not is_pickle(source, here, protocol):
            here = Found()
    except BudgetExceeded:
        here.pickled = protocol or bool(here.imports)
        raise
    finally:
        found.merge(here)


def is_pickle(source: Stream, here: Found, protocol: bool) -> bool:
    """Whether there is a pickle here, which is then walked, and those behind it.

    It is one when it has an import, or when it is whole and either says so in its first byte or ends with the file: in
    the raw bytes of a tensor some first bytes are opcodes by chance, and of those an EXT is an import that nobody has.
    Nor is it one when a text has a word that begins with c and another below it, as lists of labels have, unless STOP
    is its end or it does something with what it imports.
    """
    walk, whole, start = Walk(source, here), False, source.tell()
    with suppress(Malformed):
        here.torch = walk.run() == TORCH_MAGIC
        whole = True
    certain = (whole and (protocol or not source.ahead(1))) or (protocol and bool(here.imports))
    here.complete &= whole and look_on(source, here, walk)
    if not certain and (not here.named() or (walk.idle and is_text(source))):
        return False
    here.pickled = whole or protocol
    if walk.unpadded:   # for pickle.load the array is more opcodes
        rest, plain = source.part.stream(), Found()
        rest.skip(start)
        look_on(rest, plain, Walk(rest, plain, arrays=False))
        here.complete &= plain.imports.keys() <= here.imports.keys()
    return True


def is_text(source: Stream) -> bool:
    """Whether what a stream begins with is text, wherever it has come to."""
    text = source.part.stream().read(BLOCK)
    source.budget.take(2 * len(text))   # for the search
    return not CONTROL.search(text)


def look_on(source: Stream, found: Found, walk: Walk) -> bool:
    """Goes through the pickles that come next; False when something else comes."""
    with suppress(Malformed):
        if found.torch:
            for _ in range(TORCH_PICKLES - 1):
                walk.run()
        while not found.torch and source.ahead(1):
            walk.run()
        return True
    return False
