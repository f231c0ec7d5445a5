"""Whether there is a pickle, and all that unpickling would import; nothing is imported, built or called.

Each one is walked with a stack of what is known of its values: pickletools.genops reads arguments whole, however long
they are, and gives up on some that pickle takes.
"""

import math
import pickle
import pickletools
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from inspection.found import EXTENSION, Found
from inspection.reader import READ_BLOCK, BudgetExceeded, Malformed, Stream

MAX_MEMO = 750_000      # values a pickle may refer back to, 40 MB; a vocabulary of 250,000 words needs fewer
MAX_NAME = 128          # characters of a module or of a name in it; the longest of scikit-learn has 60
MAX_VALUES = 64         # values kept of a tuple or dict: the shape of an array, the fields of its wrapper
MAX_PADDING = 16        # bytes that joblib puts before an array, which no unpickler takes for opcodes
CAREFUL = 1400          # what an opcode that is not simple takes, in bytes read
# The first of the pickles in a file of torch.save before 1.6, a number; the storages follow the last as raw bytes.
TORCH = re.compile(rb"\x80.(?:\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
TORCH_PICKLES = 5
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")  # what a text has none of
# A module and a name in it, as raw bytes and lines of text may begin with the opcode that imports. Some modules in
# others, like torch.ops, have every name that they are asked for. No two parts of this can share out the same letters.
WORD, PATH = r"[\w<][\w<>-]*", r"[\w<][\w.<>-]*"
IMPORTABLE = re.compile(rf"{PATH}\n(?:{PATH}|{WORD}\..*)|{WORD}\.[\w.<>-]*\n.*", re.DOTALL)
TENSOR = "torch._utils._rebuild_tensor"
WRAPPER = ".NumpyArrayWrapper"      # joblib's, under whatever name it is reached
DTYPE = re.compile(rb"([biufcSUVmMO])([0-9]{1,9})")
HAS_OBJECTS = 1         # a flag in the state of a dtype


# ---- values on the stack of an unpickler: strings as bytes, numbers, tuples and dicts of these, and what follows


class Global(str):
    """The name of something imported."""


@dataclass(eq=False, slots=True)
class Made:
    """The result of calling something imported, with its arguments, as far as they are known, and its state."""

    name: str
    arguments: Any
    state: Any = None


# Stand for values that are not known: OTHER for one that is no string, NULL for None, None for what may be a string.
OTHER, NULL = object(), object()
UNSURE = object()       # a key of a dict that may have other values than are known


def may_wrap(value: Any) -> bool:
    """Whether this is joblib's wrapper of an array, under whatever name it is reached, or may be."""
    return isinstance(value, Global) and (value.endswith(WRAPPER) or "?" in value)


def array_of(wrapper: Any) -> tuple[int | None, bool] | None:
    """Bytes of a wrapper's array, None for a pickle, and whether padding comes first; None if that is not certain."""
    match wrapper:
        case Made(_, (), {b"shape": tuple(shape), b"dtype": Made("numpy.dtype", (bytes(name), *_), state)} as fields):
            code, alignment = DTYPE.fullmatch(name), fields.get(b"numpy_array_alignment_bytes", NULL)
        case _:
            return None
    match state:        # by its length numpy reads its version, its array if any, its size and flags
        case None:
            size, flags = -1, 0
        case (3 | 4, _, part, _, _, int(size), _, int(flags), *rest) if part is NULL and len(rest) < 2:
            pass
        case _:
            return None
    if not code or UNSURE in fields or (alignment is not NULL and type(alignment) is not int):
        return None
    if code[1] == b"O" or flags & HAS_OBJECTS:
        return None, False
    numbers = [*shape, size if code[1] in b"SUV" else int(code[2])]     # of the other types numpy keeps the size
    certain = all(type(number) is int and number >= 0 for number in numbers)
    return (math.prod(numbers), alignment is not NULL) if certain else None


OPCODES = {op.code.encode("latin-1"): op for op in pickletools.opcodes}
# The opcodes that large pickles consist of: an action; a length in bytes, with the argument or, if that is of any size,
# with its length field; what the action needs (the value to push, the sign bit, or the number of values to take, 0 for
# all above the mark); and a cost, as if so many bytes were read. Objects that the garbage collector tracks cost more.
PUSH, SIZED, NUMBER, GET, PUT, MARK, DICT, TAKE = range(8)
SIMPLE: dict[int, tuple[int, int, Any, int]] = {code: action for codes, action in (
    (b"\x88\x89]\x8f", (PUSH, 1, OTHER, 48)), (b"G", (PUSH, 9, OTHER, 48)), (b"N", (PUSH, 1, NULL, 48)),
    (b")", (PUSH, 1, (), 48)), (b"}", (DICT, 1, 0, 96)), (b"K", (NUMBER, 2, 0, 96)), (b"M", (NUMBER, 3, 0, 128)),
    (b"J", (NUMBER, 5, 1 << 31, 160)), (b"\x8cU", (SIZED, 2, None, 96)), (b"XT", (SIZED, 5, None, 112)),
    (b"\x8d", (SIZED, 9, None, 128)), (b"C\x8a", (SIZED, 2, OTHER, 96)), (b"B\x8b", (SIZED, 5, OTHER, 112)),
    (b"\x8e\x96", (SIZED, 9, OTHER, 128)), (b"h", (GET, 2, 0, 96)), (b"j", (GET, 5, 0, 144)),
    (b"\x94", (PUT, 1, 0, 80)), (b"q", (PUT, 2, 0, 96)), (b"r", (PUT, 5, 0, 144)), (b"(", (MARK, 1, 0, 128)),
    (b"teu", (TAKE, 1, 0, 224)), (b"a\x85", (TAKE, 1, 1, 288)), (b"s\x86", (TAKE, 1, 2, 288)),
    (b"\x87", (TAKE, 1, 3, 288)), (b"R\x81", (TAKE, 1, 2, 320)), (b"\x92", (TAKE, 1, 3, 320))) for code in codes}
PLAIN = [SIMPLE.get(code) for code in range(256)]
LONGEST = 9 + MAX_NAME  # bytes of one of these with an argument that is kept


class Walk:
    """Pickles in a stream, one after another, each from its first opcode to STOP.

    `idle` until something imported is called or changed; `unpadded` once an array was passed that may be opcodes too.
    """

    def __init__(self, source: Stream, found: Found, arrays: bool = True) -> None:
        self._source, self._found, self._arrays = source, found, arrays
        self.idle, self.unpadded = True, False

    def run(self) -> None:
        """Walks the next pickle; raises BudgetExceeded, and Malformed where every unpickler would fail."""
        self._stack: list[Any] = []             # above the last mark
        self._below: list[list[Any]] = []       # the stacks below the marks
        self._memo: dict[int, Any] = {}
        self._wrapped = False                   # whether an array may come
        try:
            while True:
                self._run_simple()
                op = OPCODES[self._source.exactly(1)]
                self._perform(op)
                if op.name == "STOP":
                    return
        except (LookupError, ValueError) as error:
            raise Malformed("it takes what is not there, or a number in it is none") from error

    def _run_simple(self) -> None:
        """Goes on up to an opcode that is not simple; raises LookupError. Strings stay bytes until they are needed."""
        stack, memo, cost = self._stack, self._memo, CAREFUL
        data, at, last = self._source.data, self._source.at, len(self._source.data) - LONGEST
        try:
            while True:
                if at > last:   # which is up to where an opcode is whole in the bytes that are here
                    self._source.budget.take(cost)
                    if len(memo) > MAX_MEMO:
                        raise BudgetExceeded
                    self._source.skip(at - self._source.at)
                    more = len(self._source.ahead(LONGEST)) == LONGEST
                    data, at, cost = self._source.data, self._source.at, 0
                    last = len(data) - LONGEST * more
                if not (simple := PLAIN[data[at]]):
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
                elif kind == DICT:
                    stack.append({} if self._wrapped else OTHER)
                else:
                    taken, stack = (stack[-value:], stack) if value else (stack, self._below.pop())
                    if len(taken) < value:
                        raise LookupError
                    del stack[len(stack) - value:]
                    self._take(stack, taken, data[at - 1])
        finally:
            self._stack = stack
            self._source.budget.take(cost)
        self._source.skip(at - self._source.at)

    def _take(self, stack: list[Any], taken: list[Any], code: int) -> None:
        """Makes a tuple of values, calls one with the other, or puts them into what is below; raises LookupError."""
        tuples, calls = code in b"t\x85\x86\x87", code in b"R\x81\x92"
        self._use(taken[calls:], None if tuples or calls else stack[-1], code in b"ae")
        if tuples:
            stack.append(tuple(taken) if len(taken) <= MAX_VALUES else OTHER)
        elif calls:
            stack.append(self._call(*taken[:2]))
        elif type(stack[-1]) is dict:
            certain = len(stack[-1]) + len(taken) <= MAX_VALUES
            keys = [key if certain and type(key) is bytes else UNSURE for key in taken[::2]]
            stack[-1].update(zip(keys, taken[1::2], strict=False))

    def _perform(self, op: pickletools.OpcodeInfo) -> None:
        """Does what an opcode does to the stack and the memo; raises LookupError, ValueError, and Malformed."""
        name, before, source = op.name, op.stack_before, self._source
        width = op.arg.n if op.arg else 0
        argument = source.line(MAX_NAME + 2) if width == pickletools.UP_TO_NEWLINE else source.exactly(width)
        result: Any = None if pickletools.anyobject in op.stack_after else OTHER
        if name in ("GLOBAL", "INST"):  # first of all, as the unpickler does that is written in Python
            names = [argument, source.line(MAX_NAME + 2)]
            texts = (each[:MAX_NAME].decode("utf-8", "ignore" if len(each) > MAX_NAME else "replace") for each in names)
            if not IMPORTABLE.fullmatch("\n".join(texts)):
                raise Malformed("it imports what can have no name")
            result = self._import(*names)
        above = list[Any]()
        if pickletools.markobject in before or (name == "POP" and not self._stack):
            above, self._stack = self._stack, self._below.pop()
            before = before[:name == "ADDITEMS"]    # of these alone it takes something from below the mark
            self._use(above)
        below = [self._stack.pop() for _ in before][::-1]
        match name:
            case "STACK_GLOBAL":
                result = self._import(*below)
            case "INST":
                result = self._call(result, tuple(above))
            case "OBJ":
                result = self._call(above[0], tuple(above[1:]))
            case "BUILD":
                result = self._build(*below)
            case "EXT1" | "EXT2" | "EXT4":
                self._found.add(f"{EXTENSION}{int.from_bytes(argument, 'little')}")
            case "PROTO" if argument[0] > pickle.HIGHEST_PROTOCOL:
                raise Malformed("it is of a protocol that is not known")
            case "STRING" | "UNICODE":
                text = argument[1:-1] if name == "STRING" else argument     # without its quotes
                result = None if b"\\" in text else text
            case "GET" | "PUT":
                if len(number := argument.partition(b"\0")[0]) > MAX_NAME and re.fullmatch(rb"[\s\d+_-]+", number):
                    raise BudgetExceeded
                key = int(number)   # for C a text ends at a zero
                if name == "PUT":
                    self._memo[key] = self._stack[-1]
                result = self._memo[key]
            case "DUP" | "ADDITEMS" | "READONLY_BUFFER":
                result = below[0]
                self._use([], result, True)
        self._stack += [result] * len(op.stack_after)

    def _call(self, function: Any, arguments: Any) -> Made:
        """What something makes of arguments, if it was imported."""
        name = function if type(function) is Global else Global("?")    # for what was made itself
        self.idle &= name is not function
        self._wrapped |= self._arrays and may_wrap(name)
        if name.startswith(TENSOR):
            self._source.budget.step(2)
            self._found.rebuild(arguments)
        return Made(name, arguments)

    def _use(self, values: list[Any], target: Any = None, plain: bool = False) -> None:
        """Notes that values are given away, and a target changed by it; `plain` if a text may seem to do that."""
        if self._wrapped:
            self._source.budget.step()
            self._found.complete &= not any(map(may_wrap, values))  # what gets it may read an array with it
        if type(target) is Global and not (plain and target.partition(".")[0] not in sys.stdlib_module_names):
            self.idle = False       # a call, as it were: it may append to sys.path, or replace builtins.open

    def _import(self, *names: Any) -> Global:
        """What is imported by a module's name and one in it: ? if too long, or known only when it runs."""
        self._source.budget.step(3)     # decoding and checking two names takes longer than other opcodes
        if any(name is not None and type(name) not in (bytes, Made, Global) for name in names):     # os.name is a text
            raise Malformed("it imports what is no name")
        short = (name if type(name) is bytes and 0 < len(name) <= MAX_NAME else b"?" for name in names)
        texts = (name.decode("utf-8", "replace") for name in short)
        imported = Global(".".join(text if text.isprintable() else "?" for text in texts))
        self._found.add(imported)
        self._wrapped |= self._arrays and may_wrap(imported)
        return imported

    def _build(self, target: Any, state: Any) -> Any:
        """Gives an object its state. In the place of joblib's wrapper of an array come the array's raw bytes then."""
        self._use([state], target, type(state) in (bytes, Global))
        if type(target) is Made:
            target.state = state if target.state is None else OTHER     # of two the effect is not known
        if not self._wrapped or (type(target) is Made and not may_wrap(target.name)):
            return target
        self._source.budget.step(6)
        if (array := array_of(target)) is None:     # there may be one, but joblib fails with a wrapper without a shape
            fails = type(state) is dict and not {UNSURE, b"shape"} & state.keys()
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


# ---- pickles in a file


def add_imports(source: Stream, found: Found) -> None:
    """Adds to `found` what unpickling would import here, where there need not be a pickle; raises BudgetExceeded.

    There is one when it has an import, or when it is whole and either says so in its first byte or ends with the file:
    in raw bytes some are opcodes by chance, and of those an EXT is an import that nobody has. Nor is a text one for a
    word that begins with c above another, as in lists of labels, unless STOP is its end or what is imported is used.
    """
    here, whole, start, protocol = Found(), False, source.tell(), source.ahead(1) == b"\x80"
    walk = Walk(source, here)
    try:
        with suppress(Malformed):
            here.torch = bool(TORCH.match(source.ahead(32)))
            walk.run()
            whole = True
        certain = (whole and (protocol or not source.ahead(1))) or (protocol and bool(here.imports))
        here.complete &= whole and walk_on(source, here.torch, walk)
        if not certain and all(name.startswith(EXTENSION) for name in here.imports):
            return
        if not certain and walk.idle:
            text = source.part.stream().read(READ_BLOCK)
            source.budget.take(2 * len(text))   # for the search
            if not CONTROL.search(text):
                return
        here.pickled = whole or protocol
        if walk.unpadded:   # for pickle.load the array is more opcodes
            rest, plain = source.part.stream(), Found()
            rest.skip(start)
            walk_on(rest, False, Walk(rest, plain, arrays=False))
            here.complete &= plain.imports.keys() <= here.imports.keys()
    except BudgetExceeded:
        here.pickled = protocol or bool(here.imports)
        found.merge(here)
        raise
    found.merge(here)


def walk_on(source: Stream, torch: bool, walk: Walk) -> bool:
    """Goes through the pickles that come next; False when something else comes."""
    with suppress(Malformed):
        for _ in range(TORCH_PICKLES - 1) if torch else iter(lambda: source.ahead(1), b""):
            walk.run()
        return True
    return False
