"""Models as a team has them, for pictures of the page and tests of it: files that the inspection understands."""

import json
import pickle
import struct


class Surprise:
    def __reduce__(self):
        return eval, ("1",)


def safetensors(shapes, **metadata):
    """A safetensors file of zeros, as its specification has it."""
    head, at = {"__metadata__": metadata}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(at)


ENCODER = safetensors({"embeddings.word": [3000, 64], "encoder.0.attention": [64, 64], "encoder.0.bias": [64]},
                      format="pt", license="apache-2.0")
TEXT = "Sentence encoder for product reviews, fine-tuned on 2.1 M pairs"


def team():
    """(path, bytes, fields) of each model."""
    for version, stage in (("1.0.0", "retired"), ("1.1.0", "retired"), ("1.2.0", "production"),
                           ("1.10.0-rc.1", "candidate")):
        for path, data, more in (
            ("model.safetensors", ENCODER, {"description": TEXT, "stage": stage, "accuracy": "0.93"}),
            ("config.json", b'{"hidden_size": 64}', {}), ("tokenizer.json", b'{"version": "1.0", "model": {}}', {}),
            ("onnx/model.onnx", b"\x08\x0a" * 500, {}),
        ):
            yield f"search/reviews-encoder/{version}/{path}", data, {"framework": "pytorch", **more}
    for version in ("2024-11-01", "2025-02-14"):
        yield (f"search/ranker/{version}/ranker.pkl", pickle.dumps(Surprise(), 4),
               {"framework": "sklearn", "description": "Learning to rank"})
    for minor in range(6):
        yield (f"vision/defects/0.{minor}.0/weights.safetensors",
               safetensors({"conv": [64, 3, 7, 7], "fc": [1000, minor + 9]}),
               {"framework": "pytorch", "description": "Surface defects, line 4"})
    yield "speech/wake-word/3.1/wake.tflite", b"\x1c\0\0\0TFL3" + bytes(2000), {"framework": "tensorflow"}
    yield "fraud/scorer/v7/scorer.txt", b"tree\nversion=v4\n", {"framework": "lightgbm"}
