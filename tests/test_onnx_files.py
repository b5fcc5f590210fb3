"""Model files that OnnxRefiner loads, and one-line errors for files that it refuses."""

import json
import sys

import numpy as np
import pytest
from onnx_stand_ins import METADATA, write_model

from iounet.errors import CheckpointError, OptionError
from iounet.onnx import METADATA_KEY, OnnxRefiner


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "refiner.onnx", {METADATA_KEY: json.dumps(METADATA)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2 is newer than this version of iounet can read"),
        ({"kind": "detector"}, "an exported detector takes no boxes; export a refiner"),
        ({"format": "one"}, "the metadata 'iounet' cannot be read"),
        ({"min_size": None}, "the metadata 'iounet' cannot be read .*; export the model again"),
        ({"categories": [{"id": 1}]}, r"cannot be read \(KeyError: 'name'\)"),
        ({"nms": {"threshold": 2.0}}, r"cannot be read .*threshold must lie in \[0, 1\]; got 2\.0"),
        ({"nms": {"kernel": 2}}, "cannot be read .*kernel"),
    ],
)
def test_invalid_metadata(tmp_path, changes, message):
    path = write_model(tmp_path / "odd.onnx", {METADATA_KEY: json.dumps(METADATA | changes)})
    with pytest.raises(CheckpointError, match=rf"odd\.onnx: .*{message}"):
        OnnxRefiner(path)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_malformed_metadata(tmp_path, text):
    with pytest.raises(CheckpointError, match=r"odd\.onnx: the metadata 'iounet' cannot be read"):
        OnnxRefiner(write_model(tmp_path / "odd.onnx", {METADATA_KEY: text}))


def test_a_model_of_another_project(tmp_path):
    with pytest.raises(CheckpointError, match=r"other\.onnx: not exported by this project"):
        OnnxRefiner(write_model(tmp_path / "other.onnx", {}))


def test_a_file_that_is_missing_or_damaged(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.onnx: no such file"):
        OnnxRefiner(tmp_path / "nowhere.onnx")
    with pytest.raises(CheckpointError, match=r": no such file"):
        OnnxRefiner(tmp_path)
    damaged = tmp_path / "damaged.onnx"
    for content in (model.read_bytes()[:500], b"no model", b""):
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged\.onnx: "):
            OnnxRefiner(damaged)


def test_without_onnxruntime(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CheckpointError, match=r"needs onnxruntime; run pip install onnxruntime"):
        OnnxRefiner(model)


def test_threads_and_providers(model):
    with pytest.raises(OptionError, match="threads must be at least 1; got 0"):
        OnnxRefiner(model, threads=0)
    refiner = OnnxRefiner(str(model), threads=2, providers=["CPUExecutionProvider"])
    assert refiner.refine(np.zeros((50, 80, 3)), [[9, 9, 20, 20]], ["star"]).boxes.tolist() == [[12, 7, 23, 18]]
