"""What formats of text tell: by a pattern at their beginning; and as JSON: safetensors, Keras, skops, HDF5 with it."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from inspection.headers import MAX_SHOWN, MAX_TEXT, Details, decoded, shown
from inspection.reader import STEP, Budget, Malformed, Window, clip

MAX_HEADER = 8 << 20    # of JSON: 60,000 tensors of safetensors, which allows 100 MB; parsed it takes ten times that
MAX_ITEMS = 300_000     # brackets and commas of a JSON document, which say how much memory it takes parsed
MAX_DIGITS = 400        # of a number in it that count; for int() many of them take the square of the time
DOCUMENT = 8 * STEP     # bytes that are read in the time that a JSON document takes,
ITEM = 256              # and an item of it

# ---- patterns

NEAR = 256 * 1024       # bytes searched at each end: in a tokenizer.json the added tokens come before its model
UBJ = rb"(?:L\0{7}|l\0{3}|[iU])"     # what a length of one byte begins with in UBJSON
PATTERNS: tuple[tuple[str, bytes, dict[str, bytes]], ...] = (
    ("xgboost", rb'\s*\{\s*"learner"\s*:\s*\{', {
        "version": rb'"version"\s*:\s*\[\s*(\d+\s*,\s*\d+\s*,\s*\d+)\s*\]\s*\}\s*$',
        "trees": rb'"num_trees"\s*:\s*"(\d+)"', "objective": rb'"name"\s*:\s*"([a-z]+:[a-z]+)"'}),
    ("xgboost", rb"\{" + UBJ + rb"\x07learner\{", {
        "trees": rb"num_treesS" + UBJ + rb".(\d+)", "objective": rb"nameS" + UBJ + rb".([a-z]+:[a-z]+)"}),
    ("lightgbm", rb"tree\r?\nversion=v(?P<version>\d+)", {
        "objective": rb"\nobjective=(\S+)", "classes": rb"\nnum_class=(\d+)"}),
    ("tokenizer", rb'\s*\{\s*"version"\s*:\s*"(?P<version>[\d.]+)"\s*,\s*"truncation"\s*:', {
        "model": rb'"model"\s*:\s*\{\s*"type"\s*:\s*"(\w+)"'}),
    ("openvino", rb'(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<net\s+name="(?P<name>[^"]*)"\s+version="(?P<version>\d+)"',
     {}),
    ("ncnn", rb"7767517\r?\n(?P<layers>\d+) (?P<blobs>\d+)\s", {}),
    ("ncnn", rb"\xdd\x85\x76\0..[\0-\x0f]\0..[\0-\x0f]\0", {}),
    ("paddle", rb'\s*\{\s*"base_code"\s*:\s*\{\s*"magic"\s*:\s*"pir"', {"version": rb'"version"\s*:\s*(\d+)'}),
    ("paddle", rb"\0{16}[\x02-\x40]\0\0\0\x08[\0-\x20](?:\x10|.{4})", {}))   # weights, from their first tensor on


def pattern(window: Window) -> tuple[str, Details] | None:
    """The format and its details, None when no pattern fits."""
    head = window.at(0, NEAR)
    for name, begins, told in PATTERNS:
        if first := re.match(begins, head, re.DOTALL):
            text = head + window.at(max(NEAR, window.length - NEAR), NEAR)
            found = {key: match[1] for key, each in told.items() if (match := re.search(each, text, re.DOTALL))}
            return name, {key: int(value) if value.isdigit() and len(value) < 10 else decoded(value)
                          for key, value in (first.groupdict() | found).items()}
    return None


# ---- JSON: safetensors, Keras and skops

BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
        "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
        "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
PLAIN = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "map", "object", "set",
         "slice", "str", "tuple", "type"}   # of the builtins those that do nothing


def parsed(data: bytes, budget: Budget, **hooks: Any) -> Any:
    """A JSON document that may be hostile; raises Malformed, and BudgetExceeded."""
    items = sum(map(data.count, (b",", b"[", b"{")))
    if len(data) > MAX_HEADER or items > MAX_ITEMS:
        raise Malformed(f"its JSON has more than {MAX_HEADER} bytes or {MAX_ITEMS} items")
    budget.take(DOCUMENT + 2 * len(data) + items * ITEM)
    try:
        return json.loads(data.decode(), parse_int=lambda digits: int(digits[:MAX_DIGITS]), **hooks)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"its JSON cannot be read: {error}") from error


def once(pairs: list[tuple[str, Any]]) -> Details:
    """An object in which no name comes twice: which of them counts differs from reader to reader."""
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("it has a field twice")
    return values


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")     # NaN and Infinity, which Python takes


def safetensors(window: Window) -> Details:
    length = int.from_bytes(window.at(0, 8), "little")
    data = window.at(8, min(length, MAX_HEADER + 1))
    header = parsed(data, window.budget, object_pairs_hook=once, parse_constant=refuse)
    metadata = header.pop("__metadata__", {})
    tensors = [tensor_of(name, value) for name, value in header.items()]
    at = 0
    for begin, end, *_ in sorted(tensors):
        if begin != at:
            raise Malformed("its tensors overlap or leave a gap")
        at = end
    if at != window.length - 8 - length:
        raise Malformed(f"its tensors have {at} bytes, and the file has {window.length - 8 - length} for them")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Malformed("its __metadata__ is not of strings")
    return {"tensors": len(tensors), "parameters": sum(tensor[2] for tensor in tensors),
            "dtypes": shown(Counter(tensor[3] for tensor in tensors)), "metadata": shown(metadata)}


def tensor_of(name: str, value: Any) -> tuple[int, int, int, str]:
    """Begin, end, parameters and type of a tensor in the header."""
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end))
        if not numbers or len(shape) > MAX_SHOWN or BITS[dtype] * math.prod(shape) != 8 * (end - begin):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"its tensor {name[:50]!r} is not described as it should be") from error
    return begin, end, math.prod(shape), dtype


def warnings(data: bytes, budget: Budget, warning_of: Callable[[Details], str]) -> list[str]:
    """What there is to say of the objects of a document, those in it too."""
    said = dict[str, None]()

    def look(each: Details) -> Details:
        budget.step()
        said[warning_of(each)] = None
        return each

    try:
        parsed(data, budget, object_hook=look)
    except Malformed as error:
        said[f"what it is made of is not known: {error}"] = None
    return list(filter(None, said))[:MAX_SHOWN]


def text(value: Any) -> str:
    """A name in a config, which may be as large as the config, or no name at all."""
    return clip(value, MAX_TEXT) if isinstance(value, str) else ""


def keras_warning(each: Details) -> str:
    """Of one object of a config: a layer, or a function of one."""
    kind, module, registered = (text(each.get(name)) for name in ("class_name", "module", "registered_name"))
    config = each.get("config")
    if kind in ("Lambda", "__lambda__") or each.get("function_type") == "lambda":
        return "a Lambda layer in it runs Python code of its own"
    if kind == "TorchModuleWrapper":
        return "its TorchModuleWrapper is unpickled when it is loaded"
    # of a package: its name is before a >, and so may be what was cut off at a …
    if kind == "function" or set(">…") & set(kind + registered) or (module and module.split(".")[0] != "keras"):
        name = text(config) or kind if kind == "function" else kind
        return f"loading it looks up {module + '.' if module else ''}{name}, which is not a part of Keras"
    vocabulary = text(config.get("vocabulary")) if isinstance(config, dict) else ""
    return f"loading it reads the file {vocabulary}" if vocabulary else ""


def skops_warning(each: Details) -> str:
    module, name = text(each.get("__module__")), text(each.get("__class__"))
    if module.split(".")[0] in ("", "sklearn", "scipy", "numpy", "collections") or (
            module == "builtins" and name in PLAIN):
        return ""
    return f"loading it looks up {module}.{name}, which is not a part of scikit-learn, SciPy or NumPy"


# Zips with a config: its member, a key that it has, the member of its version, which may be missing, and what is told.
CONFIGS: tuple[tuple[str, str, str, str, str, Callable[[Details], str]], ...] = (
    ("skops", "schema.json", "__class__", "schema.json", "_skops_version", skops_warning),
    ("keras", "config.json", "class_name", "metadata.json", "keras_version", keras_warning))


def config(read: Callable[[str], bytes], budget: Budget) -> tuple[str, Details] | None:
    """The format and its details of a zip whose members `read` gives; None when it has no such config."""
    for kind, member, key, versions, version, warning in CONFIGS:
        with suppress(Malformed, TypeError):
            data = read(member)
            told = parsed(read(versions) or b"{}", budget) if data else {}
            if version in told or b'"%b"' % key.encode() in data or (b"\\u" in data and key in parsed(data, budget)):
                value = {version.removeprefix("_"): text(told[version])} if version in told else {}
                return kind, value | {"warnings": warnings(data, budget, warning)}
    return None


# ---- HDF5

SUPERBLOCK = b"\x89HDF\r\n\x1a\n"
SEARCHED = 32 << 20     # bytes: Keras writes what a model is made of before its weights
MAX_BLOCK = 40          # doublings of 512 bytes that a block of the user may have
ATTRIBUTE = b"model_config\0"
CONFIG = re.compile(rb'\{\s*"[^\0]*')       # a text of JSON, which ends with a brace before a zero
BRACE = 16              # bytes that are read in the time in which a brace is looked at
NAMES = b'"class_name"', b"\\u"     # what is in the config of a layer, and what may stand for a letter of it


def hdf5(window: Window) -> tuple[str, Details]:
    """The format and its details: Keras when it has the config of a model; none when it is no HDF5.

    It begins at the beginning, or behind a block of the user, whose length is a power of two. Each text of
    JSON is looked at, whatever attribute it belongs to, as there are many ways to lay them out.
    """
    if not any(window.at(at, 8) == SUPERBLOCK for at in (0, *(512 << n for n in range(MAX_BLOCK)))):
        return "", {}
    data = window.at(0, SEARCHED)
    rest = [f"only its first {SEARCHED >> 20} MiB are searched for what Keras would run"] * (window.length > SEARCHED)
    if ATTRIBUTE not in data:
        return "hdf5", {"warnings": rest}
    said, seen = dict[str, None](), False
    window.budget.take(BRACE * data.count(b"{"))
    for match in CONFIG.finditer(data):
        window.budget.step(2)
        layers = data[match.start():data.rfind(b"}", *match.span()) + 1]
        if any(name in layers for name in NAMES):
            seen = True
            said |= dict.fromkeys(warnings(layers, window.budget, keras_warning)[:MAX_SHOWN - len(said)])
    if not seen:
        rest.append("what its layers are is not known: its config was not found")
    return "keras", {"container": "hdf5", "warnings": [*said, *rest]}
