"""FiftyOne's Detections, and stand-ins for them, because installing FiftyOne takes a gigabyte.

The stand-ins have the behaviour of ``fiftyone.Detections`` and ``fiftyone.Detection`` that the adapter uses: arbitrary
attributes, which can be set as items, and deep copies with new ids. If FiftyOne is installed, the tests also run with
its classes.
"""

import copy
from itertools import count

import numpy as np
import pytest
import torch
from named_boxes import AFTER_NMS, BOXES, NAMES, SCORES
from PIL import Image

from iounet.errors import DataError
from iounet.refiner.adapters.fiftyone import mask_in_place, refine

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = count()
SIZE = torch.tensor([80.0, 50.0, 80.0, 50.0])  # width, height, width, height of the image


class StandInDetection:
    def __init__(self, **fields):
        self.id = next(IDS)
        self.confidence = self.mask = None
        self.__dict__ |= fields

    def __setitem__(self, name, value):
        setattr(self, name, value)


class StandInDetections:
    def __init__(self, **fields):
        self.__dict__ |= fields

    def copy(self):
        new = copy.deepcopy(self)
        for detection in new.detections:
            detection.id = next(IDS)
        return new


@pytest.fixture(params=["stand-ins", "fiftyone"])
def given(request):
    """A function that makes Detections of the four boxes."""
    if request.param == "stand-ins":
        detections, detection = StandInDetections, StandInDetection
    else:
        fiftyone = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
        detections, detection = fiftyone.Detections, fiftyone.Detection

    def one(row, **more):
        x1, y1, x2, y2 = (BOXES[row].double() / SIZE).tolist()
        fields = {"label": NAMES[row], "confidence": float(SCORES[row]), "tags": [f"tag{row}"], "note": row}
        fields |= {"bounding_box": [x1, y1, x2 - x1, y2 - y1]}
        return detection(**fields | more)

    def given(rows=range(4), **more):
        return detections(detections=[one(row, **more) for row in rows], source="camera")

    return given


def boxes_of(detections):
    """Return the boxes in pixels, float32 [N, 4]."""
    relative = torch.tensor([detection.bounding_box for detection in detections.detections])
    return torch.cat([relative[:, :2], relative[:, :2] + relative[:, 2:]], 1) * SIZE


def test_only_boxes_change(refiner, pixels, given, expected, same):
    detections = given()
    better = refine(refiner, pixels, detections)
    assert type(better) is type(detections) and better.source == "camera"
    torch.testing.assert_close(boxes_of(better), expected.boxes, rtol=0, atol=1e-3)
    for row, (after, before) in enumerate(zip(better.detections, detections.detections, strict=True)):
        assert type(after) is type(before) and after.id != before.id
        assert after.label == NAMES[row] and after.tags == [f"tag{row}"] and after.note == row
        assert after.confidence == before.confidence
    assert better.detections[2].bounding_box == detections.detections[2].bounding_box
    assert [hasattr(detection, "predicted_iou") for detection in better.detections] == [True, True, False, True]
    first = better.detections[0]
    same([first.predicted_iou, first.predicted_iou_before], torch.stack([expected.ious[0], expected.ious_before[0]]))
    torch.testing.assert_close(boxes_of(detections), BOXES)
    assert not any(hasattr(detection, "predicted_iou") for detection in detections.detections)


def test_nms(refiner, pixels, given, expected):
    better = refine(refiner, pixels, given(), nms="greedy")
    assert [detection.note for detection in better.detections] == AFTER_NMS
    assert [detection.confidence for detection in better.detections] == [0.875, 0.75, 0.5]
    torch.testing.assert_close(boxes_of(better), expected.boxes[AFTER_NMS], rtol=0, atol=1e-3)


def test_no_detections(refiner, pixels, given):
    for nms in (None, "greedy"):
        assert refine(refiner, pixels, given(rows=[]), nms=nms).detections == []


def test_class_agnostic_without_confidence(refiner, pixels, given, without_classes):
    for labels in ({}, {"label": None}):
        better = refine(refiner, pixels, given(confidence=None, **labels), class_agnostic=True)
        torch.testing.assert_close(boxes_of(better), without_classes.boxes, rtol=0, atol=1e-3)
        assert [detection.confidence for detection in better.detections] == [None] * 4
    untouched = refine(refiner, pixels, given(label=None))
    torch.testing.assert_close(boxes_of(untouched), BOXES)


def test_an_image_file(refiner, pixels, given, expected, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    better = refine(refiner, str(tmp_path / "a.png"), given())
    torch.testing.assert_close(boxes_of(better), expected.boxes, rtol=0, atol=1e-3)
    with pytest.raises(DataError, match=r"b\.png: no such image"):
        refine(refiner, tmp_path / "b.png", given())


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_a_mask_stays_in_place_in_the_image(dtype):
    """The mask is one pixel of a box of 4 x 5 pixels; the box moves by one pixel, doubles its width, or both."""
    mask = np.zeros((5, 4), dtype)
    mask[3, 2] = 1
    before = [10.0, 20.0, 4.0, 5.0]

    def found(after):
        moved = mask_in_place(mask, before, after)
        assert moved.dtype == mask.dtype and moved.shape == mask.shape
        return np.argwhere(moved).tolist()

    assert found(before) == [[3, 2]]
    assert found([9.0, 22.0, 4.0, 5.0]) == [[1, 3]]
    assert found([13.0, 20.0, 4.0, 5.0]) == []
    assert found([12.0, 20.0, 2.0, 5.0]) == [[3, 0], [3, 1]]
    assert found([10.0, 20.0, 4.0, 2.5]) == []
    assert found([10.0, 22.5, 4.0, 2.5]) == [[1, 2], [2, 2]]


def test_masks_are_resampled(refiner, pixels, given):
    detections = given()
    detections.detections[3].mask = np.ones((36, 32), dtype=bool)
    detections.detections[2].mask = np.eye(3, dtype=bool)
    better = refine(refiner, pixels, detections)
    before, after = detections.detections[3], better.detections[3]
    assert np.array_equal(after.mask, mask_in_place(before.mask, before.bounding_box, after.bounding_box))
    assert np.array_equal(better.detections[2].mask, np.eye(3, dtype=bool))


def test_a_box_without_area_keeps_its_mask(refiner, pixels, given):
    detections = given(bounding_box=[0.5, 0.5, 0.0, 0.5], mask=np.eye(3, dtype=bool))
    for detection in refine(refiner, pixels, detections).detections:
        assert np.array_equal(detection.mask, np.eye(3, dtype=bool))
