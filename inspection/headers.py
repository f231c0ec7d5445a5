"""What safetensors, GGUF, npy, flatbuffers and others tell in their headers, read field by field within a budget.

Each function gives the details, or raises Malformed for what only begins like its format, and BudgetExceeded.
"""

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from inspection.archives import array_header
from inspection.found import MAX_NUMBER
from inspection.reader import Budget, Malformed, Window, clip

MAX_HEADER = 8 << 20    # of JSON: 60,000 tensors of safetensors, which allows 100 MB; parsed it takes ten times that
MAX_ITEMS = 300_000     # brackets and commas of a JSON document, which say how much memory it takes parsed
MAX_DIGITS = 400        # of a number in it; for int() many of them take the square of the time
DOCUMENT = 8            # steps that a JSON document costs
ITEM = 256              # bytes that are read in the time that an item of it takes
MAX_SHOWN = 32          # keys, inputs, types, dimensions that the details list
MAX_TEXT = 200          # characters of each
MAX_STRING = 64 * 1024  # bytes of a key or a value of GGUF that is read and not skipped
WORD = 80               # bytes that are unpacked in the time in which a string of an array is passed over
KEY = 3                 # steps that a key costs
MAX_NESTING = 4         # arrays of arrays in GGUF
MAX_DIMENSIONS = 8      # of a tensor in GGUF, which has 4


def npy(window: Window) -> dict[str, Any]:
    array = array_header(window.stream())
    return {"dtype": array.dtype, "shape": array.shape} if array else {}


# ---- graphs

# Operations that read or write files or run Python. Those of checkpoints, Save and Restore, are in every SavedModel.
WATCHED = re.compile(
    r"(?:Flex)?(?:\w*(?:File(?!name|spec)|PyFunc|DatasetToTF|SnapshotDataset)\w*|RecordInput|LoadAndRemapMatrix|Debug\w+|"
    r"(?:Experimental)?(?:CSV|LMDB|Sql|TFRecord|FixedLengthRecord|TextLine|Cache|Save|Load)(?:Dataset|Reader)(?:V2)?|"
    r"GenerateVocabRemapping|DumpTensor|ImmutableConst|PrintV2|DistributedSave|Skipgram)|"
    r"py_func|py_layer|(?:save|load)(?:_combine)?|read_file")


def watched(operations: Iterable[str]) -> list[str]:
    return [f"its operation {name} {'runs Python' if 'py' in name.lower() else 'reads or writes files'}"
            for name in sorted(set(operations)) if WATCHED.fullmatch(name)]


# ---- safetensors

BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
        "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
        "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}


def safetensors(window: Window) -> dict[str, Any]:
    length = int.from_bytes(window.at(0, 8), "little")
    if length > MAX_HEADER:
        raise Malformed(f"of its header of {length} bytes {MAX_HEADER} are read")
    header = parsed(window.at(8, length), window.budget, object_pairs_hook=once, parse_constant=refuse)
    metadata = header.pop("__metadata__", {})
    tensors = [tensor_of(name, value) for name, value in header.items()]
    at = 0
    for _, begin, end in sorted((tensor[1:] for tensor in tensors), key=lambda each: each[1:]):
        if begin != at:
            raise Malformed("its tensors overlap or leave a gap")
        at = end
    if at != window.length - 8 - length:
        raise Malformed(f"its tensors have {at} bytes, and the file has {window.length - 8 - length} for them")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Malformed("its __metadata__ is not of strings")
    return {"tensors": len(tensors), "parameters": sum(tensor[1] for tensor in tensors),
            "dtypes": counted(tensor[0] for tensor in tensors), "metadata": shown(metadata)}


def parsed(data: bytes, budget: Budget, **hooks: Any) -> Any:
    """A JSON document that may be hostile; raises Malformed, and BudgetExceeded."""
    items = sum(map(data.count, (b",", b"[", b"{")))
    if len(data) > MAX_HEADER or items > MAX_ITEMS:
        raise Malformed(f"its JSON has more than {MAX_HEADER} bytes or {MAX_ITEMS} items")
    budget.step(DOCUMENT)
    budget.take(2 * len(data) + items * ITEM)
    try:
        return json.loads(data.decode(), parse_int=whole, **hooks)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"its JSON cannot be read: {error}") from error


def whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return int(digits)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no name comes twice: which of them counts differs from reader to reader."""
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("it has a field twice")
    return values


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")     # NaN and Infinity, which Python takes


def tensor_of(name: str, value: Any) -> tuple[str, int, int, int]:
    """Type, parameters, begin and end of a tensor in the header."""
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, begin, end]
        if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers) or len(shape) > MAX_SHOWN:
            raise ValueError
        parameters = math.prod(shape)
        if begin > end or BITS[dtype] * parameters != 8 * (end - begin):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"its tensor {name[:50]!r} is not described as it should be") from error
    return dtype, parameters, begin, end


def counted(names: Iterable[str]) -> dict[str, int]:
    """How often each comes, the most common first; takes a Counter too."""
    return dict(Counter(names).most_common(MAX_SHOWN))


def shown(values: dict[str, Any]) -> dict[str, Any]:
    return {clip(name, MAX_TEXT): clip(value, MAX_TEXT) if isinstance(value, str) else value
            for name, value in list(values.items())[:MAX_SHOWN]}


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
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0"}
GENERAL = ("name", "basename", "size_label", "license", "quantization_version")     # keys that are shown
TEMPLATE = "tokenizer.chat_template"
OF_ARCHITECTURE = (".context_length", ".embedding_length", ".block_count", "tokenizer.ggml.model")


class Gguf:
    """The fields of a GGUF file, from the first on."""

    def __init__(self, window: Window) -> None:
        self.stream, self._budget = window.stream(), window.budget
        version = self.stream.exactly(8)[4:]
        self.order = ">" if version[:2] == b"\0\0" else "<"     # models for big-endian machines are written like this
        self.version, = struct.unpack(self.order + "I", version)

    def numbers(self, code: str) -> tuple[Any, ...]:
        return struct.unpack(self.order + code, self.stream.exactly(struct.calcsize("=" + code)))

    def scalar(self, code: str) -> Any:
        return self.numbers(code)[0]

    def string(self) -> str | None:
        """None for one that is too long to be of interest."""
        self.length = length = self.scalar("Q")     # of the last one that was met
        if length > MAX_STRING:
            self.stream.skip(length)
            return None
        self._budget.take(2 * length)
        return self.stream.exactly(length).decode("utf-8", "replace")

    def pass_over(self, count: int) -> None:
        """Skips this many strings; a million of them are possible, so those in the buffer cost no call each."""
        order: Literal["big", "little"] = "big" if self.order == ">" else "little"
        while count:
            length = int.from_bytes(self.stream.exactly(8), order)
            data, at, count = self.stream.data, self.stream.at + length, count - 1
            while count and at <= len(data) - 8:
                at += 8 + int.from_bytes(data[at:at + 8], order)
                count -= 1
            self.stream.skip(at - self.stream.at)

    def value(self, kind: int, nesting: int = 0) -> Any:
        """A number, a string, or None for an array, which is passed over."""
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY or nesting > MAX_NESTING:
            raise Malformed(f"it has a value of type {kind}")
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind in SCALARS:
            self.stream.skip(length * struct.calcsize("=" + SCALARS[kind]))
        elif kind == STRING:    # the words of a tokenizer, of which there may be a million
            self._budget.take(length * WORD)
            self.pass_over(length)
        else:
            for _ in range(length):
                self._budget.step(KEY)
                self.value(kind, nesting + 1)
        return None

    def tensors(self, count: int) -> Iterator[tuple[str, int, int]]:
        """Type and parameters of each, and where it ends in the data; of a type that is not known where it begins."""
        for _ in range(count):
            self._budget.step(KEY)
            self.string()
            if (dimensions := self.scalar("I")) > MAX_DIMENSIONS:
                raise Malformed(f"it has a tensor of {dimensions} dimensions")
            *shape, kind, begin = self.numbers(f"{dimensions}QIQ")
            name, block, size = TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
            if shape and shape[0] % block:
                raise Malformed(f"it has a tensor with a row of {shape[0]} numbers, and {name} has blocks of {block}")
            yield name, math.prod(shape), begin + math.prod(shape) // block * size


def gguf(window: Window) -> dict[str, Any]:
    file = Gguf(window)
    if file.version not in (2, 3):
        raise Malformed(f"it is of version {file.version}")
    count, pairs = file.scalar("Q"), file.scalar("Q")
    wanted = {f"general.{name}" for name in (*GENERAL, "alignment", "architecture", "file_type")}
    keys, template = dict[str, Any](), dict[str, Any]()
    for _ in range(pairs):
        window.budget.step(KEY)
        name, value = file.string() or "", file.value(file.scalar("I"))
        if isinstance(value, int | str) and (name in wanted or name.endswith(OF_ARCHITECTURE)):
            keys[name] = value
        elif name.startswith(TEMPLATE):
            template = {"chat_template": True, "chat_template_length": file.length, "warnings": [
                "its chat template is a program: whoever chats with the model runs it"]}
    types: Counter[str] = Counter()
    parameters = last = 0
    for name, length, end in file.tensors(count):
        types[name] += 1
        parameters, last = parameters + length, max(last, end)
    alignment = keys.pop("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise Malformed(f"its tensors are aligned to {alignment!r:.50}")
    at = file.stream.tell()
    missing = at + (last and -at % alignment + last) - window.length
    if missing > 0 or parameters > MAX_NUMBER:
        raise Malformed(f"its last {'tensor' if last else 'key'} ends {missing} bytes beyond its end")
    quantisation = FILE_TYPES.get(keys.pop("general.file_type", -1), next(iter(counted(types)), None))
    architecture = str(keys.pop("general.architecture", ""))
    return {"version": file.version, "architecture": clip(architecture, MAX_TEXT), "quantisation": quantisation,
            "tensors": count, "parameters": parameters, "tensor_types": counted(types),
            "keys": shown(keys)} | template


# ---- fastText

def fasttext(window: Window) -> dict[str, Any]:
    numbers = window.numbers("<19i")
    return {"version": numbers[1], "dimension": numbers[2], "words": numbers[17], "labels": numbers[18],
            "model": {1: "cbow", 2: "skipgram", 3: "supervised"}.get(numbers[9])}


# ---- flatbuffers: TFLite, and of ONNX Runtime's .ort and ExecuTorch's .pte that they are ones

TABLE = 6               # steps that a table costs
TFLITE_TYPES = dict(enumerate((
    "float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64",
    "complex128", "uint64", "resource", "variant", "uint32", "uint16", "int4", "bfloat16", "int2", "uint4",
    "float8e4m3fn", "float8e5m2")))


class Table:
    """A table, read where a pointer leads; its fields have the numbers of the schema, and may be left out."""

    def __init__(self, window: Window, pointer: int = 0) -> None:
        window.budget.step(TABLE)
        self._window = window
        self._at = self.follow(pointer)
        self._fields = self._at - self.read(self._at, "<i")

    def read(self, at: int, code: str = "<I") -> int:
        return int(self._window.numbers(code, at)[0])

    def follow(self, pointer: int) -> int:
        return pointer + self.read(pointer)

    def place(self, field: int) -> int:
        """Where it is, 0 when it is left out."""
        slot = 4 + 2 * field
        offset = self.read(self._fields + slot, "<H") if slot < self.read(self._fields, "<H") else 0
        return offset and self._at + offset

    def number(self, field: int, code: str = "<I") -> int:
        place = self.place(field)
        return self.read(place, code) if place else 0

    def text(self, field: int) -> str:
        place = self.place(field)
        at = place and self.follow(place)
        data = self._window.at(at + 4, min(self.read(at), 4 * MAX_TEXT)) if place else b""
        return clip(data.decode("utf-8", "replace"), MAX_TEXT)

    def items(self, field: int) -> range:
        """Where the items of a vector are, each of 4 bytes: a number, or a pointer to a table or a text."""
        place = self.place(field)
        at = place and self.follow(place)
        return range(at + 4, at + 4 + 4 * self.read(at), 4) if place else range(0)


def tflite(window: Window) -> dict[str, Any]:
    model = Table(window)
    details: dict[str, Any] = {"version": model.number(0), "description": model.text(3), "inputs": [], "outputs": []}
    for at in model.items(2)[:1]:   # the first graph is the model, others are bodies of its loops
        graph = Table(window, at)
        tensors = graph.items(0)
        for name, field in ("inputs", 1), ("outputs", 2):
            numbers = [graph.read(place) for place in graph.items(field)[:MAX_SHOWN]]
            details[name] = [tflite_tensor(Table(window, tensors[n])) for n in numbers if n < len(tensors)]
    custom = sorted({Table(window, at).text(1) for at in model.items(1)} - {""})
    return details | ({"custom_operations": custom[:MAX_SHOWN]} if custom else {}) | {"warnings": watched(custom)}


def tflite_tensor(tensor: Table) -> dict[str, Any]:
    kind, sizes = tensor.number(1, "<B"), tensor.items(7) or tensor.items(0)    # the first where some are left open
    return {"name": tensor.text(3), "type": TFLITE_TYPES.get(kind, f"type {kind}"),
            "shape": [tensor.read(at, "<i") for at in sizes[:MAX_SHOWN]]}


def flatbuffer(window: Window) -> dict[str, Any]:
    """Of a format of which the signature is enough, as long as a table is where it points."""
    Table(window).number(0)
    return {}
