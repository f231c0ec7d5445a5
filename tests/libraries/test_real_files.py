"""Files of the real libraries: what they are, and every import that loading them performs."""

import io
import os
import pickle
import warnings
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"   # which is here; keras reads this when it is imported
with warnings.catch_warnings():     # of what the libraries call deprecated in one another
    warnings.simplefilter("ignore")
    import gguf
    import h5py
    import joblib
    import keras
    import numpy
    import onnx
    import safetensors.numpy
    import torch
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

import pytest

from inspection import formats as inspection
from inspection import headers, protobuf
from inspection.found import KNOWN

pytestmark = pytest.mark.filterwarnings("ignore")


def inspect(path):
    with open(path, "rb", buffering=0) as file:
        return inspection.inspect(file, Path(path).stat().st_size)


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.BatchNorm1d(20), torch.nn.ReLU(),
                               torch.nn.Linear(20, 2))


def checkpoint():
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.zeros(4, 10)).sum().backward()
    optimizer.step()
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": numpy.float64(0.5),
            "history": numpy.arange(50.0), "half": torch.zeros(3, dtype=torch.bfloat16), "device": torch.device("cpu"),
            "shape": torch.Size([1, 2]), "dtype": torch.float16, "parameter": torch.nn.Parameter(torch.ones(2))}


class Recorder(pickle.Unpickler):
    """Loads as pickle does, and writes down what it imports."""

    found: set[str] = set()     # noqa: RUF012  emptied by each test

    def find_class(self, module, name):
        Recorder.found.add(f"{module}.{name}")
        return super().find_class(module, name)


class RecordingModule:
    """What torch.load takes as pickle_module."""

    Unpickler = Recorder
    __name__ = "recording"

    @staticmethod
    def load(file, **options):
        return Recorder(file, **options).load()


@pytest.fixture(autouse=True)
def recorded():
    Recorder.found.clear()
    return Recorder.found


TORCH = {   # name: (value, how it is saved, whether MODEL_PICKLE=known takes it)
    "state_dict": (lambda: network().state_dict(), {}, True),
    "state_dict of old": (lambda: network().state_dict(), {"_use_new_zipfile_serialization": False}, True),
    "checkpoint": (checkpoint, {}, True),
    "checkpoint of old": (checkpoint, {"_use_new_zipfile_serialization": False}, True),
    "checkpoint of protocol 4": (checkpoint, {"pickle_protocol": 4}, True),
    "network": (network, {}, False),
    "network of old": (network, {"_use_new_zipfile_serialization": False}, False),
    "sparse": (lambda: torch.eye(3).to_sparse(), {}, False),
}


@pytest.mark.parametrize("name", TORCH)
def test_of_a_torch_file_every_import_is_found_that_loading_performs(tmp_path, recorded, name):
    make, options, known = TORCH[name]
    torch.save(make(), tmp_path / "m.pt", **options)
    seen = inspect(tmp_path / "m.pt")
    assert seen.format == "pytorch"
    assert seen.details["container"] == ("pickles" if "old" in name else "zip")
    torch.load(tmp_path / "m.pt", weights_only=False, pickle_module=RecordingModule)
    found = set(seen.details["imports_found"])
    assert recorded and found >= recorded and "complete" not in seen.details
    assert all(extra.endswith("Storage") for extra in found - recorded)     # for which torch itself looks
    if known:
        inspection.check(seen, (), "known")
    else:
        with pytest.raises(inspection.PickleRefused):
            inspection.check(seen, (), "known")


def test_a_torch_file_with_many_tensors_of_any_bytes_is_read_to_its_end(tmp_path):
    generator = torch.Generator().manual_seed(7)
    many = {f"{n}": torch.randint(0, 256, (300,), dtype=torch.uint8, generator=generator) for n in range(3000)}
    torch.save(many, tmp_path / "m.pt")
    seen = inspect(tmp_path / "m.pt")
    assert set(seen.details["imports_found"]) <= KNOWN and "complete" not in seen.details


def test_torchscript_is_told_from_a_state_dict(tmp_path):
    torch.jit.script(network()).save(tmp_path / "m.pt")
    seen = inspect(tmp_path / "m.pt")
    assert (seen.format, seen.details["torchscript"]) == ("pytorch", True)
    with pytest.raises(inspection.PickleRefused):
        inspection.check(seen, (), "known")


FEATURES = numpy.random.default_rng(1).random((200, 4))
LABELS = (FEATURES[:, 0] > 0.5).astype(int)
SKLEARN = {
    "forest": lambda: RandomForestClassifier(10).fit(FEATURES, LABELS),
    "pipeline": lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(FEATURES, LABELS),
    "words": lambda: TfidfVectorizer().fit([f"w{n} w{n * 7} w{n * n}" for n in range(2000)]),
    "arrays": lambda: [numpy.arange(5), numpy.zeros((2, 3, 4), "f4"), numpy.array(["a", "bcd"]), numpy.array([b"x"]),
                       numpy.array(["2026-01-01"], "M8[D]"), numpy.zeros(2, [("a", "i4"), ("b", "f8")]), 1 + 2j],
}


@pytest.mark.parametrize("compression", [0, "zlib", "gzip", "bz2", "xz", "lzma"])
@pytest.mark.parametrize("name", SKLEARN)
def test_of_a_joblib_file_every_import_is_found_that_loading_performs(tmp_path, monkeypatch, name, compression):
    performed, unpickler = set(), joblib.numpy_pickle.NumpyUnpickler
    find_class = unpickler.find_class

    def recording(self, module, name):
        performed.add(f"{module}.{name}")
        return find_class(self, module, name)

    joblib.dump(SKLEARN[name](), tmp_path / "m", compress=(compression, 3) if compression else 0)
    seen = inspect(tmp_path / "m")
    monkeypatch.setattr(unpickler, "find_class", recording)
    joblib.load(tmp_path / "m")
    assert seen.format == "joblib"
    assert set(seen.details["imports_found"]) == performed and "complete" not in seen.details
    assert seen.details.get("compression") == {0: None, "bz2": "bzip2", "lzma": "xz"}.get(compression, compression)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", SKLEARN)
def test_of_a_pickle_every_import_is_found_that_loading_performs(tmp_path, recorded, name, protocol):
    data = pickle.dumps(SKLEARN[name](), protocol)
    (tmp_path / "m").write_bytes(data)
    seen = inspect(tmp_path / "m")
    Recorder(io.BytesIO(data)).load()
    assert seen.format == "pickle"
    assert set(seen.details["imports_found"]) == recorded and "complete" not in seen.details


def test_an_array_of_objects_in_joblib_is_found_and_said_to_be_incomplete(tmp_path):
    joblib.dump({"x": numpy.array([LogisticRegression(), None]), "y": StandardScaler()}, tmp_path / "m")
    seen = inspect(tmp_path / "m")
    found = " ".join(seen.details["imports_found"])
    assert "LogisticRegression" in found and "StandardScaler" in found and seen.details["complete"] is False


def test_numpy_files(tmp_path):
    numpy.save(tmp_path / "a.npy", numpy.zeros((3, 4)))
    assert inspect(tmp_path / "a.npy") == inspection.Inspection("npy", {"dtype": "<f8", "shape": [3, 4]})
    numpy.save(tmp_path / "o.npy", numpy.array([StandardScaler()]))
    assert any("StandardScaler" in name for name in inspect(tmp_path / "o.npy").details["imports_found"])
    for save in numpy.savez, numpy.savez_compressed:
        save(tmp_path / "a.npz", a=numpy.zeros(3), b=numpy.array([StandardScaler()]))
        seen = inspect(tmp_path / "a.npz")
        assert (seen.format, seen.details["arrays"]) == ("npz", ["a", "b"])
        assert any("StandardScaler" in name for name in seen.details["imports_found"])
    numpy.save(tmp_path / "r.npy", numpy.zeros(3, [("a", "f4"), ("b", "i4")]))
    assert inspect(tmp_path / "r.npy") == inspection.Inspection("npy", {})


def test_safetensors(tmp_path):
    types = {dtype.__str__().removeprefix("torch."): torch.zeros(3, 2, dtype=dtype) for dtype in (
        torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.uint8,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)}
    safetensors.torch = __import__("safetensors.torch").torch
    safetensors.torch.save_file(types, tmp_path / "m", metadata={"format": "pt"})
    seen = inspect(tmp_path / "m")
    assert seen.format == "safetensors"
    assert (seen.details["tensors"], seen.details["parameters"]) == (len(types), 6 * len(types))
    assert seen.details["metadata"] == {"format": "pt"}
    safetensors.numpy.save_file({}, tmp_path / "empty")
    assert inspect(tmp_path / "empty").details["tensors"] == 0


@pytest.mark.parametrize("endian", list(gguf.GGUFEndian))
def test_gguf(tmp_path, endian):
    writer = gguf.GGUFWriter(tmp_path / "m", "llama", endianess=endian)
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(2048)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token {n}" for n in range(100_000)])
    writer.add_token_scores([0.5] * 100_000)
    writer.add_array("nested", [[1, 2], [3]])
    quantised = gguf.quants.quantize(numpy.zeros((4, 64), numpy.float32), gguf.GGMLQuantizationType.Q8_0)
    for n in range(3):
        writer.add_tensor(f"q{n}", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("f", numpy.zeros(10, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    seen = inspect(tmp_path / "m")
    assert seen.format == "gguf"
    assert seen.details == {
        "version": 3, "architecture": "llama", "quantisation": "Q8_0", "tensors": 4, "parameters": 3 * 256 + 10,
        "tensor_types": {"Q8_0": 3, "F32": 1},
        "keys": {"general.name": "tiny", "llama.context_length": 2048, "tokenizer.ggml.model": "gpt2"}}


def test_the_names_of_ggufs_types_are_those_of_its_library():
    for kind in gguf.GGMLQuantizationType:
        assert headers.TENSOR_TYPES[kind.value] == (kind.name, *gguf.GGML_QUANT_SIZES[kind])
    for kind in gguf.LlamaFileType:
        name = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        assert headers.FILE_TYPES.get(kind.value, name) == name


def test_onnx(tmp_path):
    helper, kinds = onnx.helper, onnx.TensorProto
    weights = helper.make_tensor("w", kinds.FLOAT, [64, 64], numpy.zeros(4096))
    inputs = [helper.make_tensor_value_info("x", kinds.FLOAT16, [1, "batch", 64]),
              helper.make_tensor_value_info("y", kinds.INT64, None),
              helper.make_tensor_sequence_value_info("s", kinds.FLOAT, [1])]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])] * 5, "g", inputs,
                              [helper.make_tensor_value_info("z", kinds.FLOAT, None)], [weights])
    model = helper.make_model(graph, producer_name="ours", producer_version="1.2", opset_imports=[
        helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)])
    onnx.save(model, tmp_path / "m")
    seen = inspect(tmp_path / "m")
    assert seen.format == "onnx"
    assert seen.details == {
        "ir_version": model.ir_version, "producer": "ours", "producer_version": "1.2",
        "opsets": {"ai.onnx": 17, "ai.onnx.ml": 3}, "nodes": 5, "inputs": [
            {"name": "x", "type": "float16", "shape": [1, "batch", 64]}, {"name": "y", "type": "int64", "shape": None},
            {"name": "s", "type": None, "shape": None}]}


def test_the_names_of_onnx_types_are_numbered_as_its_library_has_them():
    ours = {name.lower().replace("_", ""): number for number, name in protobuf.ELEMENT_TYPES.items()}
    same = {"float32": "float", "float64": "double"}
    numbers = {name.lower().replace("_", ""): number for name, number in onnx.TensorProto.DataType.items()}
    assert {same.get(name, name): number for name, number in ours.items()} == numbers


def test_keras_and_hdf5(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.save(tmp_path / "m.keras")
    assert inspect(tmp_path / "m.keras") == inspection.Inspection("keras", {"keras_version": keras.__version__})
    model.save(tmp_path / "m.h5")
    assert inspect(tmp_path / "m.h5") == inspection.Inspection("keras", {
        "container": "hdf5"})
    model.save_weights(tmp_path / "m.weights.h5")
    assert inspect(tmp_path / "m.weights.h5") == inspection.Inspection("hdf5", {})
    for options in {}, {"userblock_size": 2048}:
        with h5py.File(tmp_path / "x.h5", "w", **options) as file:
            file["x"] = numpy.zeros(1000)
            file.attrs["numbers"], file.attrs["text"], file.attrs["texts"] = [1, 2], "text", ["a", "b"]
        assert inspect(tmp_path / "x.h5") == inspection.Inspection("hdf5", {})


@keras.saving.register_keras_serializable("mine")
class Layer(keras.layers.Layer):
    def call(self, x):
        return x


def loss(one, other):
    return one - other


def test_what_keras_runs_or_looks_up_is_told(tmp_path):
    said = {"m.keras": ["builtins.loss", " L", "a Lambda layer"], "m.h5": ["mine>Layer", "a Lambda layer"]}
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2), Layer()])
    model.compile(loss=loss)
    for name, words in said.items():
        model.save(tmp_path / name)
        seen = inspect(tmp_path / name)
        assert seen.format == "keras" and len(seen.details["warnings"]) == len(words)
        assert all(any(word in warning for warning in seen.details["warnings"]) for word in words)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation=keras.activations.gelu)])
    model.compile(loss=keras.losses.MeanSquaredError(), optimizer=keras.optimizers.Adam())
    for name in said:
        model.save(tmp_path / name)
        assert "warnings" not in inspect(tmp_path / name).details
    with h5py.File(tmp_path / "fixed.h5", "w") as file:
        file.attrs["model_config"] = numpy.bytes_(b'{"class_name": "Lambda"}')
    assert "Lambda" in inspect(tmp_path / "fixed.h5").details["warnings"][0]
    with h5py.File(tmp_path / "latest.h5", "w", libver="latest") as file:
        file.attrs["model_config"] = '{"class_name": "Lambda"}'
    assert "Lambda" in inspect(tmp_path / "latest.h5").details["warnings"][0]
