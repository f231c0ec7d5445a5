"""What formats that are protobuf messages tell: ONNX, TensorFlow's graphs, CoreML, SentencePiece and Paddle.

None of them has a signature: a file is of the format whose fields it has. A tree says which fields are read: a field's
number leads to its name; to the tree of the message in it; to a name and that tree; or to these and what collects it.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from inspection.found import MAX_NUMBER
from inspection.headers import MAX_SHOWN, MAX_TEXT, Details, decoded, numbered, watched
from inspection.reader import LETTER, BudgetExceeded, Malformed, Stream, Window

VARINT, BYTES = 0, 2    # protobuf's wire types
WIDTHS = {1: 8, 5: 4}   # bytes of the others
MAX_VARINT = 10         # bytes
FIELD = 224             # bytes that are unpacked in the time that a field takes, and again what is made of it,
DIGIT = 64              # and a byte of its numbers
MESSAGE = 3             # steps that a message costs
MAX_NESTING = 40        # messages in messages; the body of a loop in ONNX is 3 deeper than the node
NEAR = 4096             # bytes of a message in which it is searched for
HAS = 0                 # in a tree, where no field is: bytes without which a message is not of interest
Tree = dict[int, Any]
Fields = dict[str, list[Any]]
Kinds = dict[tuple[int, int], tuple[int, int, int]]     # by number and wire type: how many, place and value of the last


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number here, and where the next byte is."""
    if at < len(data) and data[at] < 128:   # most are
        return data[at], at + 1
    value = 0
    for shift, byte in enumerate(data[at:at + MAX_VARINT]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise Malformed("it has a number without an end")


def fields(stream: Stream, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, value and length of each field of a message; bytes come next: their value is where."""
    at = stream.tell()
    while at < end:
        if len(stream.data) - stream.at < 2 * MAX_VARINT:
            stream.ahead(2 * MAX_VARINT)
        begin = stream.at
        key, place = varint(stream.data, begin)
        number, wire = divmod(key, 8)
        value, length = 0, WIDTHS.get(wire, 0)
        if wire == VARINT:
            value, place = varint(stream.data, place)
        elif wire == BYTES:
            length, place = varint(stream.data, place)
            value = at + place - begin
        elif not length:
            raise Malformed(f"it has a field of wire type {wire}")
        stream.budget.take(FIELD + DIGIT * (place - begin))
        at, stream.at = at + place - begin + length, place
        if at > end or not number:
            raise Malformed("it has a field beyond its end")
        yield number, wire, value, length


def read(stream: Stream, length: int, tree: Tree, into: Fields | None = None, nesting: int = 0) -> Fields:
    """The fields in `tree` by their names, in the order of the file: any is allowed, and messages may merge.

    The fields of a message in it are beside its own, unless it is collected; one with a name has None for its value.
    """
    into = defaultdict(list) if into is None else into
    if nesting > MAX_NESTING:
        raise Malformed("its messages are nested too deeply")
    if HAS in tree and length <= NEAR and tree[HAS] not in stream.ahead(length):
        stream.skip(length)
        return into
    stream.budget.step(MESSAGE)
    for number, wire, value, size in fields(stream, stream.tell() + length):
        stream.budget.take(FIELD)
        match tree.get(number):
            case dict(inner) if wire == BYTES:
                read(stream, size, inner, into, nesting + 1)
            case name, inner if wire == BYTES:
                into[name].append(None)
                read(stream, size, inner, into, nesting + 1)
            case name, inner, collect if wire == BYTES:
                into[name].append(collect(read(stream, size, inner, None, nesting + 1)))
            case str(name) if wire == BYTES:
                stream.budget.take(LETTER * min(size, 4 * MAX_TEXT))
                into[name].append(decoded(stream.read(min(size, 4 * MAX_TEXT))))
                stream.skip(size - min(size, 4 * MAX_TEXT))
            case str(name) if wire == VARINT:   # negative ones have 64 bits
                into[name].append(min(value - (1 << 64) * (value >> 63), MAX_NUMBER))
            case _:
                stream.skip(size)
    return into


def protobuf(window: Window) -> tuple[str, Details] | None:
    """The format of a message, and its details; None when it is none of those that are known."""
    stream, kinds = window.stream(), Kinds()
    with suppress(Malformed):
        for number, wire, value, length in fields(stream, window.length):
            kinds[number, wire] = kinds.get((number, wire), (0,))[0] + 1, value, length
            stream.skip(length)
            if number > MAX_FIELD:
                return None
        numbers = {number for number, _ in kinds}
        for name, needed, allowed, details in MESSAGES:
            if needed <= kinds.keys() and numbers <= allowed:
                try:
                    return name, details(window, kinds)
                except BudgetExceeded:
                    return name, {"warnings": ["it has more fields than are looked at: what the rest do is not known"]}
                except Malformed:
                    continue
    return None


def last(found: Fields, *names: str) -> Details:
    """The last value of those names that there are, or of all: of a field that comes twice it counts."""
    return {name: found[name][-1] for name in names or found if name in found}


# ---- ONNX

MAX_IR_VERSION = 99     # 13 today; a field of another meaning would have any number
ELEMENT_TYPES = numbered(
    "undefined float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64 complex64 "
    "complex128 bfloat16 float8e4m3fn float8e4m3fnuz float8e5m2 float8e5m2fnuz uint4 int4 float4e2m1 float8e8m0 uint2 "
    "int2 float6e2m3 float6e3m2")


def onnx_input(found: Fields) -> Details:
    """Name, type and shape of an input: ValueInfoProto, and of its TypeProto what is a tensor."""
    shape = [each.get("size") for each in found["dimension"][:MAX_SHOWN]] if found["shape"] else None
    kinds = [ELEMENT_TYPES.get(number, f"type {number}") for number in found["type"]]
    return {"name": "", "type": kinds[-1] if kinds else None, "shape": shape} | last(found, "name")


TENSOR: Tree = {13: ("external", {1: "key", 2: "value"}, last)}
BODY: Tree = {}         # a graph in an attribute, like a loop's: read for its tensors that are in other files
ATTRIBUTE: Tree = {5: TENSOR, 6: BODY, 10: TENSOR, 11: BODY, 22: {1: TENSOR, 2: TENSOR}, 23: {1: TENSOR, 2: TENSOR}}
NODE: Tree = {HAS: b"location", 5: ATTRIBUTE}
WEIGHT: Tree = {8: "weight", **TENSOR}
SPARSE: Tree = {1: WEIGHT, 2: TENSOR}
BODY |= {1: NODE, 5: TENSOR, 15: SPARSE}
INPUT: Tree = {1: "name", 2: {1: {1: "type", 2: ("shape", {1: ("dimension", {1: "size", 2: "size"}, last)})}}}
MODEL: Tree = {1: "ir_version", 2: "producer", 3: "producer_version", 7: {
    1: ("node", NODE), 5: WEIGHT, 11: ("input", INPUT, onnx_input), 15: SPARSE},
    8: ("opset", {1: "domain", 2: "version"}, last), 20: {1: BODY, 2: BODY}, 25: {7: NODE, 11: ATTRIBUTE}}
# A path that may lead out of its folder, on any system; what was cut off may.
OUTSIDE = re.compile(r"^[/\\]|^\w:|(^|[/\\])\.\.([/\\]|$)|…$")


def onnx(window: Window, _: Kinds) -> Details:
    found = read(window.stream(), window.length, MODEL)
    details: Details = {"ir_version": 0, "producer": "", "producer_version": ""}
    details |= last(found, *details)
    version, weights = details["ir_version"], set(found["weight"])
    if type(version) is not int or not 0 < version <= MAX_IR_VERSION or not found["opset"]:
        raise Malformed("it has no graph")
    details["opsets"] = {str(each.get("domain") or "ai.onnx"): each.get("version", 0)
                         for each in found["opset"][:MAX_SHOWN]}
    details["nodes"] = len(found["node"])
    details["inputs"] = [each for each in found["input"] if each["name"] not in weights][:MAX_SHOWN]
    external = list({str(each.get("value")): None for each in found["external"] if each.get("key") == "location"})
    return details | ({"external_data": external[:MAX_SHOWN]} if external else {}) | {
        "warnings": [f"its weights are read from {location}, outside the model's folder"
                     for location in external if OUTSIDE.search(location)]}


# ---- TensorFlow and Paddle

GRAPH: Tree = {1: ("node", {2: "op"}), 2: {1: {3: {2: "op"}}}, 3: "version"}
SAVED_MODEL: Tree = {1: "schema", 2: {1: {4: "tags", 5: "tensorflow_version"}, 2: GRAPH, 5: {1: "signatures"}}}
PROGRAM: Tree = {1: {1: "block", 4: ("node", {3: "op"})}, 4: {1: "version"}}


def graph(window: Window, _: Kinds, tree: Tree = GRAPH, also: str = "op") -> Details:
    """Nodes and operations of a graph, and what else is named in the tree; `also` is a field that there must be."""
    found = read(window.stream(), window.length, tree)
    operations = set(found["op"])
    if not operations or not found[also] or last(found, "schema") not in ({}, {"schema": 1}) or not all(
            isinstance(name, str) and re.fullmatch(r"\w[\w.>]*", name) for name in operations):
        raise Malformed("it has no graph")
    lists = {name: found[name][:MAX_SHOWN] for name in ("tags", "signatures") if found[name]}
    return lists | last(found, "tensorflow_version", "version") | {
        "nodes": len(found["node"]), "warnings": watched(operations)}


# ---- CoreML and SentencePiece

FIRST_KIND, MAX_FIELD = 200, 3000   # the fields of CoreML that hold the model, one for each kind of them
PARTS: Tree = {number: {1: {500: {10: "custom"}}} for number in (303, 403, 500)} | {555: {10: "custom"}}
PIPELINE: Tree = {1: PARTS}
PARTS |= {202: PIPELINE} | {number: {1: PIPELINE} for number in (200, 201)}
COREML: Tree = {1: "specification_version", **PARTS, 2: {
    1: {1: "inputs"}, 10: {1: "outputs"}, 100: {1: "description", 2: "model_version", 3: "author", 4: "license"}}}
PIECE_MODELS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


def coreml(window: Window, kinds: Kinds) -> Details:
    if max(kinds)[0] < FIRST_KIND:
        raise Malformed("it has no model")
    found = read(window.stream(), window.length, COREML)
    custom = dict.fromkeys(map(str, found.pop("custom", ())))
    return last(found) | {"inputs": found["inputs"][:MAX_SHOWN], "outputs": found["outputs"][:MAX_SHOWN],
                          "warnings": [f"native code of its app runs in it, the class {name}" for name in custom]}


def sentencepiece(window: Window, kinds: Kinds) -> Details:
    pieces, (_, trainer, length) = kinds[1, BYTES][0], kinds[2, BYTES]
    found = read(window.part(trainer, length).stream(), length, {3: "type"})
    return {"pieces": pieces, "model_type": PIECE_MODELS.get(last(found).get("type", 1))}


MESSAGES = (    # format, fields that there must be with their wire types, numbers that there may be, details
    ("onnx", {(1, VARINT), (7, BYTES), (8, BYTES)}, set(range(1, 100)), onnx),
    ("savedmodel", {(1, VARINT), (2, BYTES)}, {1, 2}, partial(graph, tree=SAVED_MODEL)),
    ("coreml", {(1, VARINT), (2, BYTES)}, {1, 2, 10, *range(FIRST_KIND, MAX_FIELD + 1)}, coreml),
    ("sentencepiece", {(1, BYTES), (2, BYTES), (3, BYTES)}, {1, 2, 3, 4, 5}, sentencepiece),
    ("graphdef", {(1, BYTES), (4, BYTES)}, {1, 2, 3, 4}, graph),
    ("paddle", {(1, BYTES)}, {1, 4, 5}, partial(graph, tree=PROGRAM, also="block")))
