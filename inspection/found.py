"""What is found in a file: its imports, whether there may be more, and what is known of the values in its pickles."""

import math
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_IMPORTS = 200       # a pickled pipeline has 30, a network with all its layers 50
MAX_NUMBER = (1 << 63) - 1  # what other readers of our JSON take
MAX_NAME = 128          # characters of a module or of a name in it; the longest of scikit-learn has 60
MAX_VALUES = 64         # values kept of a tuple or dict: the shape of an array, the fields of its wrapper
EXTENSION = "copyreg.extension."    # and the number of an import that a registry of the reader has

# What it takes to put tensors and arrays together again, and nothing that looks up or calls what a pickle names.
# docs/formats.md has this list too.
KNOWN = frozenset({
    "_codecs.encode", "collections.OrderedDict",
    *(f"torch.{name}Storage" for name in ("BFloat16", "Bool", "Byte", "Char", "ComplexDouble", "ComplexFloat", "Double",
                                          "Float", "Half", "Int", "Long", "Short")),
    "torch.storage.TypedStorage", "torch.storage.UntypedStorage",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3", "torch.Size", "torch.device",
    *(f"torch.{name}" for name in ("bfloat16", "bool", "float16", "float32", "float64", "int8", "int16", "int32",
                                   "int64", "uint8", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer", "numpy.ndarray", "numpy.dtype",
})


@dataclass
class Found:
    """What a file would unpickle. `complete` is False when there may be more than was found."""

    imports: dict[str, None] = field(default_factory=dict)      # in the order in which they were met
    pickled: bool = False
    complete: bool = True
    torch: bool = False
    persistent_ids: bool = False
    native: bool = False
    tensors: int = 0        # that torch would rebuild, and the numbers in them
    parameters: int = 0

    def add(self, module: str | None, name: str | None) -> "Global":
        full = f"{module or '?'}.{name or '?'}"     # ? for what is too long, or known only when it runs
        if len(self.imports) < MAX_IMPORTS:
            self.imports[full] = None
        elif full not in self.imports:
            self.complete = False
        return Global(full)

    def rebuild(self, arguments: Any) -> None:
        """Counts a tensor by the arguments of the call that makes it: storage, offset, shape."""
        self.tensors += 1
        shape = arguments[2] if type(arguments) is tuple and len(arguments) > 2 else None
        if type(shape) is tuple and all(type(length) is int for length in shape):
            self.parameters = max(0, min(self.parameters + math.prod(shape), MAX_NUMBER))

    def named(self) -> bool:
        return not all(name.startswith(EXTENSION) for name in self.imports)

    def merge(self, other: "Found") -> None:
        for name in other.imports:
            self.add(*name.rsplit(".", 1))
        self.complete &= other.complete
        self.pickled |= other.pickled
        self.torch |= other.torch
        self.persistent_ids |= other.persistent_ids
        self.native |= other.native
        self.tensors += other.tensors
        self.parameters = min(self.parameters + other.parameters, MAX_NUMBER)


# ---- values on the stack of an unpickler: names, numbers, shapes


class Global(NamedTuple):
    """Something imported."""

    name: str


@dataclass(eq=False, slots=True)
class Made:
    """What something imported made of arguments, of which the numbers and strings are known, and its state."""

    name: str
    arguments: tuple[Any, ...] | None
    state: Any = None


OTHER, NULL = object(), object()    # OTHER: a value that is no string, NULL: None; None: one that may be
UNSURE = object()       # a key of a dict that may have other values than are known


def text_of(data: bytes | None) -> str | None:
    """A string on the stack, None for one that cannot be a name."""
    text = (data or b"").decode("utf-8", "replace")
    return text if 0 < len(text) <= MAX_NAME and text.isprintable() else None


def known(value: Any) -> Any:
    """What is kept of a value in a tuple or a dict."""
    value = text_of(value) if type(value) is bytes else value
    return value if type(value) in (int, str, tuple, Made) or value is NULL else None


def kept(values: list[Any]) -> Any:
    """A tuple of these."""
    return tuple(map(known, values)) if len(values) <= MAX_VALUES else OTHER


def update(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=False):
        name = known(key)
        if type(name) is str and (name in target or len(target) < MAX_VALUES):
            target[name] = known(value)
        else:   # it may be any
            target[UNSURE] = None


# ---- arrays that joblib writes between the opcodes


WRAPPER = ".NumpyArrayWrapper"      # joblib's, under whatever name it is reached
ALIGNMENT = "numpy_array_alignment_bytes"
DTYPE = re.compile(r"([biufcSUVmMO])([0-9]{1,9})")
HAS_OBJECTS = 1         # a flag in the state of a dtype


def array_of(state: Any) -> tuple[int | None, bool] | None:
    """What joblib reads in the place of a wrapper with this state; None where that is not certain.

    It is so many bytes, None for a pickle; and whether there is padding before it.
    """
    if type(state) is not dict or UNSURE in state:
        return None
    shape, dtype, alignment = state.get("shape"), state.get("dtype"), state.get(ALIGNMENT, NULL)
    if type(shape) is not tuple or any(type(length) is not int or length < 0 for length in shape):
        return None
    if not isinstance(dtype, Made) or dtype.name != "numpy.dtype" or not dtype.arguments or alignment is None:
        return None
    code, state = DTYPE.fullmatch(str(dtype.arguments[0])), dtype.state
    if not code or (state is not None and (type(state) is not tuple or len(state) not in (8, 9) or state[0] not in (
            3, 4) or state[2] is not NULL or type(state[5]) is not int or type(state[7]) is not int)):
        return None     # numpy's __setstate__ goes by the length, the version, a part that is an array, size and flags
    if code[1] == "O" or (state and state[7] & HAS_OBJECTS):
        return None, False
    size = int(code[2]) * (4 if code[1] == "U" else 1)
    if state and code[1] in "SUV":      # the other types keep theirs
        size = state[5]
    return (math.prod(shape) * size, alignment is not NULL) if size >= 0 else None
