"""Files of every format, made by hand of a few bytes each, and the pieces they are made of."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(pairs=(), tensors=(), data=b"", version=3, counts=None):
    """pairs of (name, type, bytes); tensors of (name, shape, type, offset)."""
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs))))
    keys = b"".join(gguf_string(name) + struct.pack("<I", kind) + value for name, kind, value in pairs)
    infos = b"".join(gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
                     for name, shape, kind, offset in tensors)
    return head + keys + infos + data


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    """A field of a protobuf message: a number or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def onnx(graph=None, opset=17):
    shape = field(1, field(1, 1)) + field(1, field(2, "batch")) + field(1, b"")
    value = field(1, "x") + field(2, field(1, field(1, 1) + field(2, shape)))
    weights = field(5, field(9, bytes(5000)))
    graph = field(1, field(4, "MatMul")) + weights + field(11, value) if graph is None else graph
    return (field(1, 8) + field(2, "us") + field(3, "1.0") + field(7, graph) + field(8, field(2, opset))
            + field(8, field(1, "ai.onnx.ml") + field(2, 3)))


def zipped(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(name, data):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def npy(descr, data, shape="(2,)"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def text(string):
    return b"\x8c" + bytes([len(string)]) + string.encode()


def stack_global(module, name):
    return text(module) + text(name) + b"\x93"


def joblib(rest=b"", padding=bytes([3]) + b"\xff" * 3, dtype="f8", shape=b"K\x02\x85"):
    """What joblib writes for a tuple of an array and something more: the raw array is in the middle of the pickle."""
    made = stack_global("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81"
    dtype = stack_global("numpy", "dtype") + text(dtype) + b"\x89\x88\x87R"
    state = b"}(" + text("shape") + shape + text("dtype") + dtype + b"u"
    return b"\x80\x04" + made + state + b"b" + padding + bytes(16) + (rest or b"N") + b"\x86."


def legacy_torch(data, magic=0x1950A86A20F9469CFC6C):
    parts = [pickle.dumps(part, 2) for part in (magic, 1001, {"little_endian": True})]
    return b"".join(parts) + data + pickle.dumps(["0"], 2) + b"\x80raw"


OS_SYSTEM = b"cposix\nsystem\n(S'id'\ntR."
TENSOR = (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
          b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR.")
REBUILDING = ["torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "collections.OrderedDict"]
PLAIN = pickle.dumps({"a": [1, 2.5]}, 4)
GGUF = gguf([("general.architecture", 8, gguf_string("llama")), ("general.file_type", 4, struct.pack("<I", 15)),
             ("general.name", 8, gguf_string("tiny")), ("llama.context_length", 4, struct.pack("<I", 2048)),
             ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + gguf_string("a") + gguf_string("b")),
             ("tokenizer.ggml.scores", 9, struct.pack("<IQ2f", 6, 2, 0, 1)), ("general.alignment", 4, b"\x20\0\0\0")],
            [("w", (2, 3), 12, 0), ("b", (3,), 0, 64)], bytes(128))

SAMPLES = {     # name: (bytes, format, details)
    "safetensors": (safetensors({"w": tensor(0, 24, [2, 3]), "b": tensor(24, 28, [2], "F16"),
                                 "__metadata__": {"format": "pt"}}, bytes(28)), "safetensors",
                    {"tensors": 2, "parameters": 8, "dtypes": {"F32": 1, "F16": 1}, "metadata": {"format": "pt"}}),
    "gguf": (GGUF, "gguf", {"version": 3, "architecture": "llama", "quantisation": "Q4_K_M", "tensors": 2,
                            "parameters": 9, "tensor_types": {"Q4_K": 1, "F32": 1},
                            "keys": {"general.name": "tiny", "llama.context_length": 2048}}),
    "onnx": (onnx(), "onnx", {
        "ir_version": 8, "producer": "us", "producer_version": "1.0", "opsets": {"ai.onnx": 17, "ai.onnx.ml": 3},
        "nodes": 1, "inputs": [{"name": "x", "type": "float32", "shape": [1, "batch", None]}]}),
    "pytorch": (zipped({"m/data.pkl": TENSOR, "m/data/0": b"cat\xff", "m/version": b"3\n"}), "pytorch",
                {"container": "zip", "imports_found": REBUILDING}),
    "pytorch of old": (legacy_torch(TENSOR), "pytorch", {"container": "pickles", "imports_found": REBUILDING}),
    "pickle": (PLAIN, "pickle", {"imports_found": []}),
    "pickle of protocol 0": (OS_SYSTEM, "pickle", {"imports_found": ["posix.system"]}),
    "joblib": (joblib(), "joblib", {"imports_found": ["joblib.numpy_pickle.NumpyArrayWrapper", "numpy.dtype"]}),
    "joblib packed": (zlib.compress(joblib()), "joblib", {
        "compression": "zlib", "imports_found": ["joblib.numpy_pickle.NumpyArrayWrapper", "numpy.dtype"]}),
    "pickle packed": (lzma.compress(OS_SYSTEM), "pickle", {"compression": "xz", "imports_found": ["posix.system"]}),
    "keras": (zipped({"metadata.json": b'{"keras_version": "3.15.1"}', "config.json": b"{}", "model.weights.h5": b"x"}),
              "keras", {"keras_version": "3.15.1"}),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "hdf5", {}),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(600), "tflite", {}),
    "tensorrt": (b"ptrt" + bytes(600), "tensorrt", {}),
    "npy": (npy("'<f8'", bytes(16)), "npy", {"dtype": "<f8", "shape": [2]}),
    "npy of objects": (npy("'|O'", OS_SYSTEM), "npy", {"imports_found": ["posix.system"]}),
    "npz": (zipped({"a.npy": npy("'|O'", OS_SYSTEM), "b.npy": npy("'<f8'", bytes(16))}), "npz",
            {"arrays": ["a", "b"], "imports_found": ["posix.system"]}),
    "zip": (zipped({"a.txt": b"text"}), "zip", {"members": 1}),
    "zip of zip": (zipped({"a.zip": zipped({"b": OS_SYSTEM})}), "zip",
                   {"members": 1, "imports_found": ["posix.system"]}),
    "tar": (tarred("a.txt", b"text"), "tar", {"complete": False}),
    "gzip": (gzip.compress(b"1\n2\n"), "gzip", {}),
    "gzip of tar": (gzip.compress(tarred("a.txt", b"text")), "gzip", {"complete": False}),
    "bzip2": (bz2.compress(b"1\n2\n"), "bzip2", {}),
    "xz": (lzma.compress(b"1\n2\n"), "xz", {}),
    "zlib": (zlib.compress(b"1\n2\n"), "zlib", {}),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd", {"complete": False}),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(20), "lz4", {"complete": False}),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "7z", {"complete": False}),
    "rar": (b"Rar!\x1a\x07\x01\0" + bytes(20), "rar", {"complete": False}),
    "text": (b"1\n2\n3\n", "unknown", {}),
    "source": (b"class Net(Module):\n    pass\n", "unknown", {}),
    "nothing": (b"", "unknown", {}),
}
