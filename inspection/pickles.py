"""The imports that a pickle would perform, read from its opcodes; nothing is imported, built or called.

The opcodes are those of pickletools, walked here rather than by pickletools.genops, which reads an argument whole
however long it is, and gives up on arguments that pickle itself takes.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from inspection.reader import BLOCK, OPCODE, Budget, BudgetExceeded, Malformed, exactly, skip
from inspection.values import (
    MAX_NAME,
    MAX_VALUES,
    NULL,
    OTHER,
    WRAPPER,
    Global,
    Made,
    array_of,
    known,
    text_of,
    update,
)

MAX_IMPORTS = 200       # a pickled pipeline has 30, a network with all its layers 50
MAX_MEMO = 750_000      # values a pickle may refer back to, 40 MB; a vocabulary of 250,000 words needs fewer
MAX_PICKLES = 64        # one after another in a file; torch's old format has 5
TORCH_MAGIC = 0x1950A86A20F9469CFC6C    # the first of the pickles in a file of torch.save before 1.6
TORCH_PICKLES = 5       # the storages follow as raw bytes
MAX_PARAMETERS = (1 << 63) - 1  # what other readers of our JSON take
TENSOR = "torch._utils._rebuild_tensor"
JOBLIB = ("joblib.numpy_pickle.", "sklearn.externals.joblib.numpy_pickle.")    # where scikit-learn had it before 0.23
MAX_PADDING = 16        # bytes that joblib puts before an array, which no unpickler takes for opcodes
EXTENSION = "copyreg.extension."    # and the number of an import that a registry of the reader has
IMPORTABLE = re.compile(r"[\w<][\w.<>-]*")   # a line of text may begin with the opcode that imports
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # what a text has none of

# What it takes to put tensors and arrays together again, and nothing that looks up or calls what a pickle names.
# The README has this list too.
KNOWN = frozenset({
    "_codecs.encode", "collections.OrderedDict",
    *(f"torch.{name}Storage" for name in ("BFloat16", "Bool", "Byte", "Char", "ComplexDouble", "ComplexFloat", "Double",
                                          "Float", "Half", "Int", "Long", "Short")),
    "torch.storage.TypedStorage", "torch.storage.UntypedStorage",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3", "torch.Size", "torch.device",
    *(f"torch.{name}" for name in ("bfloat16", "bool", "float16", "float32", "float64", "int8", "int16", "int32",
                                   "int64", "uint8", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer", "numpy.ndarray", "numpy.dtype",
})


@dataclass
class Found:
    """What a file would unpickle. `complete` is False when there may be more than was found."""

    imports: dict[str, None] = field(default_factory=dict)      # in the order in which they were met
    pickled: bool = False
    complete: bool = True
    torch: bool = False
    persistent_ids: bool = False
    native: bool = False
    tensors: int = 0        # that torch would rebuild, and the numbers in them
    parameters: int = 0

    def add(self, module: str | None, name: str | None) -> Global:
        full = f"{module or '?'}.{name or '?'}"     # ? for what is too long, or known only when it runs
        if len(self.imports) < MAX_IMPORTS:
            self.imports[full] = None
        elif full not in self.imports:
            self.complete = False
        return Global(full)

    def rebuild(self, arguments: Any) -> None:
        """Counts a tensor by the arguments of the call that makes it: storage, offset, shape."""
        self.tensors += 1
        if type(arguments) is tuple and is_shape(shape := (*arguments, None, None, None)[2]):
            self.parameters = max(0, min(self.parameters + math.prod(shape), MAX_PARAMETERS))

    def named(self) -> bool:
        return not all(name.startswith(EXTENSION) for name in self.imports)

    def merge(self, other: "Found") -> None:
        for name in other.imports:
            self.add(*name.rsplit(".", 1))
        self.complete &= other.complete
        self.pickled |= other.pickled
        self.torch |= other.torch
        self.persistent_ids |= other.persistent_ids
        self.native |= other.native
        self.tensors += other.tensors
        self.parameters = min(self.parameters + other.parameters, MAX_PARAMETERS)


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


WIDTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
          pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}
NUMBERS = {"BININT": True, "BININT1": False, "BININT2": False, "LONG1": True, "LONG4": True}    # whether signed
ACTIONS = {"MARK": "mark", "STOP": "stop", "GLOBAL": "import", "INST": "import"}
CONSTANTS = {"NONE": NULL, "NEWTRUE": OTHER, "NEWFALSE": OTHER, "EMPTY_LIST": OTHER, "EMPTY_SET": OTHER,
             "EMPTY_TUPLE": ()}


class Operation(NamedTuple):
    name: str
    argument: int | None    # its length, or one of pickletools' codes for where the length is
    pops: int               # below the mark when there is one
    to_mark: bool
    pushes: bool
    result: object          # OTHER, or None where it may be a string
    action: str             # what Walk does about it


def operation(code: pickletools.OpcodeInfo) -> Operation:
    before, after = ([each.name for each in side] for side in (code.stack_before, code.stack_after))
    to_mark, result = "mark" in before, CONSTANTS.get(code.name, None if "any" in after else OTHER)
    action = ("push" if code.name in CONSTANTS else "string" if code.name in STRINGS else "memo"
              if code.name.endswith(("PUT", "GET", "MEMOIZE")) else "number" if code.name in NUMBERS
              else ACTIONS.get(code.name, ""))
    return Operation(code.name, code.arg.n if code.arg else None, before.index("mark") if to_mark else len(before),
                     to_mark, bool(after), result, action)


OPERATIONS = {code.code.encode("latin-1"): operation(code) for code in pickletools.opcodes}
CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX"}
TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
SAME = {"APPEND", "APPENDS", "ADDITEMS", "READONLY_BUFFER"}     # what is below stays


# The opcodes that large pickles are made of, by their bytes, and how many each takes with its argument.
(MARK, MEMOIZE, BINPUT, LONG_BINPUT, BINGET, LONG_BINGET, SHORT_BINUNICODE, BINUNICODE, SHORT_BINBYTES, TUPLE1, TUPLE3,
 TUPLE, SETITEM, APPEND, REDUCE, NONE) = b"(\x94qrhj\x8cXC\x85\x87tsaRN"
TO_MARK = b"eu"         # APPENDS, SETITEMS
NUMBER_WIDTHS = {ord("K"): 2, ord("M"): 3, ord("J"): 5}
PLAIN_WIDTHS = dict.fromkeys(b"N\x88\x89]\x8f", 1) | {ord("G"): 9}     # that push a value of no interest
UNSIZED_WIDTHS = PLAIN_WIDTHS | NUMBER_WIDTHS | dict.fromkeys(b")}", 1)    # of none while there are no arrays
LONGEST = 9             # of these widths
CAREFUL = 16            # opcodes of these that any other one costs


class Walk:
    """One pickle from its first opcode to STOP, with a stack of what is known of the values: names, numbers, shapes.

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
        read, push = self._stream.read, self._stack.append
        while True:
            self._run_quickly()
            op = OPERATIONS.get(read(1))
            if op is None:
                raise Malformed("it has something else than opcodes")
            argument = None if op.argument is None else self._argument(op.argument)
            if op.action == "":
                self._apply(op, argument, *self._operands(op))
            elif op.action == "push":
                push(op.result)
            elif op.action == "string":
                push(text_of(argument))
            elif op.action == "number":
                push(OTHER if argument is None else int.from_bytes(argument, "little", signed=NUMBERS[op.name]))
            elif op.action == "memo":
                self._remember(op, argument)
            elif op.action == "mark":
                self._marks.append(len(self._stack))
            elif op.action == "stop":
                return self._pop()
            else:
                imported = self._import(name_of(argument or b""), name_of(line(self._stream)))
                self._operands(op)      # for INST, which the unpickler in Python imports before it looks for them
                self.idle &= op.name == "GLOBAL"
                push(imported if op.name == "GLOBAL" else Made(imported.name, None))

    def _run_quickly(self) -> None:
        """Goes over the opcodes that large pickles are made of, as far as the buffer goes; leaves others to run().

        It does nothing that run() would not do. Strings stay bytes until somebody asks for them.
        """
        data, at, count = self._stream.peek(), 0, 0
        end, simple, width_of = len(data), not self._sized, (PLAIN_WIDTHS if self._sized else UNSIZED_WIDTHS).get
        stack, push, memo, marks = self._stack, self._stack.append, self._memo, self._marks
        try:
            while at + LONGEST <= end:
                code, count = data[at], count + 1
                if width := width_of(code):
                    push(NULL if code == NONE else OTHER)
                    at += width
                elif code == MEMOIZE:
                    memo[len(memo)] = stack[-1]
                    at += 1
                elif code == SHORT_BINUNICODE and (size := data[at + 1]) <= MAX_NAME and at + 2 + size <= end:
                    at += 2 + size
                    push(data[at - size:at])
                elif code == SHORT_BINBYTES and at + 2 + data[at + 1] <= end:
                    push(OTHER)
                    at += 2 + data[at + 1]
                elif code == BINUNICODE and at + 5 + (
                        size := int.from_bytes(data[at + 1:at + 5], "little")) <= end and size <= MAX_NAME:
                    at += 5 + size
                    push(data[at - size:at])
                elif code == BINPUT:
                    memo[data[at + 1]] = stack[-1]
                    at += 2
                elif code == BINGET:
                    push(memo[data[at + 1]])
                    at += 2
                elif code == LONG_BINPUT:
                    memo[int.from_bytes(data[at + 1:at + 5], "little")] = stack[-1]
                    at += 5
                elif code == LONG_BINGET:
                    push(memo[int.from_bytes(data[at + 1:at + 5], "little")])
                    at += 5
                elif code == MARK:
                    marks.append(len(stack))
                    at += 1
                elif TUPLE1 <= code <= TUPLE3 and len(stack) >= (taken := code - TUPLE1 + 1) and (
                        not self._wrapped or Global not in map(type, stack[-taken:])):
                    stack[-taken:] = (OTHER if simple else tuple(map(known, stack[-taken:])),)
                    at += 1
                elif width := NUMBER_WIDTHS.get(code):
                    push(int.from_bytes(data[at + 1:at + width], "little", signed=width == 5))
                    at += width
                elif code == REDUCE and type(stack[-2]) is Global:
                    arguments, self.idle = stack.pop(), False
                    if stack[-1].name.startswith(TENSOR):
                        self._found.rebuild(arguments)
                    stack[-1] = Made(stack[-1].name, arguments if type(arguments) is tuple else None)
                    at += 1
                elif simple and code in (APPEND, SETITEM):
                    del stack[-1 if code == APPEND else -2:]
                    at += 1
                elif not self._wrapped and (code == TUPLE or (simple and code in TO_MARK)):
                    at, begin = at + 1, marks.pop()
                    values = stack[begin:begin + MAX_VALUES + 1] if code == TUPLE else None
                    del stack[begin:]
                    if values is not None:
                        push(OTHER if simple or len(values) > MAX_VALUES else tuple(map(known, values)))
                else:
                    break
        except LookupError as error:
            raise Malformed("it takes what is not there") from error
        self._stream.read(at)
        self._budget.take((count + CAREFUL) * OPCODE)
        if len(memo) > MAX_MEMO:
            raise BudgetExceeded

    def _import(self, module: str | None, name: str | None) -> Global:
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
        place = len(self._memo) if op.name == "MEMOIZE" else place_of(op, argument)
        if op.name.endswith("GET"):
            if place not in self._memo:
                raise Malformed("it refers to what is not there")
            self._stack.append(self._memo[place])
            return
        if not self._stack:
            raise Malformed("its stack is empty")
        if len(self._memo) >= MAX_MEMO:
            raise BudgetExceeded
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

    def _apply(self, op: Operation, argument: bytes | None, below: list[Any], above: list[Any]) -> None:
        name, result = op.name, op.result
        if name == "STACK_GLOBAL":
            below = [text_of(value) if type(value) is bytes else value for value in below]
            if any(value is not None and not isinstance(value, str | Made) for value in below):
                raise Malformed("it imports what is no name")
            result = self._import(*(value if isinstance(value, str) else None for value in below))
        elif name.startswith("EXT"):
            self._found.add(EXTENSION[:-1], str(int.from_bytes(argument or b"", "little")))
        elif name == "PROTO":
            if argument and argument[0] > pickle.HIGHEST_PROTOCOL:
                raise Malformed("it is of a protocol that is not known")
        elif name in ("PERSID", "BINPERSID"):
            self._found.persistent_ids = True
        elif name in ("STRING", "UNICODE"):
            text = text_of(argument)
            result = None if not text or "\\" in text else text.strip("'\"") if name == "STRING" else text
        else:
            result = self._combine(op, below, above)
        if name == "DUP":
            self._stack.append(result)
        if op.pushes:
            self._stack.append(result)

    def _combine(self, op: Operation, below: list[Any], above: list[Any]) -> Any:
        """What an opcode makes of values that it takes."""
        name, values = op.name, above or below
        if self._wrapped and Global in map(type, (*below[name in CALLS:], *above)):
            self._found.complete &= not any(type(value) is Global and value.name.endswith(WRAPPER)
                                            for value in (*below, *above))
        if name in TUPLES:
            kept = tuple(known(value) for value in values[:MAX_VALUES + 1])
            return kept if len(kept) <= MAX_VALUES else OTHER
        if name in ("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"):
            target = {} if name.endswith("DICT") else below[0]
            if isinstance(target, dict):
                update(target, above or below[1:])
            return target if self._sized else OTHER
        if name in CALLS:
            self.idle &= not isinstance(below[0], Global)
            made = below[0].name if isinstance(below[0], Global) else "?"
            if made.startswith(TENSOR):
                self._found.rebuild(below[1])
            return Made(made, below[1] if type(below[1]) is tuple and len(below) == 2 else None)
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
        if array.size is None:      # an array of objects is a pickle in the pickle
            self._found.complete = False    # for pickle.load the same pickle going on
            Walk(self._stream, self._found, self._budget, arrays=False).run()
            return OTHER
        padding = 0
        if array.padded and (padding := exactly(self._stream, 1)[0]) > MAX_PADDING:
            raise Malformed("an array in it is not aligned")    # what pickle.load would take for opcodes
        self.unpadded |= not array.padded
        skip(self._stream, padding + array.size)
        return OTHER


def is_shape(value: Any) -> bool:
    return type(value) is tuple and all(type(length) is int for length in value)


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
