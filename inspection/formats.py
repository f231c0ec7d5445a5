"""Which format a file is of, and what its bytes tell: bytes in, values out, and nothing is ever loaded or executed."""

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, BinaryIO

from inspection import headers
from inspection.archives import HEAD, TFLITE, Member, contents, kind_of, open_member
from inspection.found import KNOWN, Found
from inspection.headers import MAX_HEADER, MAX_SHOWN, MAX_TEXT, parsed
from inspection.protobuf import protobuf
from inspection.reader import UNPACKERS, Budget, BudgetExceeded, Malformed, Window, clip
from inspection.texts import hdf5, keras_warning, pattern, skops_warning, text, warnings
from repository.model import Inspection
from server.errors import HttpError

FORMATS = ("safetensors", "gguf", "ggml", "onnx", "ort", "pytorch", "pt2", "executorch", "pickle", "joblib", "skops",
           "keras", "hdf5", "savedmodel", "graphdef", "tflite", "task", "tensorrt", "coreml", "openvino", "ncnn",
           "paddle", "xgboost", "lightgbm", "catboost", "fasttext", "sentencepiece", "tokenizer",
           "npy", "npz", "zip", "tar", "gzip", "bzip2", "xz", "zlib", "zstd", "lz4", "7z", "rar", "unknown")
MAX_SCRIPT = 1 << 20    # bytes of a file of TorchScript
SCRIPT = 10             # bytes that are read in the time in which one of these is searched
MAX_NAMED = 5           # imports that a warning names
JOBLIB = ("joblib.numpy_pickle.", "sklearn.externals.joblib.numpy_pickle.")    # where scikit-learn had it before 0.23

Details = dict[str, Any]

SIGNATURES: tuple[tuple[str, int, tuple[bytes, ...], Callable[[Window], Details] | None], ...] = (
    ("gguf", 0, (b"GGUF",), headers.gguf), ("ggml", 0, (b"lmgg", b"fmgg", b"tjgg", b"algg"), None),
    ("tflite", 4, (TFLITE,), headers.tflite), ("ort", 4, (b"ORTM",), headers.flatbuffer),
    ("executorch", 4, (b"ET12",), headers.flatbuffer), ("catboost", 0, (b"CBM1",), None),
    ("fasttext", 0, (b"\xba\x16\x4f\x2f",), headers.fasttext), ("tensorrt", 0, (b"ptrt", b"ftrt"), None))
# Zips with a config: its member, a key that it has, the member of its version, which may be missing, and what is told.
CONFIGS: tuple[tuple[str, str, bytes, str, str, Callable[[dict[str, Any]], str]], ...] = (
    ("skops", "schema.json", b"__class__", "schema.json", "_skops_version", skops_warning),
    ("keras", "config.json", b"class_name", "metadata.json", "keras_version", keras_warning))
ON_FILES = re.compile(rb"\b(?:torch|ops\.\w+)\.(save|load|from_file|read_file|write_file)\(")   # of TorchScript


class FormatRefused(HttpError):
    """MODEL_ALLOWED_FORMATS leaves the format out."""

    status = 415


class PickleRefused(HttpError):
    """MODEL_PICKLE refuses what would be unpickled, or what may hold a pickle and cannot be looked into."""

    status = 422


def inspect(file: BinaryIO, size: int) -> Inspection:
    """What an open file of `size` bytes is; `unknown` at worst. Raises OSError where the file itself fails."""
    name, details = "", dict[str, Any]()
    with Budget() as budget:
        window = Window(file, 0, size, budget)
        kind, members, found = contents(window)
        budget.refill()
        try:
            name, details = recognise(window, kind, members, found)
        except Malformed as error:
            details["error"] = clip(f"it is not what it begins like: {error}", MAX_TEXT)
        except BudgetExceeded:
            details["error"] = "it takes too long to read"
    if found.imports or found.pickled:
        details["imports_found"] = list(found.imports)
    if found.persistent_ids and name not in ("pytorch", "pt2"):   # there they are the tensors
        details["persistent_ids"] = True
    if not found.complete:
        details["complete"] = False
    if said := [*beyond_list(found), *details.pop("warnings", ())]:
        details["warnings"] = [clip(each, MAX_TEXT) for each in said[:MAX_SHOWN]]
    return Inspection(name or "unknown", details)


def beyond_list(found: Found) -> list[str]:
    """What a person should look at of the imports, and of code for a processor."""
    unknown = [name for name in found.imports if name not in KNOWN]
    more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
    imports = f"loading it imports {', '.join(unknown[:MAX_NAMED])}{more}, beyond what rebuilds tensors and arrays"
    return [imports] * bool(unknown) + ["native code is in it: a program or a library"] * found.native


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
        raise PickleRefused(f"the file holds {'a pickle' if imports is not None else rest}: this server takes none "
                            f"(MODEL_PICKLE=deny); {advice(inspection.format, imports is not None)}")
    if unknown or not complete:
        raise PickleRefused(f"the file would import {', '.join(unknown + [rest] * (not complete))} when it is loaded: "
                            "this server takes what rebuilds tensors alone (MODEL_PICKLE=known)")


def advice(name: str, pickled: bool) -> str:
    """What helps when a file of this format may hold a pickle."""
    if name in ("npy", "npz"):
        return "save the arrays without objects in them"
    if name in ("pytorch", "pickle", "joblib", "unknown"):
        return "save the model as safetensors or ONNX"
    return "take the pickle out of it" if pickled else "upload what is in it, unpacked and whole"


def recognise(window: Window, kind: str, members: list[Member], found: Found) -> tuple[str, Details]:
    """The format and its details; raises Malformed for what only begins like it, and BudgetExceeded."""
    head = window.at(0, HEAD)
    pickle_first = found.pickled and not kind   # whatever signature stands further on
    for name, at, signature, details in SIGNATURES:
        if head.startswith(signature, at) and not pickle_first:
            return name, details(window) if details else {}
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= window.length - 8:
        return "safetensors", headers.safetensors(window)
    if kind == "zip":
        return zip_format(window, members, found)
    pickled = "joblib" if any(name.startswith(JOBLIB) for name in found.imports) else "pickle"
    if kind in UNPACKERS:
        return (pickled, {"compression": kind}) if found.pickled else (kind, {})
    if kind:
        return kind, headers.npy(window) if kind == "npy" else {}
    if found.pickled:
        return ("pytorch", {"container": "pickles"} | tensors(found)) if found.torch else (pickled, {})
    if kind_of(head) == "zip":
        raise Malformed("it is no whole zip")
    if seen := pattern(window):
        return seen
    with suppress(Malformed):
        return protobuf(window)
    return hdf5(window)


def tensors(found: Found) -> Details:
    return {"tensors": found.tensors, "parameters": found.parameters} if found.tensors else {}


def script_warnings(window: Window, members: list[Member]) -> list[str]:
    """What TorchScript runs on files; its text is in the members below code/."""
    said = set[str]()
    for member in members:
        if "/code/" in member.name and member.name.endswith(".py"):
            with suppress(Malformed):
                script = open_member(window, member).stream().read(MAX_SCRIPT + 1)
                window.budget.take(SCRIPT * len(script))
                said |= {f"reads or writes files with {call.decode()}" for call in ON_FILES.findall(script)}
                if len(script) > MAX_SCRIPT:
                    said.add(f"has more than {MAX_SCRIPT >> 20} MiB in a file: what the rest does is not known")
    return ["it is TorchScript: code in it runs when the model is called"] + [
        f"its TorchScript {each}" for each in sorted(said)]


def is_task(window: Window, members: list[Member]) -> bool:
    """Whether it bundles models of MediaPipe: nothing is packed, and one is TFLite, or a bundle in the bundle."""
    for member in members[:MAX_SHOWN]:
        with suppress(Malformed):
            head = open_member(window, member).stream().read(8)
            if head[4:] == TFLITE or (kind_of(head) == "zip" and member.name.endswith(".task")):
                return not any(member.method for member in members)
    return False


def zip_format(window: Window, members: list[Member], found: Found) -> tuple[str, Details]:
    names = {member.name: member for member in members}
    last = {member.name.rpartition("/")[2]: member for member in members}

    def read(member: Member | None) -> bytes:
        with suppress(Malformed):
            return open_member(window, member).stream().read(MAX_HEADER + 1) if member else b""
        return b""

    if read(last.get("archive_format"))[:3] == b"pt2" or "serialized_exported_program.json" in last:
        return "pt2", {"members": len(names)}
    if "data.pkl" in last:
        details = {"container": "zip", **tensors(found)}
        if "constants.pkl" in last:
            details |= {"torchscript": True, "warnings": script_warnings(window, members)}
        return "pytorch", details
    for kind, config, key, versions, version, warning in CONFIGS:
        data, other = read(names.get(config)), read(names.get(versions))
        with suppress(Malformed, TypeError):
            told = parsed(other, window.budget) if data and other else {}
            if version in told or b'"%b"' % key in data or (
                    b"\\u" in data and key.decode() in parsed(data, window.budget)):
                value = {version.removeprefix("_"): clip(text(told[version]), MAX_TEXT)} if version in told else {}
                return kind, value | {"warnings": warnings(data, window.budget, warning)}
    if names and all(name.endswith(".npy") for name in names):
        return "npz", {"arrays": [clip(name[:-4], MAX_TEXT) for name in names][:MAX_SHOWN]}
    if is_task(window, members):
        return "task", {"members": [clip(name, MAX_TEXT) for name in names][:MAX_SHOWN]}
    return "zip", {"members": len(members)}
