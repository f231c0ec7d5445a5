"""What formats that are flatbuffers tell: TFLite, and that ONNX Runtime's .ort and ExecuTorch's .pte are ones."""

from typing import Any

from inspection.headers import MAX_SHOWN, MAX_TEXT, unpack
from inspection.protobuf import watched
from inspection.reader import Window, clip

TABLE = 32      # steps that a table costs
TENSOR_TYPES = dict(enumerate((     # of TFLite
    "float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64",
    "complex128", "uint64", "resource", "variant", "uint32", "uint16", "int4", "bfloat16", "int2", "uint4",
    "float8e4m3fn", "float8e5m2")))


class Table:
    """A table, read where a pointer leads; its fields have the numbers of the schema, and may be left out."""

    def __init__(self, window: Window, pointer: int = 0) -> None:
        window.budget.step(TABLE)
        self._window = window
        self._at = pointer + self.read(pointer)
        self._fields = self._at - self.read(self._at, "<i")

    def read(self, at: int, code: str = "<I") -> int:
        return int(unpack(self._window, code, at)[0])

    def place(self, field: int) -> int:
        """Where it is, 0 when it is left out."""
        slot = 4 + 2 * field
        offset = self.read(self._fields + slot, "<H") if slot < self.read(self._fields, "<H") else 0
        return offset and self._at + offset

    def number(self, field: int, code: str = "<I") -> int:
        place = self.place(field)
        return self.read(place, code) if place else 0

    def text(self, field: int) -> str:
        pointer = self.place(field)
        if not pointer:
            return ""
        at = pointer + self.read(pointer)
        data = self._window.at(at + 4, min(self.read(at), 4 * MAX_TEXT))
        return clip(data.decode("utf-8", "replace"), MAX_TEXT)

    def items(self, field: int) -> range:
        """Where the items of a vector are, each of 4 bytes: a number, or a pointer to a table or a text."""
        place = self.place(field)
        at = place and place + self.read(place)
        return range(at + 4, at + 4 + 4 * self.read(at), 4) if place else range(0)


def tflite(window: Window) -> dict[str, Any]:
    model = Table(window)
    details: dict[str, Any] = {"version": model.number(0), "description": model.text(3), "inputs": [], "outputs": []}
    for at in model.items(2)[:1]:   # the first graph is the model, others are bodies of its loops
        graph = Table(window, at)
        tensors = graph.items(0)
        for name, field in ("inputs", 1), ("outputs", 2):
            numbers = [graph.read(place) for place in graph.items(field)[:MAX_SHOWN]]
            details[name] = [tflite_tensor(Table(window, tensors[n])) for n in numbers if n < len(tensors)]
    custom = sorted({Table(window, at).text(1) for at in model.items(1)} - {""})
    return details | ({"custom_operations": custom[:MAX_SHOWN]} if custom else {}) | {"warnings": watched(custom)}


def tflite_tensor(tensor: Table) -> dict[str, Any]:
    kind, sizes = tensor.number(1, "<B"), tensor.items(7) or tensor.items(0)    # the first where some are left open
    return {"name": tensor.text(3), "type": TENSOR_TYPES.get(kind, f"type {kind}"),
            "shape": [tensor.read(at, "<i") for at in sizes[:MAX_SHOWN]]}


def flatbuffer(window: Window) -> dict[str, Any]:
    """Of a format of which the signature is enough, as long as a table is where it points."""
    Table(window).number(0)
    return {}
