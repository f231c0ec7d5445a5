"""What binary headers tell: GGUF and flatbuffers, read field by field within a budget.

Each function gives the details, or raises Malformed for what only begins like its format, and BudgetExceeded.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

from inspection.found import MAX_NUMBER
from inspection.reader import Malformed, Window, clip

MAX_SHOWN = 32          # keys, inputs, types, dimensions that the details list
MAX_TEXT = 200          # characters of each
MAX_STRING = 64 * 1024  # bytes of a key or a value of GGUF that are read
WORD = 80               # bytes that are unpacked in the time in which a string of an array is passed over
KEY = 3                 # steps that a key or a tensor costs
MAX_NESTING = 4         # arrays of arrays in GGUF
MAX_DIMENSIONS = 8      # of a tensor in GGUF, which has 4

Details = dict[str, Any]

# Operations that read or write files or run Python. Those of checkpoints, Save and Restore, are in every SavedModel.
WATCHED = re.compile(   # first whether it is a name at all, or the rest would look for its end from each of its letters
    r"(?=\w+\Z)(?:Flex)?(?:\w*(?:File(?!name|spec)|PyFunc|DatasetToTF|SnapshotDataset)\w*|RecordInput|DumpTensor|"
    r"(?:Experimental)?(?:CSV|LMDB|Sql|TFRecord|FixedLengthRecord|TextLine|Cache|Save|Load)(?:Dataset|Reader)(?:V2)?|"
    r"LoadAndRemapMatrix|Debug\w+|GenerateVocabRemapping|ImmutableConst|PrintV2|DistributedSave|Skipgram)|"
    r"py_func|py_layer|(?:save|load)(?:_combine)?|read_file")


def watched(operations: Iterable[str]) -> list[str]:
    return [f"its operation {name} {'runs Python' if 'py' in name.lower() else 'reads or writes files'}"
            for name in sorted(set(operations)) if WATCHED.fullmatch(name)]


def numbered(names: str) -> dict[int, str]:
    """Names by their numbers, from 0 on; - stands for none."""
    return {number: name for number, name in enumerate(names.split()) if name != "-"}


def decoded(data: bytes) -> str:
    return clip(data.decode("utf-8", "replace"), MAX_TEXT)


def shown(values: Details) -> Details:
    """As many as the details list; of what is counted the most common."""
    items = values.most_common() if isinstance(values, Counter) else values.items()
    return {clip(name, MAX_TEXT): clip(value, MAX_TEXT) if isinstance(value, str) else value
            for name, value in islice(items, MAX_SHOWN)}


# ---- GGUF

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
TENSOR_TYPES = {    # name, numbers in a block, bytes of a block
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1),
    25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18)}
FILE_TYPES = numbered(
    "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS "
    "Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4_MOE NVFP4 "
    "Q1_0")
KEYS = re.compile(r"general\.(?:name|basename|size_label|license|quantization_version|alignment|architecture|"
                  r"file_type)|.*\.(?:context_length|embedding_length|block_count)|.*tokenizer\.ggml\.model", re.DOTALL)


class Gguf:
    """The fields of a GGUF file, from the first on."""

    def __init__(self, window: Window) -> None:
        self.stream, self.budget = window.stream(), window.budget
        head = self.stream.exactly(8)
        self.order = ">" if head[4:6] == b"\0\0" else "<"   # models for big-endian machines are written like this
        self.version, = struct.unpack(self.order + "4xI", head)
        self.length = 0     # of the last string, which may be longer than what was read of it

    def numbers(self, code: str) -> tuple[Any, ...]:
        return struct.unpack(self.order + code, self.stream.exactly(struct.calcsize("=" + code)))

    def string(self) -> str:
        self.length, = self.numbers("Q")
        text = self.stream.exactly(min(self.length, MAX_STRING))
        self.stream.skip(self.length - len(text))
        self.budget.take(2 * len(text))
        return text.decode("utf-8", "replace")

    def pass_over(self, count: int) -> None:
        """Skips this many strings: a million are the words of a tokenizer, so those in the buffer cost no call each."""
        self.budget.take(count * WORD)
        length_at = struct.Struct(self.order + "Q").unpack_from
        while count:
            self.stream.exactly(8)      # there is one at least
            data, at = self.stream.data, self.stream.at - 8
            while count and at <= len(data) - 8:
                at += 8 + length_at(data, at)[0]
                count -= 1
            self.stream.skip(at - self.stream.at)

    def value(self, kind: int, nesting: int = 0) -> Any:
        """A number, a string, or None for an array, which is passed over."""
        if kind in SCALARS:
            return self.numbers(SCALARS[kind])[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY or nesting > MAX_NESTING:
            raise Malformed(f"it has a value of type {kind}")
        kind, length = self.numbers("IQ")
        if kind in SCALARS:
            self.stream.skip(length * struct.calcsize("=" + SCALARS[kind]))
        elif kind == STRING:
            self.pass_over(length)
        else:
            for _ in range(length):
                self.budget.step(KEY)
                self.value(kind, nesting + 1)
        return None


def gguf(window: Window) -> Details:
    file = Gguf(window)
    if file.version not in (2, 3):
        raise Malformed(f"it is of version {file.version}")
    tensors, pairs = file.numbers("QQ")
    keys, template = Details(), Details()
    for _ in range(pairs):
        window.budget.step(KEY)
        name, value = file.string(), file.value(*file.numbers("I"))
        if isinstance(value, int | str) and KEYS.fullmatch(name):
            keys[name] = value
        elif name.startswith("tokenizer.chat_template"):
            template = {"chat_template": True, "chat_template_length": file.length, "warnings": [
                "its chat template is a program: whoever chats with the model runs it"]}
    types = Counter[str]()
    parameters = last = 0
    for _ in range(tensors):
        window.budget.step(KEY)
        file.string()
        dimensions, = file.numbers("I")
        if dimensions > MAX_DIMENSIONS:
            raise Malformed(f"it has a tensor of {dimensions} dimensions")
        *shape, kind, begin = file.numbers(f"{dimensions}QIQ")
        name, block, size = TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
        if shape and shape[0] % block:
            raise Malformed(f"it has a tensor with a row of {shape[0]} numbers, and {name} has blocks of {block}")
        types[name] += 1
        parameters += math.prod(shape)
        last = max(last, begin + math.prod(shape) // block * size)
    alignment, at = keys.pop("general.alignment", 32), file.stream.tell()
    if type(alignment) is not int or alignment < 1:
        raise Malformed(f"its tensors are aligned to {alignment!r:.50}")
    missing = at + (last and -at % alignment + last) - window.length
    if missing > 0 or parameters > MAX_NUMBER:
        raise Malformed(f"its last {'tensor' if last else 'key'} ends {missing} bytes beyond its end")
    quantisation = FILE_TYPES.get(keys.pop("general.file_type", -1), next(iter(shown(types)), None))
    return {"version": file.version, "architecture": clip(str(keys.pop("general.architecture", "")), MAX_TEXT),
            "quantisation": quantisation, "tensors": tensors, "parameters": parameters, "tensor_types": shown(types),
            "keys": shown(keys)} | template


# ---- flatbuffers: TFLite, and of ONNX Runtime's .ort and ExecuTorch's .pte that they are ones

TFLITE_TYPES = numbered(
    "float32 float16 int32 uint8 int64 string bool int16 complex64 int8 float64 complex128 uint64 resource variant "
    "uint32 uint16 int4 bfloat16 int2 uint4 float8e4m3fn float8e5m2")


class Table:
    """A table, read where a pointer leads; its fields have the numbers of the schema, and may be left out."""

    def __init__(self, window: Window, pointer: int = 0) -> None:
        self._window = window
        self._at = pointer + self.read(pointer)
        self._fields = self._at - self.read(self._at, "<i")

    def read(self, at: int, code: str = "<I") -> int:
        return int(self._window.numbers(code, at)[0])

    def place(self, field: int) -> int:
        """Where it is, 0 when it is left out."""
        slot = 4 + 2 * field
        offset = self.read(self._fields + slot, "<H") if slot < self.read(self._fields, "<H") else 0
        return offset and self._at + offset

    def number(self, field: int, code: str = "<I") -> int:
        return (place := self.place(field)) and self.read(place, code)

    def items(self, field: int) -> range:
        """Where the items of a vector are, each of 4 bytes: a number, or a pointer to a table or a text."""
        place = self.place(field)
        at = place and place + self.read(place)
        return range(at + 4, at + 4 + 4 * self.read(at), 4) if place else range(0)

    def text(self, field: int) -> str:
        letters = self.items(field)     # are a vector too, but each is 1 byte
        return decoded(self._window.at(letters.start, min(len(letters), 4 * MAX_TEXT)))


def tflite(window: Window) -> Details:
    model = Table(window)
    details: Details = {"version": model.number(0), "description": model.text(3), "inputs": [], "outputs": []}
    for at in model.items(2)[:1]:   # the first graph is the model, others are bodies of its loops
        graph = Table(window, at)
        tensors = graph.items(0)
        for name, field in ("inputs", 1), ("outputs", 2):
            numbers = [graph.read(place) for place in graph.items(field)[:MAX_SHOWN]]
            details[name] = [tflite_tensor(Table(window, tensors[n])) for n in numbers if n < len(tensors)]
    custom = sorted({Table(window, at).text(1) for at in model.items(1)} - {""})
    return details | ({"custom_operations": custom[:MAX_SHOWN]} if custom else {}) | {"warnings": watched(custom)}


def tflite_tensor(tensor: Table) -> Details:
    kind, sizes = tensor.number(1, "<B"), tensor.items(7) or tensor.items(0)    # the first where some are left open
    return {"name": tensor.text(3), "type": TFLITE_TYPES.get(kind, f"type {kind}"),
            "shape": [tensor.read(at, "<i") for at in sizes[:MAX_SHOWN]]}
