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

from hypothesis import strategies as st


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
    return head + keys + infos + bytes(-len(head + keys + infos) % 32 if data else 0) + data


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


def flatbuffer(value, signature=b""):
    """A tuple is a table, None in it a field that is left out; a list is a vector, a string a string, and numbers."""
    data, entry = flat(value, 4 + len(signature))
    return struct.pack("<I", 4 + len(signature) + entry) + signature + data


def flat(value, start):
    """Bytes of a value that is put at `start`, and where in them a pointer to it leads."""
    if isinstance(value, str):
        return struct.pack("<I", len(value)) + value.encode() + bytes(4 - len(value) % 4), 0
    if isinstance(value, list):
        head, entry = struct.pack("<I", len(value)), 0
    else:
        present = [n for n, each in enumerate(value) if each is not None]
        offsets = [4 + 4 * present.index(n) if n in present else 0 for n in range(len(value))]
        fields = struct.pack(f"<HH{len(value)}H", 4 + 2 * len(value), 4 + 4 * len(present), *offsets)
        fields += bytes(-len(fields) % 4)
        head, entry, value = fields + struct.pack("<i", len(fields)), len(fields), [value[n] for n in present]
    body, rest = b"", b""
    for number, each in enumerate(value):
        place = start + len(head) + 4 * number
        if isinstance(each, int):
            body += struct.pack("<i", each)
            continue
        at = start + len(head) + 4 * len(value) + len(rest)
        data, inner = flat(each, at)
        body, rest = body + struct.pack("<I", at + inner - place), rest + data
    return head + body + rest, entry


def hdf5(attributes=(), heap=False):
    """A file of HDF5 whose outermost group has texts as attributes, in place or in a heap."""
    messages, values, start = b"", b"", 1024
    for number, (name, value) in enumerate(attributes, 1):
        label, space = name.encode() + bytes(8 - len(name) % 8), b"\1" + bytes(7)
        kind = struct.pack("<BxxxI", 0x19 if heap else 0x13, 16 if heap else len(value)) + bytes(8)
        data = struct.pack("<IQI", len(value), start, number) if heap else value.encode()
        message = struct.pack("<BxHHH", 1, len(name) + 1, len(kind), len(space)) + label + kind + space + data
        message += bytes(-len(message) % 8)
        messages += struct.pack("<HH4x", 0x0C, len(message)) + message
        values += struct.pack("<HH4xQ", number, 1, len(value)) + value.encode() + bytes(-len(value) % 8)
    head = b"\x89HDF\r\n\x1a\n" + bytes(5) + b"\x08\x08" + bytes(49) + struct.pack("<Q", 96) + bytes(24)
    # the messages go on in another block, as they do when they become too many
    root = struct.pack("<BxHII4x", 1, 1, 1, 24) + struct.pack("<HH4xQQ", 0x10, 16, 136, len(messages))
    file = head + root + messages
    return file + (bytes(start - len(file)) + b"GCOL\1\0\0\0" + bytes(8) + values + bytes(16) if heap else b"")


def zipped(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def zipped_behind(before, members):
    """A zip whose offsets count from the beginning of what it is put behind."""
    file = io.BytesIO(before)
    with zipfile.ZipFile(file, "a") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()[len(before):]


class Bundle(zipfile.ZipFile):
    """As MediaPipe writes it: what is in a member begins at a multiple of 4."""

    def _writecheck(self, info):
        self.fp.write(bytes(-(self.fp.tell() + len(info.FileHeader())) % 4))
        info.header_offset = self.fp.tell()
        super()._writecheck(info)


def bundled(members):
    file = io.BytesIO()
    with Bundle(file, "w") as archive:
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


def npy(descr, data, shape="(2,)", version=1):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def text(string):
    return b"\x8c" + bytes([len(string)]) + string.encode()


def stack_global(module, name):
    return text(module) + text(name) + b"\x93"


def joblib(rest=b"", padding=bytes([3]) + b"\xff" * 3, dtype="f8", shape=b"K\x02\x85"):
    """What joblib writes for a tuple of an array and something more: the raw array is in the middle of the pickle."""
    made = stack_global("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81"
    dtype = stack_global("numpy", "dtype") + text(dtype) + b"\x89\x88\x87R"
    state = b"}(" + text("shape") + shape + text("dtype") + dtype + text("numpy_array_alignment_bytes") + b"K\x10u"
    return b"\x80\x04" + made + state + b"b" + padding + bytes(16) + (rest or b"N") + b"\x86."


def legacy_torch(data, magic=0x1950A86A20F9469CFC6C):
    parts = [pickle.dumps(part, 2) for part in (magic, 1001, {"little_endian": True})]
    return b"".join(parts) + data + pickle.dumps(["0"], 2) + b"\x80raw"


P4 = b"\x80\x04"      # the first opcode of protocol 4
OS_SYSTEM = b"cposix\nsystem\n(S'id'\ntR."
CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"   # signatures in a zip
TENSOR = (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
          b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR.")
REBUILDING = ["torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "collections.OrderedDict"]
PLAIN = pickle.dumps({"a": [1, 2.5]}, 4)
GGUF = gguf([("general.architecture", 8, gguf_string("llama")), ("general.file_type", 4, struct.pack("<I", 15)),
             ("general.name", 8, gguf_string("tiny")), ("llama.context_length", 4, struct.pack("<I", 2048)),
             ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + gguf_string("a") + gguf_string("b")),
             ("tokenizer.ggml.scores", 9, struct.pack("<IQ2f", 6, 2, 0, 1)), ("general.alignment", 4, b"\x20\0\0\0")],
            [("w", (256, 2), 12, 0), ("b", (3,), 0, 288)], bytes(320))

TFLITE = flatbuffer((3, [(None, "FlexReadFile")], [([([1, -1], 0, 0, "x"), ([2], 9, 0, "y")], [0], [1])], "by hand"),
                    b"TFL3")
LAMBDA = json.dumps({"module": "keras", "class_name": "Sequential", "config": {"layers": [
    {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": None},
    {"module": "keras.layers", "class_name": "Lambda", "config": {"function": {"class_name": "__lambda__"}}}]}})
NODES = field(1, field(1, "a") + field(2, "Const")) + field(1, field(1, "w") + field(2, "WriteFile"))
PYTHON = field(2, field(1, field(3, field(2, "EagerPyFunc"))))     # in a function of the graph
SKOPS = json.dumps({"__class__": "Pipeline", "__module__": "sklearn.pipeline", "_skops_version": "0.16.0", "content": [
    {"__class__": "str", "__module__": "builtins"}, {"__class__": "system", "__module__": "posix"}]})

SAMPLES = {     # name: (bytes, format, details)
    "safetensors": (safetensors({"w": tensor(0, 24, [2, 3]), "b": tensor(24, 28, [2], "F16"),
                                 "__metadata__": {"format": "pt"}}, bytes(28)), "safetensors",
                    {"tensors": 2, "parameters": 8, "dtypes": {"F32": 1, "F16": 1}, "metadata": {"format": "pt"}}),
    "gguf": (GGUF, "gguf", {"version": 3, "architecture": "llama", "quantisation": "Q4_K_M", "tensors": 2,
                            "parameters": 515, "tensor_types": {"Q4_K": 1, "F32": 1},
                            "keys": {"general.name": "tiny", "llama.context_length": 2048}}),
    "onnx": (onnx(), "onnx", {
        "ir_version": 8, "producer": "us", "producer_version": "1.0", "opsets": {"ai.onnx": 17, "ai.onnx.ml": 3},
        "nodes": 1, "inputs": [{"name": "x", "type": "float32", "shape": [1, "batch", None]}]}),
    "pytorch": (zipped({"m/data.pkl": TENSOR, "m/data/0": b"cat\xff", "m/version": b"3\n"}), "pytorch",
                {"container": "zip", "tensors": 1, "parameters": 1, "imports_found": REBUILDING}),
    "pytorch of old": (legacy_torch(TENSOR), "pytorch", {
        "container": "pickles", "tensors": 1, "parameters": 1, "imports_found": REBUILDING}),
    "pickle": (PLAIN, "pickle", {"imports_found": []}),
    "pickle of protocol 0": (OS_SYSTEM, "pickle", {"imports_found": ["posix.system"]}),
    "joblib": (joblib(), "joblib", {"imports_found": ["joblib.numpy_pickle.NumpyArrayWrapper", "numpy.dtype"]}),
    "joblib packed": (zlib.compress(joblib()), "joblib", {
        "compression": "zlib", "imports_found": ["joblib.numpy_pickle.NumpyArrayWrapper", "numpy.dtype"]}),
    "pickle packed": (lzma.compress(OS_SYSTEM), "pickle", {"compression": "xz", "imports_found": ["posix.system"]}),
    "keras": (zipped({"metadata.json": b'{"keras_version": "3.15.1"}', "config.json": b"{}", "model.weights.h5": b"x"}),
              "keras", {"keras_version": "3.15.1"}),
    "hdf5": (hdf5(), "hdf5", {}),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(600), "tflite",
               {"version": 0, "description": "", "inputs": [], "outputs": []}),
    "tensorrt": (b"ptrt" + bytes(600), "tensorrt", {}),
    "npy": (npy("'<f8'", bytes(16)), "npy", {"dtype": "<f8", "shape": [2]}),
    "npy of objects": (npy("'|O'", OS_SYSTEM), "npy", {"imports_found": ["posix.system"]}),
    "npz": (zipped({"a.npy": npy("'|O'", OS_SYSTEM), "b.npy": npy("'<f8'", bytes(16))}), "npz",
            {"arrays": ["a", "b"], "imports_found": ["posix.system"]}),
    "keras of old": (hdf5([("keras_version", "2.15.0"), ("model_config", LAMBDA)], heap=True), "keras",
                     {"container": "hdf5"}),
    "keras of old with texts in place": (hdf5([("model_config", '{"class_name": "Sequential"}')]), "keras",
                                         {"container": "hdf5"}),
    "keras with a Lambda layer": (
        zipped({"metadata.json": b'{"keras_version": "3.8"}', "config.json": LAMBDA.encode()}), "keras",
        {"keras_version": "3.8"}),
    "hdf5 behind a block of the user": (bytes(512) + hdf5(), "hdf5", {}),
    "tflite with labels": (TFLITE + zipped_behind(TFLITE, {"labels.txt": b"1\n2\n"}), "tflite", {
        "version": 3, "description": "by hand", "inputs": [{"name": "x", "type": "float32", "shape": [1, -1]}],
        "outputs": [{"name": "y", "type": "int8", "shape": [2]}], "custom_operations": ["FlexReadFile"]}),
    "task": (bundled({"a.tflite": TFLITE, "b.tflite": TFLITE}), "task", {"members": ["a.tflite", "b.tflite"]}),
    "ort": (flatbuffer(("6", (9, None, "us")), b"ORTM"), "ort", {"version": "6"}),
    "executorch": (flatbuffer((0, [("forward",)]), b"ET12"), "executorch", {"version": 0}),
    "catboost": (b"CBM1" + struct.pack("<I", 99) + flatbuffer(("FlabuffersModel_v1",)), "catboost", {}),
    "savedmodel": (field(1, 1) + field(2, field(1, field(4, "serve") + field(5, "2.15.0")) + field(2, NODES + PYTHON)
                                       + field(5, field(1, "serving_default"))), "savedmodel", {
        "tags": ["serve"], "tensorflow_version": "2.15.0", "signatures": ["serving_default"], "nodes": 2}),
    "graphdef": (NODES + field(4, field(1, 1882)), "graphdef", {"nodes": 2}),
    "coreml": (field(1, 4) + field(2, field(1, field(1, "x")) + field(10, field(1, "y")) + field(
        100, field(1, "tiny") + field(3, "us"))) + field(500, field(1, field(500, field(10, "Mine")))), "coreml", {
        "inputs": ["x"], "outputs": ["y"], "specification_version": 4, "description": "tiny", "author": "us"}),
    "sentencepiece": (field(1, field(1, "a") + b"\x15" + bytes(4)) * 3 + field(2, field(3, 2)) + field(3, b""),
                      "sentencepiece", {"pieces": 3, "model_type": "bpe"}),
    "paddle": (field(1, field(1, 0) + field(2, 0) + field(3, field(1, "w")) + field(4, field(3, "matmul"))
                     + field(4, field(3, "py_func"))) + field(4, field(1, 3003001)), "paddle",
               {"version": 3003001, "nodes": 2}),
    "paddle's weights": (bytes(16) + b"\4\0\0\0\x08\x05\x10\x02" + bytes(8), "paddle", {}),
    "paddle in JSON": (b'{"base_code":{"magic":"pir","trainable":true,"version":4},"program":{}}', "paddle",
                       {"version": 4}),
    "xgboost": (b'{"learner":{"gradient_booster":{"model":{"gbtree_model_param":{"num_trees":"5"}}},"objective":'
                b'{"name":"binary:logistic"}},"version":[3,2,0]}', "xgboost",
                {"version": "3,2,0", "trees": 5, "objective": "binary:logistic"}),
    "xgboost in UBJSON": (b"{L.\7learner{L.\x09num_treesSL.\0015L.\x09objective{L.\4nameSL.\x0breg:squared}}}".replace(
        b"L.", b"L" + bytes(7)), "xgboost", {"trees": 5, "objective": "reg:squared"}),
    "lightgbm": (b"tree\nversion=v4\nnum_class=1\nobjective=binary sigmoid:1\n", "lightgbm",
                 {"version": 4, "objective": "binary", "classes": 1}),
    "openvino": (b'<?xml version="1.0"?>\n<net name="tiny" version="11">\n</net>', "openvino",
                 {"name": "tiny", "version": 11}),
    "ncnn": (b"7767517\n2 3\nInput in0 0 1 in0\n", "ncnn", {"layers": 2, "blobs": 3}),
    "ncnn in binary": (b"\xdd\x85\x76\0" + struct.pack("<2I", 2, 3) + bytes(8), "ncnn", {}),
    "tokenizer": (b'{"version": "1.0", "truncation": null, "added_tokens": [], "model": {"type": "BPE"}}', "tokenizer",
                  {"version": "1.0", "model": "BPE"}),
    "fasttext": (struct.pack("<19i", 793712314, 12, 5, *[1] * 6, 3, *[0] * 7, 27, 2), "fasttext",
                 {"version": 12, "dimension": 5, "words": 27, "labels": 2}),
    "ggml": (b"lmgg" + bytes(40), "ggml", {}),
    "ggjt": (b"tjgg\3\0\0\0" + bytes(40), "ggml", {}),
    "skops": (zipped({"schema.json": SKOPS.encode()}), "skops", {"skops_version": "0.16.0"}),
    "pt2": (zipped({"m/archive_format": b"pt2", "m/data/model.so": b"\x7fELF" + bytes(60)}), "pt2", {"members": 2}),
    "pt2 of old": (zipped({"serialized_exported_program.json": b"{}", "version": b"8.2"}), "pt2", {"members": 2}),
    "torchscript": (zipped({"m/data.pkl": b"\x80\x02c__torch__\nM\n)\x81}b.", "m/constants.pkl": b"\x80\x02).",
                            "m/code/__torch__.py": b"def forward(self):\n  return torch.save(1, 'x')\n"}), "pytorch",
                    {"container": "zip", "torchscript": True, "imports_found": ["__torch__.M"]}),
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


# ---- pickles packed in every way that some reader unpacks


EVAL = b"\x80\x04" + stack_global("builtins", "eval") + text("1") + b"\x85R."


def lzma_alone(data, dictionary=1 << 16):
    packed = lzma.compress(data, lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16}])
    return packed[:1] + struct.pack("<I", dictionary) + packed[5:]


def lzip(data):
    packed = lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16}])
    return b"LZIP\x01\x10" + packed + struct.pack("<IQQ", zlib.crc32(data), len(data), len(packed) + 26)


def zfile(data, space=b""):
    """As joblib packed before 0.9.3, with Python 2 with one space more."""
    return b"ZF" + hex(len(data)).ljust(19).encode() + space + zlib.compress(data)


def gzipped(data, flags=0, fields=b"", crc=None):
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    check = zlib.crc32(data) if crc is None else crc
    return (b"\x1f\x8b\x08" + bytes([flags]) + bytes(6) + fields + packed.compress(data) + packed.flush()
            + struct.pack("<II", check, len(data)))


def tar_checksum(data, write):
    """The same tar with its checksum written in another way, as tarfile reads it too."""
    total = sum(data[:148]) + 256 + sum(data[156:512])
    return data[:148] + write(total).ljust(8, b"\0")[:8] + data[156:]


def unsized(data):
    """The same zip for a reader that goes by what stands before a member, and without its sizes in the directory."""
    at = data.index(b"PK\1\2") + 20
    return data[:at] + bytes(8) + data[at + 8:]


PACKED = {
    "gzip": gzipped, "gzip with a check of its header": lambda data: gzipped(data, 2, b"\x1d\x26"),
    "gzip with a wrong check of its header": lambda data: gzipped(data, 2, b"xx"),
    "gzip with flags of no meaning": lambda data: gzipped(data, 0xE0),
    "gzip with every field": lambda data: gzipped(data, 0x1D, b"\3\0abcname\0comment\0"),
    "gzip with a wrong check": lambda data: gzipped(data, crc=1),
    "gzip in two pieces": lambda data: gzipped(data[:9]) + bytes(7) + gzipped(data[9:]),
    "bzip2": bz2.compress, "bzip2 in two pieces": lambda data: bz2.compress(data[:9]) + bz2.compress(data[9:]),
    "bzip2 behind nothing": lambda data: bz2.compress(b"") + bz2.compress(data),
    "xz": lzma.compress, "xz in two pieces": lambda data: lzma.compress(data[:9]) + lzma.compress(data[9:]),
    "xz with a large dictionary": lambda data: lzma.compress(data, filters=[
        {"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20, "mf": lzma.MF_HC3, "mode": lzma.MODE_FAST}]),
    "lzma": lzma_alone, "lzma with a small dictionary": lambda data: lzma_alone(data, 4096),
    "lzma with a large dictionary": lambda data: lzma_alone(data, 3 << 30),
    "xz behind an lzma of nothing": lambda data: b"\x5d" + bytes(17) + lzma.compress(data),
    "xz behind many of them": lambda data: bytes(18 * 3000) + lzma.compress(data),
    "lzip": lzip, "zlib": zlib.compress, "joblib of before 0.9.3": zfile,
    "joblib of before 0.9.3 and Python 2": lambda data: zfile(data, b" "),
    "npy": lambda data: npy("'|O'", data),
    "npy with a long header": lambda data: npy("'|O'", data, "(2,)" + " " * 70_000, 2),
    "npz": lambda data: zipped({"a.npy": npy("'|O'", data, "(2,)" + " " * 70_000, 2)}, zipfile.ZIP_DEFLATED),
    "zip": lambda data: zipped({"m/data.pkl": data}),
    "zip, deflated": lambda data: zipped({"m/data.pkl": data}, zipfile.ZIP_DEFLATED),
    "zip with bzip2": lambda data: zipped({"m/data.pkl": data}, zipfile.ZIP_BZIP2),
    "zip with lzma": lambda data: zipped({"m/data.pkl": data}, zipfile.ZIP_LZMA),
    "gzip in a zip": lambda data: zipped({"m": gzipped(data) + b"behind"}),
    "joblib of before 0.9.3 in a zip": lambda data: zipped({"m": zfile(data)}),
    "lzma in a zip": lambda data: zipped({"m": lzma_alone(data, 4096)}),
    "lzma of other properties in a zip": lambda data: zipped({"m": lzma.compress(data, lzma.FORMAT_ALONE, filters=[
        {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 1, "lp": 1, "pb": 0}])}),
    "a zip behind text in a zip": lambda data: zipped({"m": b"text" + zipped({"m/data.pkl": data})}),
    "tar": lambda data: tarred("m", data),
    "tar with its checksum in base 256":
        lambda data: tar_checksum(tarred("m", data), lambda total: b"\x80" + total.to_bytes(7)),
    "tar with its checksum of signed bytes":
        lambda data: tar_checksum(b"\xe9" + tarred("m", data)[1:], lambda total: b"%o" % (total - 256)),
    "tar with its checksum as 0o": lambda data: tar_checksum(tarred("m", data), lambda total: b"0o%o" % total),
    "tar with its checksum as +": lambda data: tar_checksum(tarred("m", data), lambda total: b"+%o" % total),
    "tar with its checksum as 0_": lambda data: tar_checksum(tarred("m", data), lambda total: b"0_%o" % total),
    "tar in a zip": lambda data: zipped({"m": tar_checksum(tarred("m", data), lambda total: b"0o%o" % total)}),
    "a pickle before a zip": lambda data: data + zipped({"a.npy": npy("'<f8'", bytes(16))}),
    "zip with sizes of 0 in its directory": lambda data: unsized(zipped({"m/data.pkl": data})),
    "zip, deflated, with sizes of 0 in its directory":
        lambda data: unsized(zipped({"m/data.pkl": data}, zipfile.ZIP_DEFLATED)),
    "an array behind an array": lambda data: npy("'<f8'", bytes(16)) + npy("'|O'", data),
    "a zip behind an array": lambda data: npy("'<f8'", bytes(16)) + zipped({"m": data}),
    "a zip behind a gzip": lambda data: gzipped(b"text") + zipped({"m": data}),
}


def mutated(data, changes):
    """`changes` are of (what, place, value): set a byte, cut, append, put in, begin like something else."""
    for what, place, value in changes:
        at = place % (len(data) + 1)
        data = {"set": data[:at] + value[:1] + data[at + 1:], "cut": data[:at], "append": data + value,
                "insert": data[:at] + value + data[at:], "drop": data[:at] + data[at + len(value):],
                "head": value + data[len(value):], "repeat": data + data[:at]}[what]
    return data


BEGINNINGS = (b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x5d\0", b"ZF", b"\x78\x9c",
              b"\x93NUMPY", b"\x80\x04", b"(", b"GGUF", bytes(18), b"\xff" * 4)
CHANGES = st.lists(st.tuples(
    st.sampled_from(("set", "set", "set", "cut", "append", "insert", "drop", "head", "repeat")),
    st.integers(0, 1 << 16),
    st.one_of(st.binary(min_size=1, max_size=8), st.integers(0, 7).map(lambda bit: bytes([1 << bit])),
              st.sampled_from(BEGINNINGS))), max_size=3)
