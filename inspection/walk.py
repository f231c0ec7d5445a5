"""One pickle, walked opcode by opcode with a stack of what is known of its values.

This is done here rather than by pickletools.genops, which reads an argument whole however long it is, and gives up on
arguments that pickle itself takes.
"""

import io
import pickle
import pickletools
from typing import Any

from inspection.found import EXTENSION, Found
from inspection.opcodes import (
    CALLS,
    NUMBERS,
    OPERATIONS,
    SAME,
    STRINGS,
    TUPLES,
    WIDTHS,
    Operation,
    line,
    name_of,
    place_of,
)
from inspection.reader import OPCODE, Budget, BudgetExceeded, Malformed, exactly, skip
from inspection.values import MAX_NAME, MAX_VALUES, NULL, OTHER, WRAPPER, Global, Made, array_of, known, text_of, update

MAX_MEMO = 750_000      # values a pickle may refer back to, 40 MB; a vocabulary of 250,000 words needs fewer
TENSOR = "torch._utils._rebuild_tensor"
MAX_PADDING = 16        # bytes that joblib puts before an array, which no unpickler takes for opcodes
CAREFUL = 16            # simple opcodes that any other one costs

# The opcodes that large pickles are made of, by their bytes, and how many each takes with its argument.
MARK, MEMOIZE, BININT, SHORT_BINBYTES, TUPLE1, TUPLE3, TUPLE, SETITEM, APPEND, REDUCE, NONE = b"(\x94JC\x85\x87tsaRN"
TO_MARK = b"eu"         # APPENDS, SETITEMS
NUMBER_WIDTHS = {ord("K"): 2, ord("M"): 3, BININT: 5}
GETS, PUTS, SIZED = {ord("h"): 2, ord("j"): 5}, {ord("q"): 2, ord("r"): 5}, {0x8C: 2, ord("X"): 5, SHORT_BINBYTES: 2}
ARGUMENT_WIDTHS = NUMBER_WIDTHS | GETS | PUTS | SIZED
PLAIN_WIDTHS = dict.fromkeys(b"N\x88\x89]\x8f", 1) | {ord("G"): 9}     # that push a value of no interest
UNSIZED_WIDTHS = PLAIN_WIDTHS | NUMBER_WIDTHS | dict.fromkeys(b")}", 1)    # of none while there are no arrays
LONGEST = 9             # of these widths


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
                self._apply(op, argument, *self._operands(op))

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
                stack[-taken:], width = (OTHER if simple else tuple(map(known, stack[-taken:])),), 1
            elif code == REDUCE and type(stack[-2]) is Global:
                self._reduce(stack.pop())
                width = 1
            elif simple and code in (APPEND, SETITEM):
                del stack[-1 if code == APPEND else -2:]
                width = 1
            elif not self._wrapped and (code == TUPLE or (simple and code in TO_MARK)):
                values, width = stack[(begin := marks.pop()):begin + MAX_VALUES + 1], 1
                del stack[begin:]
                if code == TUPLE:
                    push(OTHER if simple or len(values) > MAX_VALUES else tuple(map(known, values)))
            else:
                break
            at += width
        self._stream.read(at)
        self._budget.take(count * OPCODE)
        if len(memo) > MAX_MEMO:
            raise BudgetExceeded

    def _reduce(self, arguments: Any) -> None:
        """Calls what is on the stack, which was imported."""
        self.idle = False
        name = self._stack[-1].name
        if name.startswith(TENSOR):
            self._found.rebuild(arguments)
        self._stack[-1] = Made(name, arguments if type(arguments) is tuple else None)

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
        elif name in NUMBERS:
            result = OTHER if argument is None else int.from_bytes(argument, "little", signed=NUMBERS[name])
        elif name in STRINGS:
            result = text_of(argument)
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
