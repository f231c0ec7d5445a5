"""What is found in a file: its imports, whether there may be more, and what is known of the values in its pickles."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MAX_IMPORTS = 200       # a pickled pipeline has 30, a network with all its layers 50
MAX_DIMENSIONS = 16     # of a tensor whose parameters are counted
MAX_NUMBER = (1 << 63) - 1  # what other readers of our JSON take
EXTENSION = "copyreg.extension."    # and the number of an import that a registry of the reader has

# What it takes to put tensors and arrays together again, and nothing that looks up or calls what a pickle names.
# docs/formats.md has this list too.
KNOWN = frozenset({
    "_codecs.encode", "collections.OrderedDict", "numpy.ndarray", "numpy.dtype", "torch.Size", "torch.device",
    *(f"torch._utils._rebuild_{name}" for name in ("parameter", "tensor", "tensor_v2", "tensor_v3")),
    *(f"torch.{name}Storage" for name in ("BFloat16", "Bool", "Byte", "Char", "ComplexDouble", "ComplexFloat", "Double",
                                          "Float", "Half", "Int", "Long", "Short", "storage.Typed", "storage.Untyped")),
    *(f"torch.{name}" for name in ("bfloat16", "bool", "float16", "float32", "float64", "int8", "int16", "int32",
                                   "int64", "uint8", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2")),
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in (
        "multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer"))})


def beyond_known(imports: Iterable[str]) -> list[str]:
    return [name for name in imports if name not in KNOWN]


@dataclass
class Found:
    """What a file would unpickle. `complete` is False when there may be more than was found."""

    imports: dict[str, None] = field(default_factory=dict)      # in the order in which they were met
    pickled: bool = False
    complete: bool = True
    torch: bool = False
    native: bool = False
    tensors: int = 0        # that torch would rebuild, and the numbers in them
    parameters: int = 0

    def add(self, name: str) -> None:
        if len(self.imports) < MAX_IMPORTS:
            self.imports[name] = None
        self.complete &= name in self.imports

    def rebuild(self, arguments: Any) -> None:
        """Counts a tensor by the arguments of the call that makes it: storage, offset, shape."""
        self.tensors += 1
        shape = arguments[2] if type(arguments) is tuple and len(arguments) > 2 else None
        if type(shape) is tuple and len(shape) <= MAX_DIMENSIONS and all(type(length) is int for length in shape):
            self.parameters = max(0, min(self.parameters + math.prod(shape), MAX_NUMBER))

    def merge(self, other: "Found") -> None:
        for name in other.imports:
            self.add(name)
        self.complete &= other.complete
        self.pickled |= other.pickled
        self.torch |= other.torch
        self.native |= other.native
        self.tensors += other.tensors
        self.parameters = min(self.parameters + other.parameters, MAX_NUMBER)
