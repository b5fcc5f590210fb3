"""OnnxRefiner gives the same results as IoURefiner; both run on equivalent stand-ins for the model."""

import json
import re
import subprocess
import sys
import warnings
from dataclasses import fields

import numpy as np
import pytest
import torch
from onnx_stand_ins import CATEGORIES, METADATA, StandInDetector, write_model
from PIL import Image

from iounet import IoURefiner
from iounet.errors import OptionError
from iounet.onnx import METADATA_KEY, OnnxRefiner
from iounet.postprocess import NMSOptions, Postprocessing, Stop

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # the category of NumPy's warnings


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "refiner.onnx", {METADATA_KEY: json.dumps(METADATA)})


@pytest.fixture
def refiner(model):
    return OnnxRefiner(model, threads=1)


@pytest.fixture
def in_torch():
    return IoURefiner(StandInDetector(), CATEGORIES)


IMAGE = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
RED = np.float32(IMAGE[0, -1, 0]) / 255
BOXES = [[8.0, 9.0, 40.0, 44.0], [30.0, 10.0, 75.0, 48.0], [2.0, 3.0, 12.0, 15.0], [20.0, 20.0, 60.0, 30.0]]
LABELS = [2, 1, 0, 2]
SCORES = [0.25, 0.875, 0.5, 0.75]
# Two clusters of three boxes, one box of the second cluster with another class, and a box off the image.
HEAPS = [[8.0, 9.0, 40.0, 44.0], [9.0, 9.0, 41.0, 43.0], [8.0, 10.0, 40.0, 45.5], [44.0, 8.0, 76.0, 46.0],
         [45.0, 8.0, 77.0, 45.0], [44.0, 9.0, 76.0, 48.0], [90.0, 10.0, 99.0, 20.0]]  # fmt: skip
CLASSES = [1, 1, 1, 0, 0, 3, 1]
HEAP_SCORES = [0.3, 0.9, 0.6, 0.2, 0.1, 0.5, 1.0]
THIN = np.zeros((1, 5000, 3), np.uint8)


class TestByHand:
    def test_known_classes_move_and_others_stay(self, refiner):
        refined = refiner.refine(IMAGE, BOXES, LABELS, SCORES)
        assert refined.boxes.tolist() == [[11, 7, 43, 42], [33, 8, 78, 46], [2, 3, 12, 15], [23, 18, 63, 28]]
        assert refined.labels.tolist() == LABELS and refined.scores.tolist() == SCORES
        np.testing.assert_allclose(refined.ious_before, RED - np.array([35, 38, 12, 10]) / 256, rtol=1e-6)
        np.testing.assert_allclose(refined.ious, 1.25 - refined.ious_before, rtol=1e-6)
        assert refined.stops.tolist() == [Stop.STEPS, Stop.STEPS, Stop.CONVERGED, Stop.STEPS]
        assert refined.index.tolist() == [0, 1, 2, 3] and len(refined) == 4
        dtypes = [getattr(refined, field.name).dtype for field in fields(refined)]
        assert dtypes == ["float32", "int64", "float32", "float32", "float32", "int64", "int64"]

    def test_iou_guided_nms(self, refiner):
        refined = refiner.refine(IMAGE, HEAPS, CLASSES, HEAP_SCORES, nms="iou_guided")
        assert refined.index.tolist() == [1, 5, 4]  # the flattest box of each cluster and class, by descending score
        assert refined.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
        assert refined.boxes.tolist() == [[12, 7, 44, 41], [47, 7, 79, 46], [45, 8, 77, 45]]

    def test_an_unmoved_box_keeps_every_bit_of_double_precision(self, refiner):
        boxes = np.array(BOXES) + np.pi / 10
        refined = refiner.refine(IMAGE, boxes)
        assert refined.boxes.dtype == refined.ious.dtype == np.float64
        assert (refined.boxes == boxes).all()

    def test_the_result_is_a_copy(self, refiner):
        boxes, labels, scores = np.array([[90.0, 60, 99, 70]]), np.array([1]), np.ones(1)
        refined = refiner.refine(IMAGE, boxes, labels, scores)
        refined.boxes[:], refined.labels[:], refined.scores[:] = 0, 0, 0
        assert boxes[0, 0] == 90 and labels[0] == 1 and scores[0] == 1

    def test_attributes(self, refiner):
        assert refiner.categories == CATEGORIES
        assert repr(refiner) == "OnnxRefiner(classes: cross, star, triangle)"


def answer(refiner, *arguments, **options):
    """Columns, their dtypes, and the warnings raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refined = refiner.refine(*arguments, **options)
    columns = {field.name: np.asarray(getattr(refined, field.name)) for field in fields(refined)}
    # Plain UserWarnings come from torch itself, for example about slow lists of arrays.
    warned = [(warning.category, str(warning.message)) for warning in caught if warning.category is not UserWarning]
    return columns, {name: str(values.dtype) for name, values in columns.items()}, warned


def complaint(refiner, *arguments):
    """Type and message of the error raised. Texts from torch and NumPy differ, so "reason" replaces them."""
    with pytest.raises((TypeError, ValueError)) as error:
        refiner.refine(*arguments)
    message = str(error.value).replace("a PIL image, a NumPy array or a tensor", "a PIL image or a NumPy array")
    return error.type, re.sub(r"got (\w+) \(.+\)$", r"got \1 (reason)", message, flags=re.DOTALL)


def assert_same_answer(refiner, in_torch, *arguments, **options):
    expected, *expected_facts = answer(in_torch, *arguments, **options)
    found, *facts = answer(refiner, *arguments, **options)
    assert facts == expected_facts
    for name, values in expected.items():
        rounds = name.startswith("ious") or (name == "scores" and options.get("nms") == "soft")
        np.testing.assert_allclose(found[name], values, rtol=1e-6 if rounds else 0, err_msg=name)


@pytest.mark.parametrize(
    "arguments",
    [
        (IMAGE, BOXES, LABELS, SCORES),
        (IMAGE, BOXES),
        (IMAGE, np.array(BOXES), np.array(LABELS, np.uint16), np.array(SCORES)),
        (IMAGE, np.array(BOXES, np.float16), LABELS, np.array(SCORES, np.float16)),
        (IMAGE, np.array(BOXES).astype(int), LABELS, [1, 0, 1, True]),
        (IMAGE, list(np.array(BOXES)), LABELS, SCORES),
        (IMAGE, [tuple(box) for box in BOXES], tuple(LABELS), tuple(SCORES)),
        (IMAGE, [list(map(np.float64, box)) for box in BOXES], LABELS, SCORES),
        (IMAGE, torch.tensor(BOXES, dtype=torch.float64), torch.tensor(LABELS), torch.tensor(SCORES)),
        (IMAGE, BOXES, ["star", "Cross ", "TRIANGLE", 2]),
        (IMAGE, BOXES, np.array(["star", 1, 3, 2], object)),
        (IMAGE, BOXES, np.array(["star", "cross", "star", "cross"])),
        (IMAGE, BOXES, [True, False, True, True]),
        (IMAGE, [], [], []),
        (IMAGE, np.zeros((0, 4)), [], []),
        (IMAGE, np.zeros(0), None, None),
        (IMAGE, [[]]),
        (IMAGE, [[40, 10, 300, 900], [-50, -40, 30, 20], [70, -5, 90, 60]], [1, 2, 0]),
        (IMAGE, [[200, 10, 240, 30], [-50, -40, -10, -5], [10, 10, 10, 30], [80, 0, 90, 50], [8, 9, 40, 44]], [1] * 5),
        (IMAGE, [[30, 30, 20, 20], [5, 5, 9, 9]], [1, 1]),
        (IMAGE, [[30, 30, 20, 20]], [1]),
        (IMAGE, [[0.1, 0.1, 0.5, 0.75], [0.5, 0.5, 1.0, 1.0]], [1, 2]),
        (IMAGE, [[0, 0, 0, 0]]),
        (IMAGE, [[0, 0, 1, 1], [3, 3, 9, 9]]),
        (IMAGE, [[77.5, 0.0, 80.0, 50.0], [0.0, 0.0, 9.0, 1.5]], [1, 1]),  # move partly and entirely off the image
        (IMAGE, [[-3e38, -3e38, 3e38, 3e38]], [1]),
        (IMAGE, np.array([[1 / 3, 1 / 7, 9.1, 9.3], [-1 / 3, 1 / 7, 90.1, 9.3]]), [0, 0]),
        (IMAGE, np.array([[1.0, 1.0, 1.0 + 1e-12, 9.0]]), [0]),  # has an area only in double precision
        (IMAGE.astype(np.float32) / 255, BOXES, LABELS),
        (IMAGE / 255, BOXES, LABELS),
        ((IMAGE / 255).astype(np.float16), BOXES, LABELS),
        (IMAGE[..., ::-1], BOXES, LABELS),
        (IMAGE.transpose(1, 0, 2)[::2], BOXES, LABELS),
        (Image.fromarray(IMAGE), BOXES, LABELS),
        (Image.fromarray(IMAGE).convert("L"), BOXES, LABELS),
        (Image.fromarray(IMAGE).convert("RGBA"), BOXES, LABELS),
        (Image.fromarray(IMAGE).convert("P"), BOXES, LABELS),
        (np.zeros((1, 1, 3), np.uint8), [[0, 0, 1, 1]], [1]),
        (THIN, [[3.0, 0.0, 900.0, 1.0], [0.0, 0.0, 1.0, 1.0], [-4.0, -4.0, 8.0, 9.0]], [1, 2, 1]),
        (np.zeros((1, 96, 3)), [[3.0, 0.0, 90.0, 1.0]], [1]),
        (np.zeros((1, 97, 3)), [[3.0, 0.0, 90.0, 1.0]], [1]),
        (np.zeros((0, 7, 3)), [[0.0, 0.0, 5.0, 5.0]]),
        (np.zeros((0, 0, 3), np.uint8), [[0.0, 0.0, 5.0, 5.0]]),
    ],
)
@pytest.mark.parametrize("nms", [None, "greedy", "soft", "iou_guided"])
def test_valid_input(refiner, in_torch, arguments, nms):
    assert_same_answer(refiner, in_torch, *arguments, nms=nms)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.zeros((3, 50, 80)), BOXES),
        (np.zeros((50, 80), np.uint8), BOXES),
        (np.zeros((50, 80, 4), np.uint8), BOXES),
        (np.full((50, 80, 3), 255.0), BOXES),
        (np.full((50, 80, 3), -2.1), BOXES),
        (np.full((50, 80, 3), np.nan), BOXES),
        (np.zeros((50, 80, 3), np.int64), BOXES),
        (np.zeros((50, 80, 3), np.uint16), BOXES),
        (np.zeros((50, 80, 3), bool), BOXES),
        (np.zeros((50, 80, 3), object), BOXES),
        (Image.fromarray(np.zeros((50, 80), np.uint16)), BOXES),
        (Image.fromarray(np.zeros((50, 80), np.float32)), BOXES),
        ("photo.jpg", BOXES),
        ([[0]], BOXES),
        (IMAGE, None),
        (IMAGE, "boxes"),
        (IMAGE, 3.0),
        (IMAGE, ["1 2 3 4"]),
        (IMAGE, [[1, 2, 3, 4], [1, 2]]),
        (IMAGE, np.array([["1", "2", "3", "4"]])),
        (IMAGE, torch.tensor(BOXES).tolist()[0]),
        (IMAGE, [box[:3] for box in BOXES]),
        (IMAGE, [BOXES]),
        (IMAGE, [BOXES[0], [np.nan, 1, 2, 3]]),
        (IMAGE, [BOXES[0], BOXES[0], [0, 1, np.inf, 3], [np.nan] * 4]),
        (IMAGE, np.array([[-np.inf, 0, 5, 5]])),
        (IMAGE, [[0, 0, 1e39, 5]]),
        (IMAGE, BOXES, "star"),
        (IMAGE, BOXES, [None] * 4),
        (IMAGE, BOXES, ["zebra", "star", "lion", "zebra"]),
        (IMAGE, BOXES, np.array(["zebra", "star", "lion", "zebra"])),
        (IMAGE, BOXES, [1, 2, 3, 4]),
        (IMAGE, BOXES, [-1, 1, 0, 2]),
        (IMAGE, BOXES, [1.0, 2.0, 1.0, 1.0]),
        (IMAGE, BOXES, np.ones(4)),
        (IMAGE, BOXES, 1.5),
        (IMAGE, BOXES, 1),
        (IMAGE, BOXES, [1, 2]),
        (IMAGE, [], [1]),
        (IMAGE, BOXES, [[1, 2, 3, 1]]),
        (IMAGE, BOXES, None, ["high"] * 4),
        (IMAGE, BOXES, None, [0.5]),
        (IMAGE, BOXES, None, 0.5),
        (IMAGE, [[np.nan] * 4], [9]),  # the first of two faults
        (IMAGE, BOXES[0], ["zebra"]),
    ],
)
def test_invalid_input(refiner, in_torch, arguments):
    assert complaint(refiner, *arguments) == complaint(in_torch, *arguments)


@pytest.mark.parametrize("nms", ["greedy", "soft", "iou_guided"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ranking", ["iou", "score_times_iou"])
def test_nms(tmp_path, in_torch, nms, dtype, ranking):
    options = {"threshold": 0.6, "ranking": ranking, "soft_sigma": 0.3}
    model = write_model(tmp_path / "refiner.onnx", {METADATA_KEY: json.dumps(METADATA | {"nms": options})})
    in_torch.detector.postprocessing = Postprocessing(nms=NMSOptions(**options))
    boxes, scores = np.array(HEAPS, dtype), np.array(HEAP_SCORES, dtype)
    assert_same_answer(OnnxRefiner(model), in_torch, IMAGE, boxes, CLASSES, scores, nms=nms)


def test_nms_returns_all_boxes_that_it_keeps(refiner):
    """A detector would keep only the best 100."""
    corners = np.stack(np.meshgrid(np.arange(15), np.arange(8)), -1).reshape(-1, 2) * 5
    assert len(refiner.refine(IMAGE, np.hstack([corners, corners + 5]), nms="greedy")) == 120


@pytest.mark.parametrize(("image", "boxes"), [(IMAGE, []), (IMAGE, [[90, 10, 99, 20]]), (THIN, [[0, 0, 9, 1]])])
def test_the_model_does_not_run_without_a_visible_box(refiner, image, boxes):
    refiner._session = None
    assert refiner.refine(image, boxes).stops.tolist() == [Stop.UNPLACED] * len(boxes)
    assert len(refiner.refine(image, boxes, nms="soft")) == 0


def test_an_unknown_nms_is_reported_first(refiner):
    with pytest.raises(OptionError, match="^nms must be one of greedy, soft, iou_guided; got 'fast'"):
        refiner.refine("photo.jpg", BOXES, nms="fast")


def test_it_needs_neither_torch_nor_pillow(model):
    code = f"""
import sys
sys.modules |= dict.fromkeys(["torch", "torchvision", "PIL"])  # importing one raises ImportError
import numpy as np
from iounet.onnx import OnnxRefiner
refiner = OnnxRefiner({str(model)!r})
for nms in (None, "greedy", "soft", "iou_guided"):
    print(len(refiner.refine(np.zeros((50, 80, 3), np.uint8), {BOXES}, ["star", 1, 0, 2], nms=nms)))
try:
    refiner.refine("photo.jpg", [])
except TypeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[:4] == ["4"] * 4, done.stderr
    assert done.stdout.splitlines()[4].startswith("an image must be a PIL image or a NumPy array, not str")
