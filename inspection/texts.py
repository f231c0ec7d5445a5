"""What formats of text tell: by a pattern at their beginning; and as JSON, Keras and skops, also within HDF5."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from inspection.headers import MAX_SHOWN, MAX_TEXT, parsed
from inspection.reader import Budget, Malformed, Window, clip

# ---- patterns

NEAR = 256 * 1024       # bytes searched at each end: in a tokenizer.json the added tokens come before its model

UBJ = rb"(?:L\0{7}|l\0{3}|[iU])"     # what a length of one byte begins with in UBJSON
PATTERNS: tuple[tuple[str, bytes, dict[str, bytes]], ...] = (
    ("xgboost", rb'\s*\{\s*"learner"\s*:\s*\{', {
        "version": rb'"version"\s*:\s*\[\s*(\d+\s*,\s*\d+\s*,\s*\d+)\s*\]\s*\}\s*$',
        "trees": rb'"num_trees"\s*:\s*"(\d+)"', "objective": rb'"objective"\s*:\s*\{\s*"name"\s*:\s*"([^"]+)'}),
    ("xgboost", rb"\{" + UBJ + rb"\x07learner\{", {
        "trees": rb"num_treesS" + UBJ + rb".(\d+)", "objective": rb"objective\{.{1,9}nameS.{2,9}?([a-z:]{3,})"}),
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


def pattern(window: Window) -> tuple[str, dict[str, Any]] | None:
    """The format and its details, None when no pattern fits."""
    head = window.at(0, NEAR)
    for name, begins, told in PATTERNS:
        if first := re.match(begins, head, re.DOTALL):
            text = head + window.at(max(NEAR, window.length - NEAR), NEAR)
            found = {key: match[1] for key, each in told.items() if (match := re.search(each, text, re.DOTALL))}
            values = {key: clip(value.decode("utf-8", "replace"), MAX_TEXT)
                      for key, value in (first.groupdict() | found).items()}
            return name, {key: int(value) if value.isdecimal() and len(value) < 10 else value
                          for key, value in values.items()}
    return None


# ---- JSON of Keras and skops

PLAIN = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "map", "object", "set",
         "slice", "str", "tuple", "type"}   # of the builtins those that do nothing


def objects(data: bytes, budget: Budget) -> Iterator[dict[str, Any]]:
    """Each object of a JSON document, those in it too."""
    values = [parsed(data, budget)]
    while values:
        budget.step()
        value = values.pop()
        if isinstance(value, dict):
            yield value
        values.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def warnings(data: bytes, budget: Budget, warning_of: Callable[[dict[str, Any]], str]) -> list[str]:
    """What there is to say of the objects of a document."""
    try:
        found = dict.fromkeys(map(warning_of, objects(data, budget)))
    except Malformed as error:
        return [f"what it is made of is not known: {error}"]
    return list(filter(None, found))[:MAX_SHOWN]


def text(value: Any) -> str:
    """A name in a config; what is none may be as large as the config."""
    return value if isinstance(value, str) else ""


def keras_warning(each: dict[str, Any]) -> str:
    """Of one object of a config: a layer, or a function of one."""
    kind, module, registered = (text(each.get(name)) for name in ("class_name", "module", "registered_name"))
    config = each.get("config")
    if kind in ("Lambda", "__lambda__") or each.get("function_type") == "lambda":
        return "a Lambda layer in it runs Python code of its own"
    if kind == "TorchModuleWrapper":
        return "its TorchModuleWrapper is unpickled when it is loaded"
    if kind == "function" or ">" in kind + registered or (module and module.split(".")[0] != "keras"):
        name = config if kind == "function" and isinstance(config, str) else kind
        return f"loading it looks up {module + '.' if module else ''}{name}, which is not a part of Keras"
    vocabulary = config.get("vocabulary") if isinstance(config, dict) else None
    return f"loading it reads the file {vocabulary}" if isinstance(vocabulary, str) else ""


def skops_warning(each: dict[str, Any]) -> str:
    module, name = text(each.get("__module__")), text(each.get("__class__"))
    if module.split(".")[0] in ("", "sklearn", "scipy", "numpy", "collections") or (
            module == "builtins" and name in PLAIN):
        return ""
    return f"loading it looks up {module}.{name}, which is not a part of scikit-learn, SciPy or NumPy"


# ---- HDF5

SUPERBLOCK = b"\x89HDF\r\n\x1a\n"
SEARCHED = 32 << 20     # bytes: Keras writes what a model is made of before its weights
MAX_BLOCK = 40          # doublings of 512 bytes that a block of the user may have
ATTRIBUTE = b"model_config\0"
CLASS, ESCAPE = b'"class_name"', b"\\u"   # what is in a config, and what may stand for a letter of it
TEXT = re.compile(rb'\s*\{\s*"[^\0]*\}')     # a text of JSON, before which there are sizes with zeros in them


def hdf5(window: Window) -> tuple[str, dict[str, Any]]:
    """The format and its details: Keras when it has the config of a model; none when it is no HDF5.

    It begins at the beginning, or behind a block of the user, whose length is a power of two. Each text of
    JSON is looked at, whatever attribute it belongs to, as there are many ways to lay them out.
    """
    if not any(window.at(at, 8) == SUPERBLOCK for at in (0, *(512 << n for n in range(MAX_BLOCK)))):
        return "", {}
    data = window.at(0, SEARCHED)
    rest = window.length > SEARCHED
    said = [f"only its first {SEARCHED >> 20} MiB are searched for what Keras would run"] * rest
    if ATTRIBUTE not in data:
        return "hdf5", {"warnings": said}
    found, configs = dict[str, None](), 0
    for config in configs_in(data, window.budget):
        configs += 1
        found |= dict.fromkeys(warnings(config, window.budget, keras_warning)[:MAX_SHOWN - len(found)])
    if not configs:
        said.append("what its layers are is not known: its config was not found")
    return "keras", {"container": "hdf5", "warnings": [*found, *said]}


def configs_in(data: bytes, budget: Budget) -> Iterator[bytes]:
    """The texts of JSON between zeros that may be of a layer: found by what is in them, as zeros are many."""
    for word in CLASS, ESCAPE:
        end = 0
        while (at := data.find(word, end)) >= 0:
            budget.step()
            begin, end = max(end, data.rfind(b"\0", end, at) + 1), data.find(b"\0", at) % (len(data) + 1)
            if (match := TEXT.match(data, begin, end)) and (word == CLASS or CLASS not in match[0]):
                yield match[0]
