"""Exported files with smaller weights: their content and their results."""

import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from iounet import IoURefiner  # noqa: E402
from iounet.errors import CheckpointError, OptionError  # noqa: E402
from iounet.export.onnx_file import export_onnx  # noqa: E402
from iounet.export.weights import shrink_weights  # noqa: E402
from iounet.onnx import OnnxRefiner  # noqa: E402
from iounet.refiner.pretrained import MODEL_FILE  # noqa: E402
from tools import onnx_accuracy  # noqa: E402


def a_model(weights):
    """Model of y = x Wᵀ, or y = x W if not ``forth``; both subgraphs read the same initializer."""
    text = """
        <ir_version: 10, opset_import: ["": 18]>
        products (float[N, I] x, bool forth) => (float[N, M] y) {
            y = If (forth) <
                then_branch = forward () => (float[N, M] there) { there = Gemm <transB = 1> (x, w) },
                else_branch = backward () => (float[N, M] back) { back = MatMul (x, w) }
            >
        }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return ir.from_proto(proto)


def run(model, *inputs):
    ir.passes.common.NameFixPass()(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(("x", "forth"), inputs, strict=True)))[0]


@pytest.mark.parametrize("forth", [True, False])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        # 2049 lies between the float16 numbers 2048 and 2050 and is rounded to even.
        ("float16", [[127.0, 0.5, -12.75], [0.0, 0.0, 0.0], [2.0**-3, 2048.0, 1.0]]),
        # The steps of the rows are 1, arbitrary, and 2049 / 127 = 16.13; 0.5 and 12.75 become 0 and 13.
        ("int8", [[127.0, 0.0, -13.0], [0.0, 0.0, 0.0], [0.0, 2049.0, 0.0]]),
    ],
)
def test_weights_are_rounded_to_the_stored_dtype(dtype, expected, forth):
    weights = np.array([[127.0, 0.5, -12.75], [0.0, 0.0, 0.0], [2.0**-3, 2049.0, 1.0]], np.float32)
    model = a_model(weights)
    shrink_weights(model.graph, dtype)
    found = run(model, np.eye(3, dtype=np.float32), np.array(forth))
    np.testing.assert_allclose(found, np.transpose(expected) if forth else expected, rtol=1e-6)


def test_weights_that_overflow_float16_are_rejected():
    model = a_model(np.full((3, 3), 1e5, np.float32))
    with pytest.raises(CheckpointError, match="w has values that overflow float16; choose int8 or float32"):
        shrink_weights(model.graph, "float16")


def test_an_unknown_dtype_is_rejected():
    with pytest.raises(OptionError, match="weights_dtype must be one of float32, float16, int8; got 'int4'"):
        shrink_weights(a_model(np.ones((3, 3), np.float32)).graph, "int4")


@pytest.fixture(scope="module")
def refiner(build_tiny, tiny_cfg, dataset):
    """A tiny refiner with random weights, for the categories of the synthetic data set."""
    categories = json.loads((dataset / "annotations" / "val.json").read_text())["categories"]
    settings = {"MODEL.ENERGY_HEAD.LOSS": "nce", "TEST.REFINE.OBJECTIVE": "energy"}
    settings |= {"TEST.REFINE.STEP_POLICY": "backtracking", "MODEL.NUM_CLASSES": len(categories)}
    return IoURefiner(build_tiny(settings), categories, tiny_cfg(settings).dump())


@pytest.fixture(scope="module")
def files(refiner, one_thread, tmp_path_factory):
    """dtype → exported file of the refiner."""
    paths = {dtype: tmp_path_factory.mktemp("files") / f"{dtype}.onnx" for dtype in ("float32", "float16", "int8")}
    for dtype, path in paths.items():
        export_onnx(refiner, path, weights_dtype=dtype)
    return paths


def weights_of(path):
    """Return name → values of the initializers with more than one dimension."""
    graph = onnx.load(path).graph
    return {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer if len(value.dims) > 1}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bytes_saved"), [("float16", 2), ("int8", 3)])
def test_files_shrink_with_their_weights(files, dtype, bytes_saved):
    stored = {name: values for name, values in weights_of(files[dtype]).items() if name.endswith(f"_{dtype}")}
    assert {str(values.dtype) for values in stored.values()} == {dtype}
    heads = {
        f"detector.{head}_head.mlp.{layer}.weight_{dtype}" for head in ("iou", "energy") for layer in ("fc6", "fc7")
    }
    assert heads <= set(stored) and "detector.backbone.fpn.layer_blocks.0.0.weight_" + dtype in stored
    count = sum(values.size for values in stored.values())
    before, after = (files[name].stat().st_size for name in ("float32", dtype))
    # Tolerance for two nodes, a scale per channel, and longer names.
    assert bytes_saved * count - 700 * len(stored) - 4 * 12_000 < before - after < bytes_saved * count
    assert after < 1.3 * before * (4 - bytes_saved) / 4


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("int8", 2e-2)])
def test_results_change_little(files, dtype, tolerance):
    image = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    boxes = np.array([[10, 10, 40, 44], [5, 20, 60, 60], [0, 0, 30, 63]], np.float32)
    exact, rounded = (
        OnnxRefiner(files[name], threads=1).refine(image, boxes, [1, 2, 3]) for name in ("float32", dtype)
    )
    difference = np.abs(rounded.ious_before - exact.ious_before).max()
    assert 0 < difference < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_weights_are_restored_once_at_loading(files, dtype, tmp_path):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(files[dtype], options, ["CPUExecutionProvider"])
    loaded = weights_of(tmp_path / "optimized.onnx")
    assert not {name for name in loaded if name.endswith(f"_{dtype}")}
    assert {str(values.dtype) for name, values in loaded.items() if "weight" in name} == {"float32"}


@pytest.mark.slow
def test_the_tool_compares_accuracy_with_the_checkpoint(refiner, files, dataset, call, tmp_path, capsys):
    refiner.save_pretrained(tmp_path)
    words = [dataset / "annotations" / "val.json", "--images", dataset / "val", "--weights", tmp_path / MODEL_FILE]
    words += ["--onnx", files["float32"], files["int8"], "--output", tmp_path / "table.json"]
    assert call(onnx_accuracy, *words) is None
    table = json.loads((tmp_path / "table.json").read_text())["table"]
    assert list(table) == ["not refined", "PyTorch", "float32.onnx", "int8.onnx"]
    assert table["float32.onnx"]["MB"] == files["float32"].stat().st_size / 1e6
    # Boxes are jittered to IoUs uniform over [0.6, 0.9].
    assert table["not refined"]["IoU of loose boxes"] == pytest.approx(0.75, abs=0.02)
    for column in ("IoU of loose boxes", "error of the predicted IoU"):
        assert table["float32.onnx"][column] == pytest.approx(table["PyTorch"][column], abs=1e-4)
        assert table["int8.onnx"][column] != table["float32.onnx"][column]
    assert "| int8.onnx | " in capsys.readouterr().out
