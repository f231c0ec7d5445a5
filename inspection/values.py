"""What is known of the values that a pickle makes: names, numbers, shapes, and the size of an array of joblib's."""

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_NAME = 128          # characters of a module or of a name in it; the longest of scikit-learn has 60
MAX_VALUES = 64         # values kept of a tuple or dict: the shape of an array, the fields of its wrapper
WRAPPER = ".NumpyArrayWrapper"      # joblib's, under whatever name it is reached
ALIGNMENT = "numpy_array_alignment_bytes"
DTYPE = re.compile(r"([biufcSUVmMO])([0-9]{1,9})")
HAS_OBJECTS = 1         # a flag in the state of a dtype


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
KEPT = (int, str, tuple, Made)      # types of the values kept in a dict
UNSURE = object()       # a key of a dict that may have other values than are known


def text_of(data: bytes | None) -> str | None:
    """A string on the stack, None for one that cannot be a name."""
    text = (data or b"").decode("utf-8", "replace")
    return text if 0 < len(text) <= MAX_NAME and text.isprintable() else None


def known(value: Any) -> Any:
    """What is kept of a value in a tuple or a dict."""
    value = text_of(value) if type(value) is bytes else value
    return value if type(value) in KEPT or value is NULL else None


def update(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=False):
        name = known(key)
        if type(name) is str and (name in target or len(target) < MAX_VALUES):
            target[name] = known(value)
        else:   # it may be any
            target[UNSURE] = None


class Array(NamedTuple):
    """What joblib reads in the place of an array: so many bytes, None for a pickle; whether padding is before it."""

    size: int | None
    padded: bool


def array_of(state: Any) -> Array | None:
    """The array that joblib's wrapper with this state tells of; None where that is not certain."""
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
        return Array(None, False)
    size = int(code[2]) * (4 if code[1] == "U" else 1)
    if state and code[1] in "SUV":      # the other types keep theirs
        size = state[5]
    return Array(math.prod(shape) * size, alignment is not NULL) if size >= 0 else None
