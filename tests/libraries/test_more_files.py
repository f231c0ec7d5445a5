"""Files of libraries beyond PyTorch and Keras: their format, and that what is told of them is what was written.

TensorFlow, PaddlePaddle, CatBoost, ExecuTorch, pnnx and MediaPipe are too large to be installed for this: files of
theirs were looked into once, and tests/support/samples.py rebuilds their fields.
"""

import functools
import os
import posixpath

import fasttext
import lightgbm
import numpy
import onnx
import onnxruntime
import openvino
import pytest
import sentencepiece
import skops.io
import tflite
import tokenizers
import torch
import xgboost
from coremltools.models import datatypes
from coremltools.models.neural_network import NeuralNetworkBuilder
from flatbuffers import Builder
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from tensorboard.compat.proto import graph_pb2, meta_graph_pb2

from inspection import formats as inspection
from inspection import headers

pytestmark = pytest.mark.filterwarnings("ignore")
FEATURES = numpy.random.default_rng(1).random((200, 4))
LABELS = (FEATURES[:, 0] > 0.5).astype(int)


def inspect(path):
    with open(path, "rb", buffering=0) as file:
        return inspection.inspect(file, path.stat().st_size)


def told(path):
    seen = inspect(path)
    assert "imports_found" not in seen.details and "complete" not in seen.details
    return seen.format, seen.details


@pytest.mark.parametrize("booster", ["gbtree", "dart", "gblinear"])
@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_xgboost(tmp_path, booster, suffix):
    options = {"booster": booster, "objective": "binary:logistic"}
    model = xgboost.train(options, xgboost.DMatrix(FEATURES, LABELS, feature_names=list("abcd")), 5)
    model.save_model(tmp_path / f"m.{suffix}")
    kind, details = told(tmp_path / f"m.{suffix}")
    assert (kind, details["objective"], details.get("trees", 5)) == ("xgboost", "binary:logistic", 5)
    assert details.get("version", xgboost.__version__).replace(",", ".") == xgboost.__version__


@pytest.mark.parametrize("objective", ["rank:ndcg", "survival:aft", "reg:quantileerror", "multi:softprob"])
@pytest.mark.parametrize("suffix", ["json", "ubj"])
def test_the_objective_of_xgboost_whatever_options_it_has(tmp_path, objective, suffix):
    data = xgboost.DMatrix(FEATURES, LABELS, label_lower_bound=LABELS + 1, label_upper_bound=LABELS + 2)
    options = {"objective": objective, "quantile_alpha": 0.5, "num_class": 2 * objective.startswith("multi")}
    xgboost.train(options, data, 2).save_model(tmp_path / f"m.{suffix}")
    assert told(tmp_path / f"m.{suffix}")[1]["objective"] == objective


def test_lightgbm(tmp_path):
    lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(FEATURES, LABELS).booster_.save_model(tmp_path / "m")
    assert told(tmp_path / "m") == ("lightgbm", {"version": 4, "objective": "binary", "classes": 1})


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word", "char"])
def test_sentencepiece(tmp_path, kind):
    (tmp_path / "text").write_text("\n".join(f"hello world this is number {n * 7}" for n in range(500)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=40, model_type=kind,
        hard_vocab_limit=False, minloglevel=2)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model")).get_piece_size()
    assert told(tmp_path / "m.model") == ("sentencepiece", {"pieces": pieces, "model_type": kind})


@pytest.mark.parametrize("pretty", [True, False])
@pytest.mark.parametrize("name", ["BPE", "WordPiece", "WordLevel", "Unigram"])
def test_tokenizers(tmp_path, name, pretty):
    tokenizer = tokenizers.Tokenizer(getattr(tokenizers.models, name)())
    tokenizer.add_special_tokens([f"<token {n}>" for n in range(100)])
    tokenizer.save(str(tmp_path / "m"), pretty=pretty)
    assert told(tmp_path / "m") == ("tokenizer", {"version": "1.0", "model": name})


@pytest.mark.parametrize("kind", ["supervised", "skipgram", "cbow"])
def test_fasttext(tmp_path, kind):
    (tmp_path / "text").write_text("\n".join(f"__label__{n % 2} word{n % 10} hello" for n in range(300)))
    train = fasttext.train_supervised if kind == "supervised" else functools.partial(
        fasttext.train_unsupervised, model=kind, bucket=100)
    model = train(str(tmp_path / "text"), dim=5, epoch=1, minCount=1, verbose=0)
    model.save_model(str(tmp_path / "m"))
    assert told(tmp_path / "m") == ("fasttext", {
        "version": 12, "dimension": 5, "words": len(model.words), "labels": 2})


class Foreign:
    def __init__(self):
        self.part = functools.partial(os.getcwd)


SKOPS = {
    "pipeline": lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(FEATURES, LABELS),
    "function": lambda: FunctionTransformer(posixpath.join), "class": Foreign,
    "numpy": lambda: {"a": numpy.arange(5), "f": FunctionTransformer(numpy.sqrt)},
}


@pytest.mark.parametrize("name", SKOPS)
def test_of_skops_all_is_told_that_it_does_not_trust_itself(tmp_path, name):
    skops.io.dump(SKOPS[name](), tmp_path / "m")
    kind, details = told(tmp_path / "m")
    assert (kind, details["skops_version"]) == ("skops", skops.__version__)
    said = " ".join(details.get("warnings", ()))
    assert all(untrusted in said for untrusted in skops.io.get_untrusted_types(file=tmp_path / "m"))
    assert bool(said) == (name in ("function", "class"))


@pytest.fixture
def network(tmp_path):
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])], "g", [helper.make_tensor_value_info("x", kinds.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("z", kinds.FLOAT, None)],
        [onnx.numpy_helper.from_array(numpy.zeros((4, 4), numpy.float32), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_ort(tmp_path, network):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(network), options)
    assert told(tmp_path / "m.ort") == ("ort", {"version": "6"})


def test_openvino(tmp_path, network):
    openvino.save_model(openvino.convert_model(network), tmp_path / "m.xml")
    assert told(tmp_path / "m.xml") == ("openvino", {"name": "onnx_Frontend_IR", "version": 11})


def test_external_data_of_onnx(tmp_path, network):
    model = onnx.load(network)
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert told(tmp_path / "e.onnx")[1]["external_data"] == ["weights.bin"]


def test_coreml(tmp_path):
    builder = NeuralNetworkBuilder([("x", datatypes.Array(4))], [("y", datatypes.Array(2))])
    builder.add_inner_product("d", numpy.zeros((2, 4)), numpy.zeros(2), 4, 2, True, "x", "y")
    builder.spec.description.metadata.author = "us"
    (tmp_path / "m").write_bytes(builder.spec.SerializeToString())
    kind, details = told(tmp_path / "m")
    assert (kind, details["inputs"], details["outputs"], details["author"]) == ("coreml", ["x"], ["y"], "us")
    assert details["specification_version"] == builder.spec.specificationVersion and "warnings" not in details
    builder.spec.neuralNetwork.layers.add().custom.className = "Mine"
    (tmp_path / "m").write_bytes(builder.spec.SerializeToString())
    assert "Mine" in told(tmp_path / "m")[1]["warnings"][0]


def test_graphs_of_tensorflow(tmp_path):
    graph = graph_pb2.GraphDef()
    for name in ("Placeholder", "MatMul", "ReadFile"):
        graph.node.add(name=name.lower(), op=name).attr["T"].type = 1
    graph.library.function.add().node_def.add(name="p", op="PyFunc")
    graph.versions.producer = 1882
    (tmp_path / "g").write_bytes(graph.SerializeToString())
    said = ["its operation PyFunc runs Python", "its operation ReadFile reads or writes files"]
    assert told(tmp_path / "g") == ("graphdef", {"nodes": 3, "warnings": said})
    meta = meta_graph_pb2.MetaGraphDef(graph_def=graph)
    meta.meta_info_def.tags.append("serve")
    meta.meta_info_def.tensorflow_version = "2.21.0"
    meta.signature_def["serving_default"].method_name = "tensorflow/serving/predict"
    data = meta.SerializeToString()
    length = bytes([len(data) & 127 | 128, len(data) >> 7])
    (tmp_path / "s").write_bytes(b"\x08\x01\x12" + length + data)     # SavedModel: its version, and this
    assert told(tmp_path / "s") == ("savedmodel", {
        "tags": ["serve"], "tensorflow_version": "2.21.0", "signatures": ["serving_default"], "nodes": 3,
        "warnings": said})


def test_tflite(tmp_path):
    builder = Builder(1024)
    texts = {text: builder.CreateString(text) for text in ("x", "y", "by hand", "FlexWriteFile")}
    tensors = []
    for name, kind, shape in ("x", tflite.TensorType.FLOAT32, (1, 4)), ("y", tflite.TensorType.INT8, (2,)):
        builder.StartVector(4, len(shape), 4)
        for size in reversed(shape):
            builder.PrependInt32(size)
        sizes = builder.EndVector()
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, sizes)
        tflite.TensorAddType(builder, kind)
        tflite.TensorAddName(builder, texts[name])
        tensors.append(tflite.TensorEnd(builder))

    def vector(items, prepend):
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            prepend(item)
        return builder.EndVector()

    pointers = functools.partial(vector, prepend=builder.PrependUOffsetTRelative)
    numbers = functools.partial(vector, prepend=builder.PrependInt32)
    tensors, inputs, outputs = pointers(tensors), numbers([0]), numbers([1])
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, tensors)
    tflite.SubGraphAddInputs(builder, inputs)
    tflite.SubGraphAddOutputs(builder, outputs)
    graphs = pointers([tflite.SubGraphEnd(builder)])
    tflite.OperatorCodeStart(builder)
    tflite.OperatorCodeAddCustomCode(builder, texts["FlexWriteFile"])
    codes = pointers([tflite.OperatorCodeEnd(builder)])
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddDescription(builder, texts["by hand"])
    tflite.ModelAddSubgraphs(builder, graphs)
    tflite.ModelAddOperatorCodes(builder, codes)
    builder.Finish(tflite.ModelEnd(builder), b"TFL3")
    (tmp_path / "m").write_bytes(builder.Output())
    assert told(tmp_path / "m") == ("tflite", {
        "version": 3, "description": "by hand", "inputs": [{"name": "x", "type": "float32", "shape": [1, 4]}],
        "outputs": [{"name": "y", "type": "int8", "shape": [2]}], "custom_operations": ["FlexWriteFile"],
        "warnings": ["its operation FlexWriteFile reads or writes files"]})


def test_the_names_of_tflites_types_are_those_of_its_schema():
    ours = {name.upper(): number for number, name in headers.TFLITE_TYPES.items()}
    theirs = {name: number for name, number in vars(tflite.TensorType).items() if name.isupper()}
    assert {name: number for name, number in ours.items() if name in theirs} == theirs


def test_torch_export(tmp_path):
    class Network(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x)

    torch.export.save(torch.export.export(Network(), (torch.ones(1, 4),)), tmp_path / "m.pt2")
    assert inspect(tmp_path / "m.pt2").format == "pt2"


def test_tensors_and_parameters_of_torch_are_counted_without_loading(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.BatchNorm1d(20), torch.nn.Linear(20, 2))
    for options in {}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}:
        for value in network.state_dict(), network, {"model": network.state_dict(), "step": torch.tensor(3)}:
            torch.save(value, tmp_path / "m", **options)
            state = list(network.state_dict().values()) + [torch.tensor(3)] * ("step" in value if isinstance(
                value, dict) else False)
            details = inspect(tmp_path / "m").details
            assert details["tensors"] == len(state)
            assert details["parameters"] == sum(each.numel() for each in state)
