"""What safetensors, GGUF, ONNX and npy tell of a model in their own words, read field by field within a budget.

Each function gives the details, or raises Malformed for what only begins like its format, and BudgetExceeded.
"""

import io
import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from inspection.archives import NUMERIC, array_header
from inspection.reader import Budget, Malformed, Window, clip, exactly, skip

MAX_HEADER = 8 << 20    # of safetensors, which allows 100 MB: 60,000 tensors, and parsed it takes ten times that
MAX_HEADER_ITEMS = 500_000  # brackets and commas in it, which say how much memory it takes parsed
MAX_SHOWN = 32          # keys, inputs, types, dimensions that the details list
MAX_TEXT = 200          # characters of each
MAX_STRING = 64 * 1024  # bytes of a key or a value of GGUF that is read and not skipped
WORDS = 8               # strings of an array that cost as much as a key
MAX_NESTING = 4         # arrays of arrays in GGUF
MAX_DIMENSIONS = 8      # of a tensor in GGUF, which has 4
MAX_NUMBER = (1 << 63) - 1   # what other readers of our JSON take


def npy(window: Window) -> dict[str, Any]:
    header = NUMERIC.fullmatch(array_header(window.stream()))
    if not header:
        return {}   # of records, or of objects
    return {"dtype": header[1].decode(), "shape": [int(length) for length in header[2].split(b",") if length.strip()]}


# ---- safetensors


BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
        "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
        "C64": 64}


def safetensors(window: Window) -> dict[str, Any]:
    length = int.from_bytes(window.head(8), "little")
    if length > MAX_HEADER:
        raise Malformed(f"of its header of {length} bytes {MAX_HEADER} are read")
    text = window.at(8, length)
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_HEADER_ITEMS:
        raise Malformed(f"its header has more than {MAX_HEADER_ITEMS} items")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed("its header is no JSON") from error
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
TENSOR_TYPES = dict(enumerate((
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32",
    "I64", "F64", "IQ1_M", "BF16"))) | {34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE"}
GENERAL = ("name", "basename", "size_label", "license", "quantization_version")     # keys that are shown
OF_ARCHITECTURE = (".context_length", ".embedding_length", ".block_count", "tokenizer.ggml.model")


class Gguf:
    """The fields of a GGUF file, from the first on."""

    def __init__(self, window: Window) -> None:
        self._stream, self._budget = window.stream(), window.budget
        version = exactly(self._stream, 8)[4:]
        self.order = ">" if version[:2] == b"\0\0" else "<"     # models for big-endian machines are written like this
        self.version, = struct.unpack(self.order + "I", version)

    def scalar(self, code: str) -> Any:
        return struct.unpack(self.order + code, exactly(self._stream, struct.calcsize("=" + code)))[0]

    def string(self) -> str | None:
        """None for one that is too long to be of interest."""
        length = self.scalar("Q")
        if length > MAX_STRING:
            skip(self._stream, length)
            return None
        return exactly(self._stream, length).decode("utf-8", "replace")

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
            skip(self._stream, length * struct.calcsize("=" + SCALARS[kind]))
            return None
        if kind == STRING:
            self.skip_strings(length)
            return None
        for _ in range(length):
            self._budget.step()
            self.value(kind, nesting + 1)
        return None

    def skip_strings(self, count: int) -> None:
        """The words of a tokenizer, of which there may be a million."""
        self._budget.step(count // WORDS)
        for _ in range(count):
            skip(self._stream, self.scalar("Q"))

    def pairs(self, count: int) -> Iterator[tuple[str, Any]]:
        for _ in range(count):
            self._budget.step()
            name = self.string()
            yield name or "", self.value(self.scalar("I"))

    def tensors(self, count: int) -> Iterator[tuple[str, int, int]]:
        """Type, parameters and offset of each."""
        for _ in range(count):
            self._budget.step()
            self.string()
            if (dimensions := self.scalar("I")) > MAX_DIMENSIONS:
                raise Malformed(f"it has a tensor of {dimensions} dimensions")
            shape = [self.scalar("Q") for _ in range(dimensions)]
            kind = self.scalar("I")
            yield TENSOR_TYPES.get(kind, f"type {kind}"), math.prod(shape), self.scalar("Q")

    def tell(self) -> int:
        return self._stream.tell()


def gguf(window: Window) -> dict[str, Any]:
    file = Gguf(window)
    if file.version not in (2, 3):
        raise Malformed(f"it is of version {file.version}")
    count, pairs = file.scalar("Q"), file.scalar("Q")
    wanted = {f"general.{name}" for name in (*GENERAL, "architecture", "file_type")}
    keys: dict[str, Any] = {
        name: value for name, value in file.pairs(pairs)
        if isinstance(value, int | str) and (name in wanted or name.endswith(OF_ARCHITECTURE))}
    types: Counter[str] = Counter()
    parameters = last = 0
    for name, length, offset in file.tensors(count):
        types[name] += 1
        parameters, last = parameters + length, max(last, offset)
    if file.tell() + last > window.length or parameters > MAX_NUMBER:
        raise Malformed("it has tensors beyond its end")
    quantisation = FILE_TYPES.get(keys.pop("general.file_type", -1), next(iter(counted(types)), None))
    architecture = str(keys.pop("general.architecture", ""))
    return {"version": file.version, "architecture": clip(architecture, MAX_TEXT), "quantisation": quantisation,
            "tensors": count, "parameters": parameters, "tensor_types": counted(types),
            "keys": shown(keys)}


# ---- ONNX


VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5    # protobuf's wire types
MAX_IR_VERSION = 99     # 13 today; a field of another meaning would have any number
ELEMENT_TYPES = dict(enumerate((
    "undefined", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16",
    "float64", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn", "float8e4m3fnuz",
    "float8e5m2", "float8e5m2fnuz", "uint4", "int4", "float4e2m1")))


def varint(stream: io.BufferedReader) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = exactly(stream, 1)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise Malformed("it has a number that is too long")


def fields(stream: io.BufferedReader, length: int, budget: Budget) -> Iterator[tuple[int, int, int]]:
    """Number, wire type and value of each field of a protobuf message; of bytes, which come next, their length."""
    end = stream.tell() + length
    while stream.tell() < end:
        budget.step()
        number, wire = divmod(varint(stream), 8)
        if wire in (FIXED32, FIXED64):
            skip(stream, 4 if wire == FIXED32 else 8)
            yield number, wire, 0
        elif wire in (VARINT, BYTES):
            value = varint(stream)
            after = stream.tell() + (value if wire == BYTES else 0)
            if after > end:
                raise Malformed("it has a field beyond its end")
            yield number, wire, value
            stream.seek(after)
        else:
            raise Malformed(f"it has a field of wire type {wire}")
    if stream.tell() != end:
        raise Malformed("a message in it has another length than it says")


def text(stream: io.BufferedReader, length: int) -> str:
    return clip(stream.read(min(length, 4 * MAX_TEXT)).decode("utf-8", "replace"), MAX_TEXT)


def onnx(window: Window) -> dict[str, Any]:
    stream, budget, opsets = window.stream(), window.budget, dict[str, int]()
    details: dict[str, Any] = {"ir_version": 0, "producer": "", "producer_version": "", "opsets": opsets}
    graph: dict[str, Any] = {}
    for field in fields(stream, window.length, budget):
        match field:
            case 1, 0, version:
                details["ir_version"] = version
            case 2, 2, length:
                details["producer"] = text(stream, length)
            case 3, 2, length:
                details["producer_version"] = text(stream, length)
            case 7, 2, length:
                graph = onnx_graph(stream, length, budget)
            case 8, 2, length if len(opsets) < MAX_SHOWN:
                domain, version = onnx_opset(stream, length, budget)
                opsets[domain or "ai.onnx"] = version
    if not 0 < details["ir_version"] <= MAX_IR_VERSION or not opsets or not graph:
        raise Malformed("it has no graph")
    return details | graph


def onnx_opset(stream: io.BufferedReader, length: int, budget: Budget) -> tuple[str, int]:
    domain, version = "", 0
    for field in fields(stream, length, budget):
        match field:
            case 1, 2, size:
                domain = text(stream, size)
            case 2, 0, version:
                pass
    return domain, min(version, MAX_NUMBER)


def onnx_graph(stream: io.BufferedReader, length: int, budget: Budget) -> dict[str, Any]:
    nodes, inputs = 0, list[dict[str, Any]]()
    for number, wire, size in fields(stream, length, budget):
        nodes += (number, wire) == (1, BYTES)
        if (number, wire) == (11, BYTES) and len(inputs) < MAX_SHOWN:
            inputs.append(onnx_input(stream, size, budget))
    return {"nodes": nodes, "inputs": inputs}


def onnx_input(stream: io.BufferedReader, length: int, budget: Budget) -> dict[str, Any]:
    """Name, type and shape of an input: ValueInfoProto, and of its TypeProto what is a tensor."""
    result: dict[str, Any] = {"name": "", "type": None, "shape": None}
    for field in fields(stream, length, budget):
        match field:
            case 1, 2, size:
                result["name"] = text(stream, size)
            case 2, 2, size:
                for number, wire, inner in fields(stream, size, budget):
                    if (number, wire) == (1, BYTES):
                        result |= onnx_tensor_type(stream, inner, budget)
    return result


def onnx_tensor_type(stream: io.BufferedReader, length: int, budget: Budget) -> dict[str, Any]:
    result: dict[str, Any] = {"type": None, "shape": None}
    for field in fields(stream, length, budget):
        match field:
            case 1, 0, kind:
                result["type"] = ELEMENT_TYPES.get(kind, f"type {kind}")
            case 2, 2, size:
                result["shape"] = [onnx_dimension(stream, inner, budget)
                                   for number, _, inner in fields(stream, size, budget) if number == 1][:MAX_SHOWN]
    return result


def onnx_dimension(stream: io.BufferedReader, length: int, budget: Budget) -> int | str | None:
    """Its size, or its name where that is left open."""
    result: int | str | None = None
    for field in fields(stream, length, budget):
        match field:
            case 1, 0, size:
                result = min(size, MAX_NUMBER)
            case 2, 2, size:
                result = text(stream, size)
    return result
