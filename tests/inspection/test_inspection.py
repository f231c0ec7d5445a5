"""What the server sees in the bytes of a model, hostile ones included, and what it refuses to take."""

import builtins
import functools
import io
import json
import os
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.common import ROOT, drafting, sha256, staged
from support.inspected import imports, inspect
from support.samples import (
    CENTRAL,
    END,
    LAMBDA,
    LOCAL,
    OS_SYSTEM,
    P4,
    PLAIN,
    REBUILDING,
    SAMPLES,
    SKOPS,
    TENSOR,
    bundled,
    field,
    flatbuffer,
    gguf,
    gguf_string,
    hdf5,
    joblib,
    legacy_torch,
    npy,
    onnx,
    safetensors,
    stack_global,
    tarred,
    tensor,
    text,
    zipped,
    zipped_behind,
)

from inspection import formats as inspection
from inspection.found import KNOWN, MAX_IMPORTS
from repository.model import Details, ModelKey

# ---- formats


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_is_what_its_bytes_say(name):
    data, kind, details = SAMPLES[name]
    found = inspect(data)
    found.details.pop("warnings", None)
    assert (found.format, found.details) == (kind, details)
    assert kind in inspection.FORMATS


def test_there_is_a_sample_of_every_format():
    assert {kind for _, kind, _ in SAMPLES.values()} == set(inspection.FORMATS)


STRICT = ("safetensors", "keras", "zip", "npz")     # that are nothing when a piece is missing


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_cut_off_anywhere_is_taken_for_no_more_than_it_is(name):
    data, kind, details = SAMPLES[name]
    for length in range(len(data)):
        found = inspect(data[:length])
        assert found.format in (kind, "unknown", "gzip", "zlib", "xz", "pickle", "hdf5")
        assert name not in STRICT or found.format == "unknown"
        if "imports_found" in found.details:    # what is cut off is not missing without a word
            assert found.details["imports_found"] == details["imports_found"] or not found.details.get("complete", True)


@settings(deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8))
def test_a_file_with_any_bytes_changed_has_an_answer(name, changes):
    data = bytearray(SAMPLES[name][0])
    for place, value in changes:
        if data:
            data[place % len(data)] = value
    inspect(bytes(data))


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([
    b"", b"\x80\x04", b"GGUF\x03\0\0\0", b"PK\x03\x04", b"\x08\x08", b"\x78\x9c", b"\x93NUMPY\x01\0",
    b"\x20" + bytes(7) + b"{", b"\x1c\0\0\0TFL3", b"\x10\0\0\0ORTM", b"\x10\0\0\0ET12", b"CBM1\0\0\0\0\x10\0\0\0",
    b"\x0a\x08", b"\x08\x01\x12\x08", b"\x89HDF\r\n\x1a\n", hdf5()[:96], b"\xba\x16\x4f\x2f", b"tjgg", b'{"learner":{',
    b"\0\0PK\x03\x04", b"7767517\n1 1\n", b'<net name="" version="1"']))
def test_any_bytes_have_an_answer(data, signature):
    inspect(signature + data)


IMPORTS = "loading it imports posix.system, beyond what rebuilds tensors and arrays"
WRAPPER = "loading it imports joblib.numpy_pickle.NumpyArrayWrapper, beyond what rebuilds tensors and arrays"
LAYER = "a Lambda layer in it runs Python code of its own"
WARNINGS = {
    "pickle of protocol 0": [IMPORTS], "pickle packed": [IMPORTS], "npy of objects": [IMPORTS], "npz": [IMPORTS],
    "zip of zip": [IMPORTS], "joblib": [WRAPPER], "joblib packed": [WRAPPER],
    "keras of old": [LAYER], "keras with a Lambda layer": [LAYER],
    "tflite with labels": ["its operation FlexReadFile reads or writes files"],
    "graphdef": ["its operation WriteFile reads or writes files"],
    "savedmodel": ["its operation EagerPyFunc runs Python", "its operation WriteFile reads or writes files"],
    "paddle": ["its operation py_func runs Python"],
    "coreml": ["native code of its app runs in it, the class Mine"],
    "skops": ["loading it looks up posix.system, which is not a part of scikit-learn, SciPy or NumPy"],
    "pt2": ["native code is in it: a program or a library"],
    "torchscript": ["loading it imports __torch__.M, beyond what rebuilds tensors and arrays",
                    "it is TorchScript: code in it runs when the model is called",
                    "its TorchScript reads or writes files with save"],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_what_a_person_should_look_at_is_told_in_plain_words(name):
    assert inspect(SAMPLES[name][0]).details.get("warnings", []) == WARNINGS.get(name, [])


@pytest.mark.parametrize(("begins", "native"), [
    (b"\x7fELF", True), (b"MZ\x90\0", True), (b"MZx\0", True), (b"\xcf\xfa\xed\xfe", True),
    (b"\xca\xfe\xba\xbe\0\0\0\2", True), (b"\xca\xfe\xba\xbf\0\0\0\2", True),
    (b"\xca\xfe\xba\xbe\0\0\0\x34", False),      # a class of Java 8, as in every .jar and many wheels
    (b"\xca\xfe\xba\xbe\0\3\0\x2d", False), (b"MZ is a text", False),
])
def test_programs_are_native_code_and_classes_of_java_are_not(begins, native):
    for data in begins + bytes(60), zipped({"a": begins + bytes(60)}):
        assert inspect(data).details.get("warnings", []) == ["native code is in it: a program or a library"] * native


@pytest.mark.parametrize("name", ["keras with a Lambda layer", "skops"])
def test_a_zip_without_the_version_that_its_library_does_without_is_what_it_is(name):
    members = {"config.json": LAMBDA} if "keras" in name else {"schema.json": SKOPS.replace("_skops_version", "x")}
    found = inspect(zipped(members))
    assert (found.format, found.details) == (SAMPLES[name][1], {"warnings": WARNINGS[name]})


def test_of_torchscript_that_is_too_long_it_is_told_that_the_rest_is_not_known():
    code = b"#" * (1 << 20) + b"\ntorch.save(1, 'x')"
    members = {"m/data.pkl": PLAIN, "m/constants.pkl": PLAIN, "m/code/__torch__.py": code}
    assert any("not known" in warning for warning in inspect(zipped(members)).details["warnings"])


def test_many_imports_are_one_warning():
    data = b"\x80\x02" + b"".join(b"cos\na%d\n0" % n for n in range(9)) + b"N."
    assert inspect(data).details["warnings"] == [
        "loading it imports os.a0, os.a1, os.a2, os.a3, os.a4 and 4 more, beyond what rebuilds tensors and arrays"]


CONFIGS = {     # of Keras: an object of it, and what is said of that
    "a layer of Keras": ({"module": "keras.layers", "class_name": "Dense", "registered_name": None}, []),
    "an inner class of Keras": (
        {"module": "keras.src.models.functional", "class_name": "Functional", "registered_name": "Functional"}, []),
    "a Lambda layer": ({"module": "keras.layers", "class_name": "Lambda"}, [LAYER]),
    "a lambda of Keras 2": ({"class_name": "Mine", "function_type": "lambda"}, [LAYER]),
    "a lambda of Keras 3": ({"class_name": "__lambda__", "config": {"code": "4wEA"}}, [LAYER]),
    "another module": ({"module": "os", "class_name": "function", "config": "system"}, ["os.system"]),
    "a function of Keras": ({"module": "keras.config", "class_name": "function", "config": "enable_unsafe"},
                            ["keras.config.enable_unsafe"]),
    "a registered class": ({"module": None, "class_name": "L", "registered_name": "mine>L"}, [" L,"]),
    "a registered class of Keras 2": ({"class_name": "mine>L"}, ["mine>L"]),
    "a file that is read": ({"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}, ["/etc/passwd"]),
    "a pickle in text": ({"module": "keras.layers", "class_name": "TorchModuleWrapper"}, ["unpickled"]),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("write", [
    lambda config: zipped({"metadata.json": b'{"keras_version": "3.8"}', "config.json": config.encode()}),
    lambda config: zipped({"config.json": config.encode()}),
    lambda config: zipped({"config.json": config.replace("c", "\\u0063").encode()}),
    lambda config: hdf5([("keras_version", "2.15.0"), ("model_config", config)]),
    lambda config: hdf5([("model_config", config), ("keras_version", "2.15.0")], heap=True)],
    ids=["keras", "keras without its version", "keras with escapes", "hdf5", "hdf5 with a heap"])
def test_what_keras_would_run_or_look_up_outside_itself_is_told(name, write):
    inner, said = CONFIGS[name]
    outer = {"module": "keras", "class_name": "Sequential", "config": {"layers": [{"class_name": "Dense"}, inner]}}
    found = inspect(write(json.dumps(outer)))
    warnings = found.details.get("warnings", [])
    assert found.format == "keras" and len(warnings) == len(said)
    assert all(word in warning for word, warning in zip(said, warnings, strict=True))


@pytest.mark.parametrize("data", [
    zipped({"metadata.json": b'{"keras_version": "3.8"}', "config.json": b"[" * 100_000}),
    hdf5([("model_config", '{"class_name":')]),
], ids=["nested without end", "cut off"])
def test_a_config_that_cannot_be_read_is_told(data):
    warning, = inspect(data).details["warnings"]
    assert "not known" in warning


BROKEN = {
    "a header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 100) + b"{}",
    "a header that is no JSON": safetensors(b"{nonsense}"),
    "a header nested without end": safetensors(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "a header with too many items": safetensors(b'{"a":[' + b"[]," * 250_000 + b"1]}"),
    "tensors that overlap": safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),
    "a gap between tensors": safetensors({"a": tensor(0, 8, [2]), "b": tensor(12, 20, [2])}, bytes(20)),
    "a tensor beyond the end": safetensors({"a": tensor(0, 8, [2])}, bytes(7)),
    "bytes behind the last tensor": safetensors({"a": tensor(0, 8, [2])}, bytes(9)),
    "a shape that is not its bytes": safetensors({"a": tensor(0, 8, [3])}, bytes(8)),
    "a negative offset": safetensors({"a": tensor(-8, 0, [2])}),
    "a tensor twice": safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(tensor(0, 4, [1])).encode(),) * 2), bytes(4)),
    "a field of a tensor twice": safetensors(
        b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "metadata twice": safetensors(b'{"__metadata__":{},"__metadata__":{}}'),
    "a number that is none": safetensors(b'{"__metadata__":{"a":"b"},"a":NaN}'),
    "an infinite number": safetensors(b'{"a":-Infinity}'),
    "a header in UTF-16": safetensors('{"a":1}'.encode("utf-16-le")),
    "a shape of 4,000 digits":
        safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,4]}}'),
    "a dtype that is a list": safetensors({"a": tensor(0, 8, [2], ["F32"])}, bytes(8)),
    "a tensor that is a number": safetensors({"a": 1}),
    "metadata that is a number": safetensors({"__metadata__": 1}),
    "GGUF of version 1": gguf(version=1), "GGUF of 2^60 keys": gguf(counts=(0, 1 << 60)),
    "GGUF of 2^60 tensors": gguf(counts=(1 << 60, 0)),
    "a GGUF string of 2^63 bytes": gguf([("a", 8, struct.pack("<Q", 1 << 63))]),
    "a GGUF array of 2^63 numbers": gguf([("a", 9, struct.pack("<IQ", 10, 1 << 63))]),
    "a GGUF array of 2^60 strings": gguf([("a", 9, struct.pack("<IQ", 8, 1 << 60))]),
    "GGUF arrays in arrays": gguf([("a", 9, struct.pack("<IQ", 9, 1) * 5000)]),
    "a GGUF value of no type": gguf([("a", 99, b"")]),
    "a GGUF tensor of nine dimensions": gguf([], [("a", (1,) * 9, 0, 0)]),
    "a GGUF tensor beyond the end": gguf([], [("a", (1,), 0, 4096)], bytes(8)),
    "a GGUF tensor of 2^320 numbers": gguf([], [("a", (1 << 40,) * 8, 0, 0)]),
    "a GGUF tensor that begins before the end and ends behind it": gguf([], [("a", (1024, 1024), 0, 0)], bytes(128)),
    "a GGUF tensor of NVFP4 that ends behind the end": gguf([], [("a", (64, 2), 40, 0)], bytes(71)),
    "a GGUF tensor with half a block in a row": gguf([], [("a", (48, 2), 8, 0)], bytes(128)),
    "a GGUF aligned to nothing": gguf([("general.alignment", 4, bytes(4))], [("a", (1,), 0, 0)], bytes(4)),
    "a flatbuffer that points beyond its end": b"\xff\0\0\0TFL3" + bytes(20),
    "a flatbuffer whose table has no fields": b"\x08\0\0\0ORTM\xff\xff\xff\x7f",
    "a vector of 2^32 tables": flatbuffer((0, [()]), b"TFL3").replace(b"\1\0\0\0", b"\xff" * 4),
    "fastText that is cut off": SAMPLES["fasttext"][0][:70],
    "a SavedModel of another version": field(1, 2) + field(2, field(2, field(1, field(2, "Const")))),
    "a graph without a node": field(4, field(1, 1882)),
    "nodes without operations": field(1, field(1, "a")) * 3 + field(4, b""),
    "descriptors of other messages": field(1, field(1, "a.proto") + field(2, "tensorflow") + field(4, b"")) * 3,
    "a zip without its directory": SAMPLES["zip"][0][:60],
    "a zip with its directory elsewhere": SAMPLES["zip"][0][:-10] + b"\x07\0\0\0" + SAMPLES["zip"][0][-6:],
    "an npy with a long header": b"\x93NUMPY\x02\0" + struct.pack("<I", 1 << 31) + b"{",
    "a protobuf number without end": b"\x08" + b"\xff" * 1000,
    "a protobuf field beyond the file": field(1, 8) + b"\x3a\xff\xff\xff\xff\x0f",
    "a protobuf without a graph": field(1, 8) + field(2, "us") + field(8, field(2, 17)),
    "a protobuf group": field(1, 8) + b"\x3b\x3c",
    "graphs in graphs without end": onnx(graph=functools.reduce(
        lambda inner, _: field(1, field(5, field(6, inner)) + field(3, "location")), range(200), b"")),
    "a graph in which a field is too long": onnx(graph=b"\x0a\x7f"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_only_begins_like_a_format_is_unknown(name):
    found = inspect(BROKEN[name])
    assert found.format == "unknown"
    assert "imports_found" not in found.details


def test_what_it_is_not_is_told_with_the_reason():
    found = inspect(BROKEN["a tensor beyond the end"])
    assert found.details == {"error": "it is not what it begins like: its tensors have 8 bytes, and the file has 7 "
                                      "for them"}


@pytest.mark.parametrize("dtype", ["F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_eight_bits_of_safetensors_are_a_byte(dtype):
    found = inspect(safetensors({"w": tensor(0, 6, [2, 3], dtype)}, bytes(6)))
    assert (found.format, found.details["dtypes"], found.details["parameters"]) == ("safetensors", {dtype: 1}, 6)


@pytest.mark.parametrize(("kind", "name", "row", "size"), [
    (0, "F32", 3, 12), (8, "Q8_0", 64, 68), (12, "Q4_K", 256, 144), (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36)])
def test_the_tensors_of_a_gguf_end_where_the_file_does(kind, name, row, size):
    tensors = [("a", (row,), kind, 0), ("b", (row, 2), kind, 352)]
    found = inspect(gguf([], tensors, bytes(352 + 2 * size)))
    assert (found.format, found.details["tensor_types"]) == ("gguf", {name: 2})
    assert inspect(gguf([], tensors, bytes(352 + 2 * size - 1))).details == {
        "error": "it is not what it begins like: its last tensor ends 1 bytes beyond its end"}


def test_a_gguf_is_aligned_as_it_says():
    pairs = [("general.alignment", 4, struct.pack("<I", 256))]
    data = gguf(pairs, [("a", (1,), 0, 0)])
    padding = bytes(-len(data) % 256)
    assert inspect(data + padding + bytes(4)).format == "gguf"
    assert inspect(data + padding + bytes(3)).format == "unknown"


@pytest.mark.parametrize("length", [10, 100_000])
def test_a_chat_template_is_told_with_its_length(length):
    details = inspect(gguf([("tokenizer.chat_template", 8, gguf_string("x" * length))])).details
    assert (details["chat_template"], details["chat_template_length"]) == (True, length)
    assert "chat template" in details["warnings"][0]


def onnx_input(name, *dimensions, kind=1):
    shape = b"".join(field(1, field(1, size) if isinstance(size, int) else field(2, size)) for size in dimensions)
    return field(11, field(1, name) + field(2, field(1, field(1, kind) + field(2, shape))))


def external(location):
    """A tensor of which the bytes are in another file, with the keys in an order that is allowed."""
    return field(8, "w") + field(13, field(2, "0") + field(1, "offset")) + field(13, field(2, location)
                                                                                 + field(1, "location"))


NODE = field(1, field(4, "Relu"))


def test_a_dimension_of_minus_one_is_minus_one():
    found = inspect(onnx(graph=NODE + onnx_input("x", (1 << 64) - 1, 3, "h")))
    assert found.details["inputs"] == [{"name": "x", "type": "float32", "shape": [-1, 3, "h"]}]


def test_weights_that_an_old_onnx_lists_as_inputs_are_none():
    graph = NODE + onnx_input("w", 2) + onnx_input("x", 2) + onnx_input("s", 2)
    graph += field(5, field(8, "w")) + field(15, field(1, field(8, "s")))
    assert [each["name"] for each in inspect(onnx(graph=graph)).details["inputs"]] == ["x"]


@pytest.mark.parametrize(("kind", "name"), [
    (24, "float8e8m0"), (25, "uint2"), (26, "int2"), (27, "float6e2m3"), (28, "float6e3m2"), (99, "type 99")])
def test_the_newer_types_of_onnx_have_their_names(kind, name):
    assert inspect(onnx(graph=NODE + onnx_input("x", 1, kind=kind))).details["inputs"][0]["type"] == name


@settings(deadline=None)
@given(st.permutations([field(1, 8), field(2, "us"), field(3, "1.0"), field(7, NODE + onnx_input("x", 1)),
                        field(8, field(2, 17)), field(7, NODE * 2 + onnx_input("y", 2)), field(5, 78)]))
def test_the_fields_of_an_onnx_come_in_any_order_and_its_graphs_are_one(fields):
    found = inspect(b"".join(fields))
    assert (found.format, found.details["nodes"], found.details["producer"]) == ("onnx", 3, "us")
    assert {each["name"] for each in found.details["inputs"]} == {"x", "y"}


def test_a_graph_with_more_nodes_than_are_looked_at_is_a_graph_of_which_the_rest_is_not_known():
    node = field(1, "n") + field(2, "MatMul") + field(3, "a") * 10
    found = inspect(field(1, node) * 30_000 + field(4, field(1, 1882)))
    assert found.format == "graphdef" and "not known" in found.details["warnings"][0]


LOCATIONS = {"weights.bin": False, "data/weights.bin": False, "a..b": False, "../weights.bin": True, "a/../../b": True,
             "/etc/passwd": True, "\\\\host\\share": True, "C:\\w": True, "a\\..\\b": True, "..": True,
             "a/" * 150 + "../" * 200: True}


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("place", [
    lambda weights: field(5, weights),
    lambda weights: field(15, field(1, weights)),
    lambda weights: field(1, field(5, field(5, weights))),                          # an attribute of a node
    lambda weights: field(1, field(5, field(6, field(5, weights)))),                # in the body of a loop
    lambda weights: field(1, field(5, field(22, field(1, weights)))),               # a sparse one
    lambda weights: field(1, field(5, field(5, weights) + field(4, bytes(9000)))),
    lambda _: b"",      # but in a function, for an attribute that is not given
], ids=["weights", "sparse", "attribute", "body", "sparse attribute", "large node", "default"])
def test_external_data_of_an_onnx_is_told_and_called_out_when_it_is_outside(location, place):
    weights = external(location)
    function = b"" if place(weights) else field(25, field(11, field(5, weights)))
    details = inspect(onnx(graph=NODE + place(weights)) + function).details
    assert len(details["external_data"]) == 1 and location.startswith(details["external_data"][0].rstrip("…"))
    assert len(details.get("warnings", [])) == LOCATIONS[location]


def test_what_a_file_tells_is_cut_to_a_length_that_a_list_can_carry():
    keys = {f"{n}": "\ud800" + "x" * 5000 for n in range(1000)}
    found = inspect(safetensors(json.dumps({"__metadata__": keys}).encode()))
    assert len(found.details["metadata"]) == 32 and len(found.details["metadata"]["0"]) == 200
    found = inspect(gguf([("general.name", 8, gguf_string("n" * 70_000)), ("general.license", 8, gguf_string("mit"))]))
    assert [len(value) for value in found.details["keys"].values()] == [200, 3]
    inputs = b"".join(field(11, field(1, "i" * 9000)) for _ in range(1000))
    assert len(inspect(onnx(graph=inputs)).details["inputs"]) == 32


def test_an_array_with_a_shape_of_5000_digits_is_an_array_of_which_nothing_is_told():
    found = inspect(npy("'<f8'", bytes(16), f"({'9' * 5000},)"))
    assert (found.format, found.details) == ("npy", {"complete": False})


def test_a_fault_of_the_disk_is_no_answer():
    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        inspection.inspect(Failing(PLAIN), len(PLAIN))


# ---- pickles


EVAL = stack_global("builtins", "eval")
PICKLES = {     # bytes: (imports found, complete)
    "GLOBAL": (OS_SYSTEM, ["posix.system"], True),
    "GLOBAL of protocol 2": (b"\x80\x02" + OS_SYSTEM, ["posix.system"], True),
    "STACK_GLOBAL": (P4 + EVAL + text("1") + b"\x85R.", ["builtins.eval"], True),
    "INST": (b"(S'id'\nios\nsystem\n.", ["os.system"], True),
    "INST whose last line has no end, which loses its last byte": (b"(S'id'\nios\nsystemX", ["os.system"], False),
    "names from the memo": (P4 + text("os") + b"\x940" + text("system") + b"\x940h\x00h\x01\x93.", ["os.system"], True),
    "names from the memo by PUT and GET": (b"Vos\np5\n0Vsystem\np 6\n0g5\ng6\n\x93.", ["os.system"], True),
    "names from the memo, put there twice":
        (P4 + text("math") + b"q\x00" + text("os") + b"q\x00" + b"00h\x00" + text("system") + b"\x93.",
         ["os.system"], True),
    "a name twice": (P4 + text("os") + b"2\x93.", ["os.os"], True),
    "a name that is imported, as os.name is a text": (
        b"cos\nname\nVsystem\n\x93(Vid\ntR.", ["os.name", "?.system"], True),
    "behind a PUT whose number ends before its line, for C": (
        b"\x80\x02Np0\0x\n0" + OS_SYSTEM, ["posix.system"], True),
    "behind a PUT with many spaces before its number": (
        b"\x80\x02Np" + b" " * 129 + b"1\n0" + OS_SYSTEM, [], False),
    "a line that is no number in raw bytes": (b"p" + b"x" * 200 + b"\n0" + OS_SYSTEM, None, True),
    "behind such a GET": (b"Np0\n0g0\0x\n0" + OS_SYSTEM, ["posix.system"], True),
    "a name that is computed": (P4 + text("os") + EVAL + text("x") + b"\x85R\x93.", ["builtins.eval", "os.?"], True),
    "a name with an escape": (b"S'o\\x73'\nVsystem\n\x93.", ["?.system"], True),
    "a name in quotes of another kind": (b"S\"os\"\nS'system'\n\x93.", ["os.system"], True),
    "a name behind an attribute": (P4 + stack_global("os", "path.os.system") + b".", ["os.path.os.system"], True),
    "a long name": (P4 + stack_global("os", ".".join(["path.os"] * 20) + ".system") + b".", ["os.?"], True),
    "a long name in GLOBAL": (b"cos\n" + b"path.os." * 40 + b"system\n.", ["os.?"], True),
    "one in the other": (P4 + stack_global("builtins", "getattr") + EVAL + text("__call__") + b"\x86R.",
                         ["builtins.getattr", "builtins.eval"], True),
    "EXT1": (P4 + b"\x82\x05.", ["copyreg.extension.5"], True),
    "EXT4": (P4 + b"\x84\x05\x00\x01\x00.", ["copyreg.extension.65541"], True),
    "a fault behind the import": (b"\x80\x02cos\nsystem\n(S'id'\ntR\xff", ["os.system"], False),
    "nothing behind the import": (P4 + EVAL, ["builtins.eval"], False),
    "other bytes behind the pickle": (OS_SYSTEM + b"\0\0", ["posix.system"], False),
    "another pickle behind the pickle": (PLAIN + OS_SYSTEM, ["posix.system"], True),
    "a persistent id that looks like a zip": (b"PKI01\n" + OS_SYSTEM, ["posix.system"], True),
    "bytes that no file can have": (P4 + b"\x8e" + struct.pack("<Q", (1 << 62) - 1) + EVAL + b".", None, True),
    "bytes that are skipped": (P4 + b"B" + struct.pack("<I", 5000) + bytes(5000) + b"0" + EVAL + b".",
                               ["builtins.eval"], True),
    "a wrong number of the old torch": (legacy_torch(OS_SYSTEM, magic=7), ["posix.system"], False),
    "the old torch": (legacy_torch(OS_SYSTEM), ["posix.system"], True),
    "more imports than are listed": (b"\x80\x02" + b"".join(b"cos\na%d\n0" % n for n in range(MAX_IMPORTS + 1)) + b"N.",
                                     [f"os.a{n}" for n in range(MAX_IMPORTS)], False),
    # what no unpickler would perform, so what is there are the raw bytes of something else
    "an import of what is no name": (P4 + b"NN\x93.", None, True),
    "an import of what no module is called": (b"c\x01\x02\n\x03\n.", None, True),
    "an import from an empty stack": (b"\x93NUMPX", None, True),
    "a protocol that does not exist": (b"\x80\x3f" + EVAL + b".", None, True),
    "opcodes by chance": (b"N.\x00\x01", None, True),
    "an extension by chance": (b"\x82\x05\x00", None, True),
    # joblib: raw bytes between the opcodes
    "behind an array": (joblib(EVAL), [*SAMPLES["joblib"][2]["imports_found"], "builtins.eval"], True),
    "behind an array that is not aligned": (joblib(EVAL, padding=b""), SAMPLES["joblib"][2]["imports_found"], False),
    "in an array of objects": (joblib(EVAL, padding=OS_SYSTEM, dtype="O8"),
                               [*SAMPLES["joblib"][2]["imports_found"], "posix.system"], False),
    "behind an array of unknown size":
        (joblib(EVAL, dtype="V?"), SAMPLES["joblib"][2]["imports_found"], False),
    "behind an array that would hide it": (joblib(padding=EVAL + b"0" + b"\x80\x04"), [
        *SAMPLES["joblib"][2]["imports_found"]], False),
}


@pytest.mark.parametrize("name", PICKLES)
def test_the_imports_of_a_pickle_are_found(name):
    data, found, complete = PICKLES[name]
    assert imports(data) == (found, complete)


@pytest.mark.parametrize("name", [name for name, case in PICKLES.items() if case[1] and case[2]])
@pytest.mark.parametrize("wrap", [
    zlib.compress, lambda data: zipped({"archive/data.pkl": data}), lambda data: npy("'|O'", data),
    lambda data: zipped({"x": data}, zipfile.ZIP_DEFLATED), lambda data: zipped({"x": data}, zipfile.ZIP_BZIP2),
    lambda data: npy("'<f8', 'descr': '|O'", data), lambda data: zipped({"a.npy": npy("[('a', 'O')]", data)}),
    lambda data: zipped({"a.zip": zipped({"b.npz": zipped({"c": data})})}),
], ids=["zlib", "torch", "npy", "deflated", "bzip2", "npy with two types", "npz", "zip in zip in zip"])
def test_the_imports_are_found_wherever_the_pickle_is(name, wrap):
    data, found, complete = PICKLES[name]
    assert imports(wrap(data)) == (found, complete)


@pytest.mark.parametrize("protocol", range(6))
def test_what_pickle_itself_writes_is_read_to_its_end(protocol):
    value = [{"a": (1, 2.5, True, None, -1, 1 << 70), "b": {1, 2}}, b"bytes" * 100, bytearray(b"x"), "x" * 1000,
             ModelKey, ModelKey("p", "a", "v", "m"), frozenset("a"), complex(1, 2), "\x80\n"]
    value.append(value[0])
    data = pickle.dumps(value, protocol)
    by_genops, strings = set(), []
    for op, argument, _ in pickletools.genops(data):
        if op.name == "GLOBAL":
            by_genops.add(argument.replace(" ", "."))
        elif op.name == "STACK_GLOBAL":
            by_genops.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    found, complete = imports(data)
    assert complete
    assert "repository.model.ModelKey" in found
    if protocol < 4:    # later ones take names from the memo, which the count above does not follow
        assert set(found) == by_genops


class Inert:
    """Stands for whatever a pickle imports, and for what that makes."""

    loading = None

    def __new__(cls, *_, **__):
        cls.loading.called = True
        return super().__new__(cls)

    def __call__(self, *_, **__):
        return self

    def __setstate__(self, _):
        pass


class InC(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            value = getattr({"os": os, "builtins": builtins}.get(module), name)
        except AttributeError as error:
            raise ImportError from error
        self.performed.add(f"{module}.{name}")
        return value if type(value) is str else type("Imported", (Inert,), {"loading": self})

    def persistent_load(self, _):
        return "os"


class InPython(pickle._Unpickler):
    find_class, persistent_load = InC.find_class, InC.persistent_load


PIECES = st.one_of(st.sampled_from([
    *(bytes([code]) for code in b"N()]}tRb012aesuoQ\x81\x85\x86\x87\x88\x8f\x90\x93\x93\x94\x94."),
    b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"p0\n", b"p 1\n", b"g0\n", b"g1\n", b"p0\0x\n", b"g0\0\n",
    b"j\x01\0\0\0", b"r\x01\0\0\0",
    b"cos\nsystem\n", b"cos\nname\n", b"ios\nsystem\n", b"cos\npopen", b"Pos\n", b"\x82\x01", b"\x80\x04",
    b"\x95" + bytes(8),
    b"S'os'\n", b"Vos\n", b"V\\u006fs\n", b"S'\\x6fs'\n", b"C\x02os", b"B\x02\0\0\0os", b"U\x02os",
    b"I01\n", b"L5L\n", b"K\x05", b"M\x05\x00", b"\x8a\x01\x05", b"F1.5\n",
]), st.sampled_from(["os", "system", "builtins", "eval"]).map(text),
    st.binary(min_size=1, max_size=3).filter(lambda data: b"\x96" not in data))    # of which C's unpickler complains


@settings(max_examples=200)
@given(st.lists(PIECES, max_size=25).map(b"".join))
def test_no_unpickler_imports_what_was_not_found(data):
    details = inspect(data).details
    found = set(details.get("imports_found", ()))
    for unpickler in (InC, InPython):
        loading = unpickler(io.BytesIO(data))
        loading.performed, loading.called = set(), False
        with suppress(Exception):
            loading.load()
        named = any("?" in name for name in found) or not details.get("complete", True)
        idle = not loading.called and not re.search(rb"[\0-\x08\x0e-\x1f]", data)     # a text with a word like cos
        assert named or idle or loading.performed <= found, (unpickler, loading.performed - found)
        assert idle or bool(found) >= bool(loading.performed)


TORCH = zipped({"m/data.pkl": OS_SYSTEM})


def patched(data, signature, offset, value):
    at = data.index(signature) + offset
    return data[:at] + value + data[at + len(value):]


@pytest.mark.parametrize(("data", "complete"), [
    (patched(TORCH, CENTRAL, 16, b"\xff" * 4), True),                           # the CRC
    (patched(TORCH, LOCAL, 6, b"\x01\x00"), True),                              # encrypted, says the member
    (patched(TORCH, CENTRAL, 8, b"\x01\x00"), False),                           # encrypted, says the directory
    (patched(TORCH, LOCAL, 30, b"X"), True),                                    # another name than the directory says
    (patched(TORCH, CENTRAL, 20, b"\0\0\0\0"), True),                           # one of its two sizes is 0
    (patched(TORCH, END, 8, b"\x02\0\x02\0"), False),                           # more members than there are
    (b"prefix" + TORCH, False), (OS_SYSTEM + TORCH, False),                     # readers differ in where it begins
    (TORCH + TORCH, False), (TORCH + b"behind", True),
    (SAMPLES["safetensors"][0] + TORCH, False),
], ids=range(11))
def test_a_zip_that_readers_take_differently_hides_nothing(data, complete):
    found, whole = imports(data)
    assert whole == complete
    assert found == ["posix.system"] or not whole


@pytest.mark.parametrize("data", [
    patched(TORCH, LOCAL, 0, b"XXXX")[:0] + TORCH.replace(LOCAL, b"PK\x03\x05"), patched(TORCH, CENTRAL, 10, b"\x63\0"),
    TORCH[:-30], zipped({"a": tarred("x", b"")}), zipped({"a": b"7z\xbc\xaf\x27\x1c"}),
    zipped({"a": zipped({"b": zlib.compress(OS_SYSTEM)})}, zipfile.ZIP_DEFLATED), zlib.compress(TORCH),
    zlib.compress(zlib.compress(OS_SYSTEM)),
], ids=["member not there", "unknown method", "cut off", "tar", "7z", "zip in deflate", "zip in zlib", "zlib in zlib"])
def test_what_cannot_be_looked_into_is_said_to_be_incomplete(data):
    assert inspect(data).details["complete"] is False


def test_the_raw_bytes_of_tensors_are_not_taken_for_pickles():
    members = {f"m/data/{n}": bytes([n, m]) * 300 + b".\n.\n" for n in range(256) for m in (0, 46)}
    assert imports(zipped({"m/data.pkl": TENSOR, **members})) == (REBUILDING, True)


# ---- what comes in


def test_an_upload_tells_what_it_is_and_so_do_info_and_lists(app):
    data, kind, details = SAMPLES["gguf"]
    answers = [app.put("/models/p/a/1/m", data, status=201).json, app.get("/models/p/a/1/m/info").json,
               app.get("/models/p").json["models"][0], json.loads(app.get("/models/p?format=ndjson").body)]
    for answer in answers:
        assert (answer["format"], answer["details"]) == (kind, details)
    form = app.post("/models/upload?project_id=p&app_name=a&version=1&model_name=f",
                    upload_files=[("file", "x.pkl", OS_SYSTEM)], status=201).json
    assert (form["format"], form["details"]["imports_found"]) == ("pickle", ["posix.system"])
    assert "posix.system" in form["details"]["warnings"][0]


def test_a_list_can_be_filtered_by_what_the_bytes_are(app):
    for name in ("safetensors", "gguf", "onnx"):
        app.put(f"/models/p/a/1/{name}?framework=any", SAMPLES[name][0], status=201)
    app.put("/models/p/a/1/second", SAMPLES["onnx"][0], status=201)
    assert app.get("/models/p?model_format=onnx&format=txt").text.split() == ["p/a/1/onnx", "p/a/1/second"]
    assert app.get("/models/p?model_format=onnx&framework=any").json["total_models"] == 1
    assert app.get("/models/p?model_format=onnx&limit=1").json["total_models"] == 2
    assert app.get("/models/p?model_format=none").json["models"] == []


@pytest.mark.parametrize("patch", [{"format": "onnx"}, {"details": {}}, {"details": None}])
def test_what_the_server_saw_cannot_be_changed(app, patch):
    app.put("/models/p/a/1/m", OS_SYSTEM, status=201)
    before = app.get("/models/p/a/1/m/info").json
    app.patch("/models/p/a/1/m/info", json.dumps(patch).encode(), status=400)
    after = app.patch("/models/p/a/1/m/info", b'{"description": "new"}').json
    assert {**after, "description": None, "updated_at": 0} == {**before, "updated_at": 0}


def test_fields_of_a_user_do_not_stand_for_what_the_server_saw(app):
    answer = app.put("/models/p/a/1/m?format=onnx&details=x", OS_SYSTEM, status=201).json
    assert (answer["format"], answer["metadata"]) == ("pickle", {"format": "onnx", "details": "x"})


def test_a_model_of_an_older_server_says_null_and_stays_as_it_is(app, store):
    with drafting(store) as draft:    # as a server stored it that did not look
        draft.write([OS_SYSTEM])
        draft.publish(ModelKey("p", "a", "1", "m"), sha256(OS_SYSTEM), Details(), lambda current: None)
    info = app.get("/models/p/a/1/m/info").json
    assert (info["format"], info["details"]) == (None, None)
    before = (store.root / "p/a/1/m/metadata.json").stat()
    again = app.put("/models/p/a/1/m", OS_SYSTEM, status=200).json
    assert again["unchanged"] and again["format"] is None
    assert (store.root / "p/a/1/m/metadata.json").stat() == before
    assert app.put("/models/p/a/1/m?stage=new", OS_SYSTEM, status=200).json["format"] == "pickle"
    assert app.put("/models/p/a/1/m?stage=new", OS_SYSTEM, status=200).json["unchanged"]


@pytest.mark.parametrize("document", [
    {"format": "onnx", "details": {}}, {"size": 4, "sha256": "0" * 64, "format": 1, "details": {}},
    {"size": 4, "sha256": "0" * 64, "format": "onnx", "details": []},
    {"size": 5, "sha256": "0" * 64, "format": "onnx", "details": {}},
])
def test_metadata_that_tells_of_something_else_is_not_believed(app, store, document):
    place = store.root / "p/a/1/m"
    place.mkdir(parents=True)
    (place / "model").write_bytes(b"data")
    (place / "metadata.json").write_text(json.dumps(document))
    info = app.get("/models/p/a/1/m/info").json
    assert (info["format"], info["details"]) == (None, None)
    assert app.get("/models/p?model_format=onnx").json["models"] == []


def refused(app, store, data, status):
    answer = app.put("/models/p/a/1/m", data, status=status)
    assert app.get("/models/list").json["models"] == []
    app.get("/models/p/a/1/m", status=404)
    assert staged(store.root) == [] and [path.name for path in store.root.iterdir()] == [".staging"]
    return answer.json["detail"]


def test_only_the_allowed_formats_come_in(make_app, store):
    app = make_app(allowed_formats=frozenset({"safetensors", "onnx"}))
    said = refused(app, store, OS_SYSTEM, 415)
    assert all(word in said for word in ("pickle", "onnx, safetensors", "MODEL_ALLOWED_FORMATS"))
    said = refused(app, store, BROKEN["a tensor beyond the end"], 415)
    assert "unknown" in said and "8 bytes" in said
    app.put("/models/p/a/1/m", SAMPLES["onnx"][0], status=201)
    app.put("/models/p/a/1/m", OS_SYSTEM, status=415)
    assert app.get("/models/p/a/1/m").body == SAMPLES["onnx"][0]


REFUSED = [     # bytes, whether `known` refuses too, what its answer names
    (SAMPLES["pytorch"][0], False, ""), (SAMPLES["pytorch of old"][0], False, ""), (PLAIN, False, ""),
    (OS_SYSTEM, True, "posix.system"), (TORCH, True, "posix.system"), (joblib(EVAL), True, "builtins.eval"),
    (P4 + EVAL, True, "builtins.eval"), (P4 + b"\x82\x05.", True, "copyreg.extension.5"),
    (P4 + text("os") + EVAL + text("x") + b"\x85R\x93.", True, "os.?"),
    (SAMPLES["npy of objects"][0], True, "posix.system"), (SAMPLES["tar"][0], True, "cannot be looked into"),
    (PLAIN + b"\0", True, "cannot be looked into"), (TORCH[:-30], True, "cannot be looked into"),
    (P4 + b"N" * 3_000_000 + EVAL + b".", True, "cannot be looked into"),
    (SAMPLES["safetensors"][0] + TORCH, True, "posix.system"), (SAMPLES["7z"][0], True, "cannot be looked into"),
]


@pytest.mark.parametrize(("data", "beyond", "named"), REFUSED, ids=range(len(REFUSED)))
def test_a_pickle_is_refused_as_the_setting_says(make_app, store, data, beyond, named):
    said = refused(make_app(pickle="deny"), store, data, 422)
    assert "MODEL_PICKLE=deny" in said
    known = make_app(pickle="known")
    if beyond:
        said = refused(known, store, data, 422)
        assert named in said and "MODEL_PICKLE=known" in said
        assert not any(name in said for name in REBUILDING)
    known.put("/models/p/a/1/other" if beyond else "/models/p/a/1/m", PLAIN if beyond else data, status=201)
    make_app().put("/models/p/a/1/m", data)     # allow


@pytest.mark.parametrize("setting", ["allow", "known", "deny"])
@pytest.mark.parametrize("name", ["safetensors", "gguf", "onnx", "hdf5", "npy", "zip", "gzip", "text", "nothing"])
def test_what_holds_no_pickle_comes_in_with_every_setting(make_app, setting, name):
    make_app(pickle=setting).put("/models/p/a/1/m", SAMPLES[name][0], status=201)


LABELLED = {    # what MediaPipe and TFLite's metadata make: a zip that does not begin at the beginning, and is whole
    "tflite": lambda members: SAMPLES["tflite"][0] + zipped_behind(SAMPLES["tflite"][0], members),
    "task": lambda members: bundled({"a.tflite": SAMPLES["tflite"][0], **members}),
    "a bundle in a bundle": lambda members: bundled({"a.task": bundled({"a.tflite": SAMPLES["tflite"][0], **members})}),
    "a model with labels in a bundle": lambda members: bundled({"a.tflite": LABELLED["tflite"](members)}),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_in_a_zip_at_the_end_are_looked_into(make_app, store, name):
    app, kind = make_app(pickle="deny"), "tflite" if name == "tflite" else "task"
    answer = app.put("/models/p/a/1/m", LABELLED[name]({"labels.txt": b"1\n2\n"}), status=201).json
    assert answer["format"] == kind and "complete" not in answer["details"]
    app.delete("/models/p/a/1/m")
    assert "take the pickle out" in refused(app, store, LABELLED[name]({"x.pkl": OS_SYSTEM}), 422)
    refused(app, store, LABELLED[name]({"x.pkl": PLAIN}), 422)      # which imports nothing


@pytest.mark.parametrize(("data", "advice"), [
    (OS_SYSTEM, "safetensors or ONNX"), (SAMPLES["npy of objects"][0], "without objects"),
    (SAMPLES["tar"][0], "unpacked"), (SAMPLES["zip of zip"][0], "take the pickle out"),
])
def test_the_advice_of_a_refusal_fits_what_was_found(make_app, store, data, advice):
    assert advice in refused(make_app(pickle="deny"), store, data, 422)


@pytest.mark.parametrize("signature", [b"TFL3", b"ORTM", b"ET12"])
def test_a_pickle_is_a_pickle_whatever_signature_stands_further_on(signature):
    length = 12     # of bytes in the pickle's first opcode, which are the number by which a flatbuffer begins
    table = (length << 8 | 0x43).to_bytes(4, "little")
    data = table + signature + bytes(length - 6) + b"0" + OS_SYSTEM
    data = data.ljust(int.from_bytes(table, "little"), b"\0") + bytes(100)
    found = inspect(data)
    assert (found.format, found.details["imports_found"]) == ("pickle", ["posix.system"])


PAGE = (ROOT / "docs/formats.md").read_text(encoding="utf-8")


def test_every_import_that_known_lets_through_is_documented():
    assert [name for name in KNOWN if name.rpartition(".")[2] not in PAGE] == []
    assert not re.search(r"\bsafe\b", PAGE, re.IGNORECASE)


def test_every_format_has_its_row_in_the_documentation():
    table = PAGE.partition("| `format` |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert [name for row in rows for name in re.findall(r"`([^`]+)`", row)] == list(inspection.FORMATS)


def test_a_refusal_by_its_bytes_crosses_the_socket(start, http):
    server = start(MODEL_ALLOWED_FORMATS="safetensors, pytorch", MODEL_PICKLE="known")
    url = f"{server.url}/models/p/a/1/m"
    assert http.put(url, data=OS_SYSTEM).status_code == 415
    answer = http.put(url, data=TORCH)
    assert (answer.status_code, "posix.system" in answer.json()["detail"]) == (422, True)
    assert http.put(url, data=TENSOR).status_code == 415
    assert http.put(url, data=SAMPLES["pytorch"][0]).json()["details"]["imports_found"] == REBUILDING
    assert staged(server.storage) == []
    assert 'reason="PickleRefused"' in http.get(f"{server.url}/metrics").text
