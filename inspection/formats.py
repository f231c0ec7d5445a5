"""Which format a file is of, and what its bytes tell: bytes in, values out, and nothing is ever loaded or executed."""

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import BinaryIO

from inspection.archives import HEAD, TFLITE, Member, array_header, kind_of, open_member, search
from inspection.found import Found, beyond_known
from inspection.headers import MAX_SHOWN, MAX_TEXT, Details, Table, gguf, tflite
from inspection.protobuf import protobuf
from inspection.reader import UNPACKERS, Budget, BudgetExceeded, Malformed, Window, clip
from inspection.texts import MAX_HEADER, config, hdf5, pattern, safetensors
from repository.model import Inspection
from server.errors import HttpError

FORMATS = ("safetensors", "gguf", "ggml", "onnx", "ort", "pytorch", "pt2", "executorch", "pickle", "joblib", "skops",
           "keras", "hdf5", "savedmodel", "graphdef", "tflite", "task", "tensorrt", "coreml", "openvino", "ncnn",
           "paddle", "xgboost", "lightgbm", "catboost", "fasttext", "sentencepiece", "tokenizer",
           "npy", "npz", "zip", "tar", "gzip", "bzip2", "xz", "zlib", "zstd", "lz4", "7z", "rar", "unknown")
MAX_SCRIPT = 1 << 20    # bytes of a file of TorchScript
SCRIPT = 10             # bytes that are read in the time in which one of these is searched
ON_FILES = re.compile(rb"\b(?:torch|ops\.\w+)\.(save|load|from_file|read_file|write_file)\(")   # of TorchScript
MAX_NAMED = 5           # imports that a warning names
JOBLIB = ("joblib.numpy_pickle.", "sklearn.externals.joblib.numpy_pickle.")    # where scikit-learn had it before 0.23
ADVICE = {              # what helps when a file of these formats may hold a pickle
    **dict.fromkeys(("npy", "npz"), "save the arrays without objects in them"),
    **dict.fromkeys(("pytorch", "pickle", "joblib", "unknown"), "save the model as safetensors or ONNX")}
SIGNATURES: tuple[tuple[str, bytes, Callable[[Window], Details]], ...] = (
    ("gguf", rb"GGUF", gguf), ("tflite", rb".{4}" + TFLITE, tflite),
    ("ort", rb".{4}ORTM", lambda window: {"version": Table(window).text(0)}),
    ("executorch", rb".{4}ET12", lambda window: {"version": Table(window).number(0)}),
    ("fasttext", rb"\xba\x16\x4f\x2f", lambda window: dict(zip(
        ("version", "dimension", "words", "labels"), window.numbers("<4x2i56x2i"), strict=True))),
    ("ggml", rb"lmgg|fmgg|tjgg|algg", lambda _: {}), ("catboost", rb"CBM1", lambda _: {}),
    ("tensorrt", rb"ptrt|ftrt", lambda _: {}))


class FormatRefused(HttpError):
    """MODEL_ALLOWED_FORMATS leaves the format out."""

    status = 415


class PickleRefused(HttpError):
    """MODEL_PICKLE refuses what would be unpickled, or what may hold a pickle and cannot be looked into."""

    status = 422


def inspect(file: BinaryIO, size: int) -> Inspection:
    """What an open file of `size` bytes is; `unknown` at worst. Raises OSError where the file itself fails."""
    name, details = "", Details()
    with Budget() as budget:
        window, members, found = Window(file, 0, size, budget), list[Member](), Found()
        kind = kind_of(window.at(0, HEAD))
        try:
            kind = search(window, found, 0, members)
        except BudgetExceeded:
            found.complete = False
        budget.refill()
        try:
            name, details = recognise(window, kind, members, found)
        except Malformed as error:
            details["error"] = clip(f"it is not what it begins like: {error}", MAX_TEXT)
        except BudgetExceeded:
            details["error"] = "it takes too long to read"
    if name == "pytorch" and found.tensors:
        details |= {"tensors": found.tensors, "parameters": found.parameters}   # by the calls that rebuild them
    if found.imports or found.pickled:
        details["imports_found"] = list(found.imports)
    if not found.complete:
        details["complete"] = False
    names = beyond_known(found.imports)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    named = f"loading it imports {', '.join(names[:MAX_NAMED])}{more}, beyond what rebuilds tensors and arrays"
    native = "native code is in it: a program or a library"
    if said := [named] * bool(names) + [native] * found.native + details.pop("warnings", []):
        details["warnings"] = [clip(each, MAX_TEXT) for each in said[:MAX_SHOWN]]
    return Inspection(name or "unknown", details)


def check(inspection: Inspection, allowed: Collection[str], pickle: str) -> None:
    """Raises FormatRefused unless the format is one of `allowed`, if there are any, and PickleRefused.

    `pickle` is what may be unpickled: allow, known for the imports in KNOWN, deny. What is not known is refused.
    """
    if allowed and inspection.format not in allowed:
        why = inspection.details.get("error")
        raise FormatRefused(f"the format of the file is {inspection.format}{f' ({why})' if why else ''}: "
                            f"this server takes {', '.join(sorted(allowed))} (MODEL_ALLOWED_FORMATS)")
    imports = inspection.details.get("imports_found")
    rest = [] if inspection.details.get("complete", True) else ["what cannot be looked into"]
    if pickle == "deny" and (imports is not None or rest):
        held, advice = ("a pickle", "take the pickle out of it") if imports is not None else (
            rest[0], "upload what is in it, unpacked and whole")
        raise PickleRefused(f"the file holds {held}: this server takes none (MODEL_PICKLE=deny); "
                            f"{ADVICE.get(inspection.format, advice)}")
    if pickle != "allow" and (refused := beyond_known(imports or ()) + rest):
        raise PickleRefused(f"the file would import {', '.join(refused)} when it is loaded: "
                            "this server takes what rebuilds tensors alone (MODEL_PICKLE=known)")


def recognise(window: Window, kind: str, members: list[Member], found: Found) -> tuple[str, Details]:
    """The format and its details; raises Malformed for what only begins like it, and BudgetExceeded."""
    head = window.at(0, HEAD)
    for name, begins, details in SIGNATURES:
        if re.match(begins, head, re.DOTALL) and (kind or not found.pickled):   # else a pickle has that further on
            return name, details(window)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= window.length - 8:
        return "safetensors", safetensors(window)
    if kind == "zip":
        return zip_format(window, members)
    pickled = "joblib" if any(name.startswith(JOBLIB) for name in found.imports) else "pickle"
    if kind in UNPACKERS:
        return (pickled, {"compression": kind}) if found.pickled else (kind, {})
    if kind:
        return kind, array_header(window.stream())[0] if kind == "npy" else {}
    if found.pickled:
        return ("pytorch", {"container": "pickles"}) if found.torch else (pickled, {})
    if kind_of(head) == "zip":
        raise Malformed("the zip is truncated or malformed")
    return pattern(window) or protobuf(window) or hdf5(window)


def read(window: Window, member: Member | None, limit: int = MAX_HEADER + 1) -> bytes:
    """What a member begins with; nothing where there is none, or none that can be read."""
    with suppress(Malformed):
        return open_member(window, member).stream().read(limit) if member else b""
    return b""


def zip_format(window: Window, members: list[Member]) -> tuple[str, Details]:
    names = {member.name: member for member in members}
    last = {member.name.rpartition("/")[2]: member for member in members}
    if read(window, last.get("archive_format"))[:3] == b"pt2" or "serialized_exported_program.json" in last:
        return "pt2", {"members": len(names)}
    if "data.pkl" in last:
        script = {"torchscript": True, "warnings": script_warnings(window, members)} if "constants.pkl" in last else {}
        return "pytorch", {"container": "zip", **script}
    if seen := config(lambda name: read(window, names.get(name)), window.budget):
        return seen
    if names and all(name.endswith(".npy") for name in names):
        return "npz", {"arrays": [clip(name[:-4], MAX_TEXT) for name in names][:MAX_SHOWN]}
    # A bundle of MediaPipe: nothing is packed, and one of its members is TFLite, or a bundle in the bundle.
    heads = ((member.name, read(window, member, 8)) for member in members[:MAX_SHOWN])
    if not any(member.method for member in members) and any(
            head[4:] == TFLITE or (kind_of(head) == "zip" and name.endswith(".task")) for name, head in heads):
        return "task", {"members": [clip(name, MAX_TEXT) for name in names][:MAX_SHOWN]}
    return "zip", {"members": len(members)}


def script_warnings(window: Window, members: list[Member]) -> list[str]:
    """What TorchScript runs on files; its text is in the members below code/."""
    said = set[str]()
    for member in members:
        if "/code/" in member.name and member.name.endswith(".py"):
            script = read(window, member, MAX_SCRIPT + 1)
            window.budget.take(SCRIPT * len(script))
            said |= {f"reads or writes files with {call.decode()}" for call in ON_FILES.findall(script)}
            if len(script) > MAX_SCRIPT:
                said.add(f"has more than {MAX_SCRIPT >> 20} MiB in a file: what the rest does is not known")
    return ["it is TorchScript: code in it runs when the model is called"] + [
        f"its TorchScript {each}" for each in sorted(said)]
