"""The imports that a pickle would perform, read from its opcodes; nothing is imported, built or called.

The opcodes are those of pickletools, walked here rather than by pickletools.genops, which reads an argument whole
however long it is, and gives up on arguments that pickle itself takes.
"""

import io
import math
import pickle
import pickletools
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from inspection.reader import BLOCK, Budget, BudgetExceeded, Malformed, exactly, skip

MAX_NAME = 128          # characters of a module or of a name in it; the longest of scikit-learn has 60
MAX_IMPORTS = 200       # a pickled pipeline has 30, a network with all its layers 50
MAX_MEMO = 250_000      # values a pickle may refer back to, 30 MB; 100,000 tensors need fewer
MAX_PICKLES = 64        # one after another in a file; torch's old format has 5
MAX_VALUES = 64         # values kept of a tuple or dict: the shape of an array, the fields of its wrapper
TORCH_MAGIC = 0x1950A86A20F9469CFC6C    # the first of the pickles in a file of torch.save before 1.6
TORCH_PICKLES = 5       # the storages follow as raw bytes
JOBLIB = "joblib.numpy_pickle."
WRAPPER = JOBLIB + "NumpyArrayWrapper"
ALIGNMENT = 16          # joblib pads an array with 1 to so many bytes
EXTENSION = "copyreg.extension."    # and the number of an import that a registry of the reader has
IMPORTABLE = re.compile(r"[\w<][\w.<>-]*")   # a line of text may begin with the opcode that imports
DTYPE = re.compile(r"([biufcSUVmM])([0-9]{1,9})")

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


class Global(NamedTuple):
    """Something imported."""

    name: str


class Made(NamedTuple):
    """What something imported made of arguments, of which the numbers and strings are known."""

    name: str
    arguments: tuple[Any, ...] | None


MARK, OTHER = object(), object()    # OTHER: a value that is no string; None: one that may be
VALUES = (int, str, tuple, Made)    # kept in a dict


@dataclass
class Found:
    """What a file would unpickle. `complete` is False when there may be more than was found."""

    imports: dict[str, None] = field(default_factory=dict)      # in the order in which they were met
    pickled: bool = False
    complete: bool = True
    torch: bool = False
    persistent_ids: bool = False

    def add(self, module: str | None, name: str | None) -> Global:
        full = f"{module or '?'}.{name or '?'}"     # ? for what is too long, or known only when it runs
        if len(self.imports) < MAX_IMPORTS:
            self.imports[full] = None
        elif full not in self.imports:
            self.complete = False
        return Global(full)

    def named(self) -> bool:
        return not all(name.startswith(EXTENSION) for name in self.imports)

    def merge(self, other: "Found") -> None:
        for name in other.imports:
            self.add(*name.rsplit(".", 1))
        self.complete &= other.complete
        self.pickled |= other.pickled
        self.torch |= other.torch
        self.persistent_ids |= other.persistent_ids


def look(stream: io.BufferedReader, found: Found, budget: Budget) -> None:
    """Adds to `found` what unpickling would import here, where there need not be a pickle; raises BudgetExceeded.

    It is one when it has an import, or when it is whole and either says so in its first byte or ends with the file: in
    the raw bytes of a tensor some first bytes are opcodes by chance, and of those an EXT is an import that nobody has.
    """
    protocol, here = stream.peek(1)[:1] == b"\x80", Found()
    try:
        torch = Walk(stream, here, budget).run() == TORCH_MAGIC
        if protocol or here.named() or at_end(stream):
            here.pickled, here.torch = True, torch
            here.complete = here.complete and look_on(stream, here, budget)
            found.merge(here)
    except Malformed:
        if here.named() or (protocol and here.imports):     # performed before the fault shows
            here.pickled, here.complete = protocol, False
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


def text_of(data: bytes | None) -> str | None:
    """A string on the stack, None for one that cannot be a name."""
    text = (data or b"").decode("utf-8", "replace")
    return text if 0 < len(text) <= MAX_NAME and text.isprintable() else None


WIDTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
          pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"}
NUMBERS = {"BININT": True, "BININT1": False, "BININT2": False, "LONG1": True, "LONG4": True}    # whether signed
CONSTANTS = {"MARK": MARK, "NONE": OTHER, "NEWTRUE": OTHER, "NEWFALSE": OTHER, "EMPTY_LIST": OTHER, "EMPTY_SET": OTHER,
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
              if code.name.endswith(("PUT", "GET", "MEMOIZE")) else "number" if code.name in NUMBERS else "")
    return Operation(code.name, code.arg.n if code.arg else None, before.index("mark") if to_mark else len(before),
                     to_mark, bool(after), result, action)


OPERATIONS = {code.code.encode("latin-1"): operation(code) for code in pickletools.opcodes}
TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
SAME = {"APPEND", "APPENDS", "ADDITEMS", "READONLY_BUFFER"}     # what is below stays


class Walk:
    """One pickle from its first opcode to STOP, with a stack of what is known of the values: names, numbers, shapes."""

    def __init__(self, stream: io.BufferedReader, found: Found, budget: Budget, arrays: bool = True) -> None:
        self._stream, self._found, self._budget, self._arrays = stream, found, budget, arrays
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What is known of the value; raises BudgetExceeded, and Malformed where every unpickler would fail."""
        read, push = self._stream.read, self._stack.append
        while True:
            self._budget.step()
            op = OPERATIONS.get(read(1))
            if op is None:
                raise Malformed("it has something else than opcodes")
            argument = None if op.argument is None else self._argument(op.argument)
            if op.action == "push":
                push(op.result)
            elif op.action == "string":
                push(text_of(argument))
            elif op.action == "number":
                push(OTHER if argument is None else int.from_bytes(argument, "little", signed=NUMBERS[op.name]))
            elif op.action == "memo":
                self._remember(op, argument)
            elif op.name == "STOP":
                return self._pop()
            elif op.name in ("GLOBAL", "INST"):
                imported = self._found.add(name_of(argument or b""), name_of(line(self._stream)))
                self._operands(op)      # for INST, which the unpickler in Python imports before it looks for them
                push(imported if op.name == "GLOBAL" else Made(imported.name, None))
            else:
                self._apply(op, argument, *self._operands(op))

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
        if not self._stack:
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
            while (value := self._pop()) is not MARK:
                above.append(value)
        return [self._pop() for _ in range(op.pops)][::-1], above[::-1]

    def _apply(self, op: Operation, argument: bytes | None, below: list[Any], above: list[Any]) -> None:
        name, result = op.name, op.result
        if name == "STACK_GLOBAL":
            if any(value is not None and not isinstance(value, str | Made) for value in below):
                raise Malformed("it imports what is no name")
            result = self._found.add(*(value if isinstance(value, str) else None for value in below))
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
        if name in TUPLES:
            kept = tuple(value if type(value) in (int, str) else None for value in values[:MAX_VALUES + 1])
            return kept if len(kept) <= MAX_VALUES else OTHER
        if name == "EMPTY_DICT":
            return {}
        if name in ("SETITEM", "SETITEMS"):
            items = above or below[1:]
            if isinstance(below[0], dict):
                for key, value in zip(items[::2], items[1::2], strict=False):
                    if type(key) is str and len(below[0]) < MAX_VALUES:
                        below[0][key] = value if type(value) in VALUES else None
            return below[0]
        if name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            made = below[0].name if isinstance(below[0], Global) else "?"
            return Made(made, below[1] if type(below[1]) is tuple else None)
        if name == "BUILD":
            return self._build(*below)
        return below[0] if name == "DUP" or name in SAME else op.result

    def _build(self, target: Any, state: Any) -> Any:
        """Gives an object its state. In the place of joblib's wrapper of an array come the array's raw bytes then."""
        if not self._arrays or WRAPPER not in self._found.imports or (
                isinstance(target, Made) and target.name not in (WRAPPER, "?")):
            return target
        size = array_size(state) if isinstance(target, Made) and target.name == WRAPPER else None
        if size is None:    # whether joblib would read an array here is not known
            self._found.complete = False
            return target
        if size < 0:        # an array of objects is a pickle in the pickle, for pickle.load the same pickle going on
            self._found.complete = False
            Walk(self._stream, self._found, self._budget, arrays=False).run()
            return OTHER
        padding = exactly(self._stream, 1)[0]
        if not 0 < padding <= ALIGNMENT:
            raise Malformed("an array in it is not aligned")    # what pickle.load would take for opcodes
        skip(self._stream, padding + size)
        return OTHER


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


def array_size(state: Any) -> int | None:
    """The bytes of the array that joblib's wrapper tells of; negative for an array of objects."""
    shape, dtype = (state.get("shape"), state.get("dtype")) if isinstance(state, dict) else (None, None)
    if type(shape) is not tuple or any(type(length) is not int or length < 0 for length in shape):
        return None
    if not isinstance(dtype, Made) or dtype.name != "numpy.dtype" or not dtype.arguments:
        return None
    code = str(dtype.arguments[0])
    if code.startswith("O"):
        return -1
    found = DTYPE.fullmatch(code)
    return math.prod(shape) * int(found[2]) * (4 if found[1] == "U" else 1) if found else None
