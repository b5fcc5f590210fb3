"""A refiner's ONNX file: agrees with PyTorch in ONNX Runtime, and contains only standard operators."""

import json
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from iounet.checks import BoxWarning
from iounet.onnx import METADATA_KEY, OnnxRefiner
from iounet.postprocess import Stop

onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from iounet.export import checking, graphs, onnx_file  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = [
    "energy",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("energy of all classes", "iou as in the paper")),
]
OF_IMAGE = (
    [[5.0, 8, 40, 30], [10, 10, 20, 45], [-20, -5, 30, 25], [50, 20, 90, 60], [0, 0, 80, 50], [30.5, 20.25, 33, 22]]
    # No area inside the image.
    + [[20, 20, 10, 30], [90, 10, 99, 20], [-9, 4, 0, 20], [30, 30, 30, 30]]
)
LABELS = [1, 2, 3, 0, 1, 0, 1, 2, 0, 3]


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 7, 10, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(50, 80), mode="bilinear")[0]
    return (smooth * 255).byte().permute(1, 2, 0).numpy()


@pytest.fixture(autouse=True)
def no_warnings_about_boxes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoxWarning)
        yield


@pytest.mark.parametrize("name", ALL)
def test_results_agree_with_pytorch(name, exported, image):
    refiner, path = exported(name)
    found = OnnxRefiner(path)
    for count in (len(OF_IMAGE), 1, 0):
        boxes, labels = np.array(OF_IMAGE, np.float32).reshape(-1, 4)[:count], np.array(LABELS)[:count]
        expected = refiner.refine(image, boxes, labels)
        actual = found.refine(image, boxes, labels)
        np.testing.assert_allclose(actual.boxes, expected.boxes, atol=5e-3)
        np.testing.assert_allclose(actual.ious_before, expected.ious_before, atol=1e-5)
        np.testing.assert_allclose(actual.ious, expected.ious, atol=1e-4)
        np.testing.assert_array_equal(actual.stops, expected.stops)
    refined = refiner.refine(image, OF_IMAGE, LABELS)
    moved = (refined.boxes[:6] - torch.tensor(OF_IMAGE[:6])).abs().max()
    assert moved > 1
    assert (refined.ious[:6] - refined.ious_before[:6]).abs().max() > 1e-3


def test_images_of_any_size(exported):
    refiner, path = exported("energy")
    difference = checking.compare(refiner, checking.answers_of(OnnxRefiner(path)), checking.random_images())
    assert difference.passes and difference.boxes == 4 * checking.BOXES_PER_IMAGE, difference


def test_an_image_that_is_too_thin(exported):
    _, path = exported("energy")
    image = np.zeros((1, 3, 1, 5000), np.float32)
    boxes = np.array([[10, 0, 200, 1]], np.float32)
    session = onnxruntime.InferenceSession(path)
    moved, before, after, stops = session.run(None, {"image": image, "boxes": boxes, "labels": np.array([1])})
    assert np.array_equal(moved, boxes) and before == after == 0 and stops == Stop.UNPLACED


def test_boxes_that_are_not_finite_are_unchanged(exported, image):
    # OnnxRefiner and IoURefiner reject such boxes; callers in other languages may not check.
    _, path = exported("energy")
    pixels = (image.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    boxes = np.array([[5, 8, 40, 30], [np.nan, 1, 20, 20], [1, 2, 30, np.nan]], np.float32)
    session = onnxruntime.InferenceSession(path)
    moved, _, after, stops = session.run(None, {"image": pixels, "boxes": boxes, "labels": np.array([1, 1, 1])})
    alone, *_ = session.run(None, {"image": pixels, "boxes": boxes[:1], "labels": np.array([1])})
    np.testing.assert_allclose(moved[0], alone[0], atol=1e-4)
    np.testing.assert_array_equal(moved[1:], boxes[1:])
    assert list(stops[1:]) == [Stop.UNPLACED] * 2 and list(after[1:]) == [0, 0]


def test_more_boxes_than_are_refined_at_once(exported, image):
    refiner, path = exported("energy")
    boxes = np.tile(np.array(OF_IMAGE[:6], np.float32), (40, 1))[: 2 * onnx_file.BOXES_AT_ONCE + 3]
    labels = np.arange(len(boxes)) % 4
    expected, actual = refiner.refine(image, boxes, labels), OnnxRefiner(path).refine(image, boxes, labels)
    np.testing.assert_allclose(actual.boxes, expected.boxes, atol=5e-3)
    np.testing.assert_allclose(actual.ious, expected.ious, atol=1e-4)


def test_contains_only_standard_operators_and_each_weight_once(exported):
    refiner, path = exported("energy")
    model = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", onnx_file.OPSET)]
    assert len(model.functions) == 0

    nodes = onnx_ir.traversal.RecursiveGraphIterator(onnx_ir.from_proto(model).graph)
    assert {node.domain for node in nodes} == {""}
    detector = refiner.detector
    used = (detector.backbone, detector.iou_head, detector.energy_head)
    weights = sum(parameter.numel() for module in used for parameter in module.parameters())
    # Everything except the weights takes at most 300 kB.
    assert 4 * weights < path.stat().st_size < 4 * weights + 300_000


def test_labels_out_of_range_are_unknown(exported, image):
    _, path = exported("energy")
    pixels = (image.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    boxes = np.array(OF_IMAGE[:3], np.float32)
    session = onnxruntime.InferenceSession(path)
    unknown, other = (
        session.run(None, {"image": pixels, "boxes": boxes, "labels": np.array(labels)})
        for labels in ([0, 0, 0], [-1, 4, 10**9])
    )
    for one, two in zip(unknown, other, strict=True):
        np.testing.assert_array_equal(one, two)


def test_names_of_dimensions(exported):
    _, path = exported("energy")
    session = onnxruntime.InferenceSession(path)
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {
        **{"image": [1, 3, "H", "W"], "boxes": ["N", 4], "labels": ["N"]},
        **{"refined_boxes": ["N", 4], "ious_before": ["N"], "ious": ["N"], "stops": ["N"]},
    }


def test_metadata(exported):
    refiner, path = exported("energy")
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    description = json.loads(metadata[METADATA_KEY])
    assert description["categories"] == refiner.categories
    assert description["num_steps"] == 6 and description["objective"] == "energy"


def test_a_wrong_file_fails_the_check(exported, make_refiner):
    _, path = exported("energy")
    refiner = make_refiner("energy")
    refiner.detector.postprocessing = replace(
        refiner.detector.postprocessing, refinement=replace(refiner.detector.postprocessing.refinement, num_steps=5)
    )
    assert not checking.compare(refiner, checking.answers_of(OnnxRefiner(path)), checking.random_images()).passes


def test_loops_contain_no_invariant_nodes(exported):
    _, path = exported("energy")
    graph = onnx_ir.load(path).graph
    before = len(list(graph))
    graphs.hoist_invariants(graph)
    assert len(list(graph)) == before


def test_the_tool_names_a_missing_package(call, monkeypatch, tmp_path):
    from tools import export_onnx as tool

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "iounet.export.onnx_file")
    monkeypatch.delitem(sys.modules, "prroi_pool.onnx")
    weights = Path(__file__).parents[2] / "weights" / "cards.pth"
    message = call(tool, "--weights", weights, "--output", tmp_path / "x.onnx")
    assert message == "exporting needs onnxscript, which is not installed; run pip install onnx onnxscript onnxruntime"


def test_the_tool_exports_and_checks(call, exported, monkeypatch, tmp_path, capsys):
    from tools import export_onnx as tool

    refiner, path = exported("energy")
    monkeypatch.setattr(tool.IoURefiner, "from_checkpoint", lambda path: refiner)
    monkeypatch.setattr(onnx_file, "export_onnx", lambda refiner, target, **options: shutil.copy(path, target))
    output = tmp_path / "refiner.onnx"
    assert call(tool, "--weights", "x", "--output", output) is None
    assert call(tool, "--weights", "x", "--check", output) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{output}: {path.stat().st_size / 1e6:.1f} MB"
    assert [line.split()[-1] for line in lines[2:4]] == ["0", "0"] and lines[-1].startswith("passed: ")
