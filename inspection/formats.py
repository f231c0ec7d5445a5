"""Which format a file is of, and what its bytes tell: bytes in, values out, and nothing is ever loaded or executed."""

import json
from collections.abc import Collection
from contextlib import suppress
from typing import Any, BinaryIO

from inspection.archives import HEAD, Contents, contents, kind_of, open_member
from inspection.headers import MAX_SHOWN, MAX_TEXT, gguf, npy, onnx, safetensors
from inspection.pickles import JOBLIB, KNOWN
from inspection.reader import UNPACKERS, Budget, BudgetExceeded, Malformed, Window, clip
from repository.model import Inspection
from server.errors import HttpError

FORMATS = ("safetensors", "gguf", "onnx", "pytorch", "pickle", "joblib", "keras", "hdf5", "tflite", "tensorrt",
           "npy", "npz", "zip", "tar", "gzip", "bzip2", "xz", "zlib", "zstd", "lz4", "7z", "rar", "unknown")
MAX_SMALL_JSON = 64 * 1024  # metadata.json of Keras has 100

SIGNATURES = ((0, b"\x89HDF\r\n\x1a\n", "hdf5"), (4, b"TFL3", "tflite"), (0, b"ptrt", "tensorrt"),
              (0, b"ftrt", "tensorrt"))


class FormatRefused(HttpError):
    """MODEL_ALLOWED_FORMATS leaves the format out."""

    status = 415


class PickleRefused(HttpError):
    """MODEL_PICKLE refuses what would be unpickled, or what may hold a pickle and cannot be looked into."""

    status = 422


def inspect(file: BinaryIO, size: int) -> Inspection:
    """What an open file of `size` bytes is; `unknown` at worst. Raises OSError where the file itself fails."""
    window = Window(file, 0, size, Budget())
    found = contents(window)
    window = Window(file, 0, size, Budget())    # what looking for pickles took is not missing here
    head = window.head(HEAD)
    name, details = "", dict[str, Any]()
    try:
        name, details = recognise(window, head, found)
    except Malformed as error:
        details["error"] = clip(f"it is not what it begins like: {error}", MAX_TEXT)
    except BudgetExceeded:
        details["error"] = "it takes too long to read"
    if found.found.imports or found.found.pickled:
        details["imports_found"] = list(found.found.imports)
    if found.found.persistent_ids and name != "pytorch":    # there they are the tensors
        details["persistent_ids"] = True
    if not found.found.complete:
        details["complete"] = False
    return Inspection(name or "unknown", details)


def check(inspection: Inspection, allowed: Collection[str], pickle: str) -> None:
    """Raises FormatRefused unless the format is one of `allowed`, if there are any, and PickleRefused.

    `pickle` is what may be unpickled: allow, known for the imports in KNOWN, deny. What is not known is refused.
    """
    if allowed and inspection.format not in allowed:
        why = inspection.details.get("error")
        raise FormatRefused(f"the format of the file is {inspection.format}{f' ({why})' if why else ''}: "
                            f"this server takes {', '.join(sorted(allowed))} (MODEL_ALLOWED_FORMATS)")
    if pickle == "allow":
        return
    imports, complete = inspection.details.get("imports_found"), inspection.details.get("complete", True)
    unknown = [name for name in imports or () if name not in KNOWN]
    rest = "" if complete else "what cannot be looked into"
    if pickle == "deny" and (imports is not None or not complete):
        raise PickleRefused(f"the file holds {'a pickle' if imports is not None else rest}: "
                            "this server takes none (MODEL_PICKLE=deny); save the model as safetensors or ONNX")
    if unknown or not complete:
        raise PickleRefused(f"the file would import {', '.join(unknown + [rest] * (not complete))} when it is loaded: "
                            "this server takes what rebuilds tensors alone (MODEL_PICKLE=known)")


def recognise(window: Window, head: bytes, found: Contents) -> tuple[str, dict[str, Any]]:
    """The format and its details; raises Malformed for what only begins like it, and BudgetExceeded."""
    if head.startswith(b"GGUF"):
        return "gguf", gguf(window)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= window.length - 8:
        return "safetensors", safetensors(window)
    for at, signature, name in SIGNATURES:
        if head.startswith(signature, at):
            return name, {}
    if found.kind == "zip":
        return zip_format(window, found)
    pickled = "joblib" if any(name.startswith(JOBLIB) for name in found.found.imports) else "pickle"
    if found.kind in UNPACKERS:
        return (pickled, {"compression": found.kind}) if found.found.pickled else (found.kind, {})
    if found.kind == "npy":
        return "npy", npy(window)
    if found.kind:
        return found.kind, {}
    if found.found.pickled:
        return ("pytorch", {"container": "pickles"}) if found.found.torch else (pickled, {})
    if kind_of(head) == "zip":
        raise Malformed("it is no whole zip")
    if head.startswith(b"\x08"):    # ONNX has no signature: this is its first field
        with suppress(Malformed):
            return "onnx", onnx(window)
    return "", {}


def zip_format(window: Window, found: Contents) -> tuple[str, dict[str, Any]]:
    names = {member.name: member for member in found.members}
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        scripted = any(name.rpartition("/")[2] == "constants.pkl" for name in names)
        return "pytorch", {"container": "zip", **({"torchscript": True} if scripted else {})}
    if {"config.json", "metadata.json"} <= names.keys():
        try:
            with open_member(window, names["metadata.json"]).stream() as stream:
                metadata = json.loads(stream.read(MAX_SMALL_JSON))
            return "keras", {"keras_version": clip(str(metadata["keras_version"]), MAX_TEXT)}
        except (Malformed, ValueError, KeyError, TypeError, RecursionError):
            pass
    if names and all(name.endswith(".npy") for name in names):
        return "npz", {"arrays": [clip(name[:-4], MAX_TEXT) for name in names][:MAX_SHOWN]}
    return "zip", {"members": len(found.members)}
