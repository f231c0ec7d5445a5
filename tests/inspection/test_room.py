"""The room of inspection: what its settings may be; and that the server works without it, and without the others."""

import pytest
from support.rooms import works_without

from model_server import create_app
from server.settings import Settings


@pytest.mark.parametrize("value", [",", "onnx,", "ONNX", "onnx;gguf", "safe", " "])
def test_a_format_that_is_not_known_is_named_with_those_that_are(store, value):
    with pytest.raises(ValueError, match=r"^MODEL_ALLOWED_FORMATS has '.*': use safetensors, gguf"):
        create_app(store, Settings.from_env({"MODEL_ALLOWED_FORMATS": value}))


WITHOUT = """
    assert put.json["format"] is None, put
    assert app.get("/models/p?format=tar", status=400).json["detail"].startswith("format 'tar' is not known")
    for setting in ({"MODEL_PICKLE": "deny"}, {"MODEL_ALLOWED_FORMATS": "onnx"}):
        try:
            model_server.create_app(store, Settings.from_env(setting))
        except ValueError as error:
            assert "need the package inspection" in str(error)
        else:
            raise AssertionError("a setting that nobody carries out was taken")
"""


def test_without_the_rooms_and_their_lines_all_the_rest_works(tmp_path):
    works_without(tmp_path, WITHOUT, "inspection", "folders", "hub", "page", "resumption")
