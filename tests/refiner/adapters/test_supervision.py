"""Roboflow's supervision."""

import numpy as np
import pytest
import torch
from named_boxes import AFTER_NMS, BOXES, CLASS_NAMES, CLASSES, NAMES, SCORES

from iounet.detections import Detections
from iounet.errors import DataError
from iounet.refiner.adapters.supervision import refine, to_supervision

supervision = pytest.importorskip("supervision", reason="supervision is not installed")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:OpenCV")]

CATEGORIES = [{"id": 3, "name": "traffic light"}, {"id": 7, "name": "star"}]


def given(**more):
    more = {"confidence": SCORES.numpy().copy(), "data": {"class_name": np.array(NAMES)}} | more
    return supervision.Detections(BOXES.numpy().copy(), **more)


def test_classes_are_matched_by_name(refiner, pixels, expected, same):
    detections = given()
    better = refine(refiner, pixels, detections)
    same(better.xyxy, expected.boxes)
    same(better.data["predicted_iou"], expected.ious)
    same(better.data["predicted_iou_before"], expected.ious_before)
    assert better.xyxy.dtype == better.confidence.dtype == np.float32
    assert better.data["class_name"].tolist() == NAMES and better.confidence.tolist() == SCORES.tolist()
    assert np.array_equal(detections.xyxy, BOXES.numpy()) and set(detections.data) == {"class_name"}


def test_class_names_of_class_numbers(refiner, pixels, expected, same):
    detections = given(class_id=CLASSES.numpy(), data={})
    same(refine(refiner, pixels, detections, class_names=CLASS_NAMES).xyxy, expected.boxes)
    with pytest.raises(DataError, match="pass class_names"):
        refine(refiner, pixels, detections)


def test_class_agnostic_without_confidence(refiner, pixels, without_classes, same):
    detections = supervision.Detections(BOXES.numpy())
    better = refine(refiner, pixels, detections, class_agnostic=True)
    same(better.xyxy, without_classes.boxes)
    assert better.confidence is None and better.class_id is None
    with pytest.raises(DataError, match="class_agnostic=True"):
        refine(refiner, pixels, detections)


def test_no_detections(refiner, pixels):
    for nms in (None, "greedy"):
        better = refine(refiner, pixels, supervision.Detections.empty(), nms=nms)
        assert better.xyxy.shape == (0, 4) and better.data["predicted_iou"].shape == (0,)


def test_fields_stay_with_their_boxes(refiner, pixels, expected, same):
    masks = np.zeros((4, 50, 80), dtype=bool)
    masks[3, 1, 1] = True
    detections = given(
        class_id=np.array([5, 6, 7, 8]),
        tracker_id=np.array([10, 11, 12, 13]),
        mask=masks,
        data={"class_name": np.array(NAMES), "note": np.arange(4)},
        metadata={"camera": "left"},
    )
    better = refine(refiner, pixels, detections, nms="greedy")
    same(better.xyxy, expected.boxes[AFTER_NMS])
    same(better.data["predicted_iou"], expected.ious[AFTER_NMS])
    assert better.confidence.tolist() == [0.875, 0.75, 0.5]
    assert better.class_id.tolist() == [6, 8, 7] and better.tracker_id.tolist() == [11, 13, 12]
    assert better.mask[:, 1, 1].tolist() == [False, True, False]
    assert better.data["note"].tolist() == AFTER_NMS and better.metadata == {"camera": "left"}


def test_in_double_precision(refiner, pixels, expected):
    detections = supervision.Detections(
        BOXES.double().numpy(), confidence=SCORES.double().numpy(), data={"class_name": np.array(NAMES)}
    )
    better = refine(refiner, pixels, detections)
    assert better.xyxy.dtype == better.confidence.dtype == np.float64
    torch.testing.assert_close(torch.as_tensor(better.xyxy).float(), expected.boxes, rtol=0, atol=1e-3)


def test_to_supervision():
    own = Detections(BOXES[:3], torch.tensor([2, 0, 1]), SCORES[:3], torch.tensor([0.5, 0.75, 0.25]))
    found = to_supervision(own, CATEGORIES)
    assert found.data["class_name"].tolist() == ["star", "", "traffic light"] and found.class_id.tolist() == [1, -1, 0]
    assert np.array_equal(found.xyxy, BOXES[:3].numpy()) and found.confidence.tolist() == SCORES[:3].tolist()
    assert found.data["predicted_iou"].tolist() == [0.5, 0.75, 0.25]
