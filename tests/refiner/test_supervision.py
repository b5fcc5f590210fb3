"""Boxes from Roboflow's supervision and back."""

import numpy as np
import pytest
import torch
from four_boxes import BOXES as FOUR_BOXES
from four_boxes import SCORES

from iounet.detections import Detections, RefinedDetections

supervision = pytest.importorskip("supervision", reason="supervision is not installed")
from iounet.refiner.supervision import from_supervision, to_supervision  # noqa: E402, needs supervision

pytestmark = pytest.mark.filterwarnings("ignore:OpenCV")

CATEGORIES = [{"id": 3, "name": "traffic light"}, {"id": 7, "name": "star"}]
BOXES = np.array([[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 70.0, 80.0], [0.0, 0.0, 9.0, 9.0]], dtype=np.float32)


def given(**more):
    return supervision.Detections(BOXES, confidence=np.array([0.5, 0.25, 0.75], dtype=np.float32), **more)


def test_classes_are_matched_by_name():
    names = np.array(["Traffic_Light", "zebra", "star"])
    boxes, labels, scores = from_supervision(
        given(class_id=np.array([9, 9, 9]), data={"class_name": names}), CATEGORIES
    )
    assert np.array_equal(boxes, BOXES) and labels.tolist() == [1, 0, 2] and scores.tolist() == [0.5, 0.25, 0.75]


def test_without_names_the_class_id_counts_from_zero():
    assert from_supervision(given(class_id=np.array([0, 1, 2])), CATEGORIES)[1].tolist() == [1, 2, 0]


def test_without_classes_and_confidence():
    _, labels, scores = from_supervision(supervision.Detections(BOXES), CATEGORIES)
    assert labels.tolist() == [0, 0, 0] and scores.tolist() == [1.0, 1.0, 1.0]


def test_nothing():
    boxes, labels, scores = from_supervision(supervision.Detections.empty(), CATEGORIES)
    assert boxes.shape == (0, 4) and labels.shape == scores.shape == (0,)


def test_what_belongs_to_a_box_goes_with_it():
    """After NMS, which left the rows 2 and 0."""
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[2, 1, 1] = True
    before = given(
        class_id=np.array([5, 6, 7]), tracker_id=np.array([10, 11, 12]), mask=masks, data={"note": np.arange(3)}
    )
    refined = RefinedDetections(
        torch.tensor([[1.0, 1.0, 8.0, 8.0], [2.0, 2.0, 31.0, 41.0]]),
        torch.tensor([2, 1]),
        torch.tensor([0.7, 0.6]),
        torch.tensor([0.9, 0.8]),
        ious_before=torch.tensor([0.5, 0.4]),
        stops=torch.tensor([0, 1]),
        index=torch.tensor([2, 0]),
    )
    after = to_supervision(refined, CATEGORIES, given=before)
    assert after.xyxy.tolist() == refined.boxes.tolist() and after.confidence.tolist() == pytest.approx([0.7, 0.6])
    assert after.class_id.tolist() == [7, 5] and after.tracker_id.tolist() == [12, 10]
    assert after.mask[0, 1, 1] and not after.mask[1].any() and after.data["note"].tolist() == [2, 0]
    assert after.data["predicted_iou"].tolist() == pytest.approx([0.9, 0.8])
    assert after.data["predicted_iou_before"].tolist() == pytest.approx([0.5, 0.4])
    assert np.array_equal(before.xyxy, BOXES) and "predicted_iou" not in before.data


def test_detections_of_the_refiner_itself():
    own = Detections(torch.from_numpy(BOXES), torch.tensor([2, 1, 2]), torch.rand(3), torch.rand(3))
    after = to_supervision(own, CATEGORIES)
    assert after.data["class_name"].tolist() == ["star", "traffic light", "star"]
    assert after.class_id.tolist() == [1, 0, 1]
    boxes, labels, scores = from_supervision(after, CATEGORIES)
    assert np.array_equal(boxes, BOXES) and labels.tolist() == [2, 1, 2] and np.array_equal(scores, own.scores.numpy())


def test_a_class_unknown_to_the_refiner_has_no_name():
    found = Detections(torch.from_numpy(BOXES), torch.tensor([2, 0, 1]), torch.rand(3), torch.rand(3))
    after = to_supervision(found, CATEGORIES)
    assert after.data["class_name"].tolist() == ["star", "", "traffic light"] and after.class_id.tolist() == [1, -1, 0]


def test_there_and_back_by_the_refiner(refiner, image):
    detections = supervision.Detections(
        FOUR_BOXES.numpy(), confidence=SCORES.numpy(), data={"class_name": np.array(["star", "cross", "zebra", "star"])}
    )
    refined = refiner.refine(image, *from_supervision(detections, refiner.categories))
    assert refined.labels.tolist() == [2, 1, 0, 2]
    after = to_supervision(refined, refiner.categories, given=detections)
    assert np.array_equal(after.xyxy, refined.boxes.numpy()) and not np.array_equal(after.xyxy, FOUR_BOXES.numpy())
    assert after.data["class_name"].tolist() == ["star", "cross", "zebra", "star"]
