"""What Keras tells of a model in JSON, in a .keras file or in HDF5, and what skops tells in the same way."""

from collections.abc import Iterator
from typing import Any

from inspection.headers import MAX_SHOWN, MAX_TEXT, parsed, unpack
from inspection.reader import Budget, Malformed, Window, clip

MAX_BLOCKS = 64         # of a header in HDF5
SUPERBLOCK = b"\x89HDF\r\n\x1a\n"
ATTRIBUTE, CONTINUATION, FIXED, VARIABLE = 0x0C, 0x10, 3, 9     # messages of a header in HDF5, and types of a text
PLAIN = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "map", "object", "set",
         "slice", "str", "tuple", "type"}   # of the builtins those that do nothing


def objects(data: bytes, budget: Budget) -> Iterator[dict[str, Any]]:
    """Each object of a JSON document, those in it too."""
    values = [parsed(data)]
    while values:
        budget.step()
        value = values.pop()
        if isinstance(value, dict):
            yield value
        values.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def keras_warnings(data: bytes, budget: Budget) -> list[str]:
    found = dict[str, None]()
    try:
        for each in objects(data, budget):
            if warning := keras_warning(each):
                found[warning] = None
    except Malformed as error:
        return [f"what its layers are is not known: {error}"]
    return list(found)[:MAX_SHOWN]


def keras_warning(each: dict[str, Any]) -> str:
    """Of one object of a config: a layer, or a function of one."""
    kind, module, registered = (str(each.get(name) or "") for name in ("class_name", "module", "registered_name"))
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


def skops_warnings(data: bytes, budget: Budget) -> list[str]:
    names = {(str(each["__module__"]), str(each["__class__"])) for each in objects(data, budget)
             if "__module__" in each and "__class__" in each}
    return [f"loading it looks up {module}.{name}, which is not a part of scikit-learn, SciPy or NumPy"
            for module, name in sorted(names)
            if module.split(".")[0] not in ("sklearn", "scipy", "numpy", "collections")
            and not (module == "builtins" and name in PLAIN)]


# ---- HDF5


def hdf5(window: Window, start: int = 0) -> tuple[str, dict[str, Any]]:
    """The format and its details: Keras when it has the config of a model."""
    try:
        found = attributes(window, start)
        if "model_config" not in found:
            return "hdf5", {}
        version = clip(found.get("keras_version", b"").decode("utf-8", "replace"), MAX_TEXT)
        return "keras", {"container": "hdf5", "keras_version": version,
                         "warnings": keras_warnings(found["model_config"], window.budget)}
    except Malformed as error:
        return "hdf5", {"warnings": [f"whether it is a model of Keras is not known: {error}"]}


def superblock(window: Window) -> int | None:
    """Where it begins: at the beginning or behind a block of the user, whose length is a power of two."""
    return next((at for at in (0, *(512 << n for n in range(16))) if window.at(at, 8) == SUPERBLOCK), None)


def attributes(window: Window, start: int) -> dict[str, bytes]:
    """The text attributes of the outermost group, in the layout that h5py writes; raises Malformed for another one."""
    file = window.part(start, window.length)
    version, sizes = file.at(8, 1), file.at(13, 2)
    if version not in (b"\0", b"\1") or sizes != b"\x08\x08":
        raise Malformed("its attributes are laid out in a way that is not read here")
    root, = unpack(file, "<Q", 64 + 4 * version[0])
    blocks, found = [(root + 16, *unpack(file, "<8xI", root))], dict[str, bytes]()
    for at, length in blocks:
        end = at + length
        while at + 8 <= end and len(blocks) < MAX_BLOCKS:
            window.budget.step()
            kind, size = unpack(file, "<HH", at)
            if kind == CONTINUATION:
                blocks.append(unpack(file, "<QQ", at + 8))
            elif kind == ATTRIBUTE:
                found |= [attribute(file, at + 8)]
            at += 8 + size
    return found


def attribute(file: Window, at: int) -> tuple[str, bytes]:
    """Its name, and its bytes when it is a text, which are here or in a heap of the file."""
    version, *sizes = unpack(file, "<BxHHH", at)
    if version == 1:
        sizes = [size + -size % 8 for size in sizes]
    at += 8 + (version == 3)
    name = file.at(at, sizes[0]).rstrip(b"\0").decode("utf-8", "replace")
    kind, size = unpack(file, "<BxxxI", at + sizes[0])
    at += sum(sizes)
    if kind & 15 == FIXED:
        return name, file.at(at, size)
    if kind & 15 != VARIABLE:
        return name, b""
    length, heap, wanted = unpack(file, "<IQI", at)
    number, size, at = -1, 0, heap      # the head of a heap has 16 bytes, as that of each value in it
    while length and number != wanted:
        file.budget.step()
        at += 16 + size + -size % 8
        number, size = unpack(file, "<H6xQ", at)
    return name, file.at(at + 16, size)
