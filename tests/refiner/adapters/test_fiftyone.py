"""FiftyOne's Detections, or, as FiftyOne is a gigabyte, classes with the same behaviour.

The stand-ins below keep of ``fiftyone.Detections`` and ``fiftyone.Detection`` what the adapter meets: any attributes,
which can be set as items, and deep copies with new ids. Where FiftyOne is installed, the tests run on its own classes,
too.
"""

import copy
from itertools import count

import pytest
import torch
from named_boxes import AFTER_NMS, BOXES, NAMES, SCORES
from PIL import Image

from iounet.errors import DataError
from iounet.refiner.adapters.fiftyone import refine

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = count()
SIZE = torch.tensor([80.0, 50.0, 80.0, 50.0])  # of the image


class StandInDetection:
    def __init__(self, **fields):
        self.id = next(IDS)
        self.confidence = None
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
    """Detections of the four boxes."""
    if request.param == "stand-ins":
        detections, detection = StandInDetections, StandInDetection
    else:
        fiftyone = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
        detections, detection = fiftyone.Detections, fiftyone.Detection

    def one(row, **more):
        x1, y1, x2, y2 = (BOXES[row].double() / SIZE).tolist()
        fields = {"label": NAMES[row], "confidence": float(SCORES[row]), "tags": [f"tag{row}"], "note": row}
        return detection(bounding_box=[x1, y1, x2 - x1, y2 - y1], **fields | more)

    def given(rows=range(4), **more):
        return detections(detections=[one(row, **more) for row in rows], source="camera")

    return given


def boxes_of(detections):
    """In pixels, float32 [N, 4]."""
    relative = torch.tensor([detection.bounding_box for detection in detections.detections])
    return torch.cat([relative[:, :2], relative[:, :2] + relative[:, 2:]], 1) * SIZE


def test_boxes_move_and_all_else_stays(refiner, pixels, given, expected, same):
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


def test_without_regard_to_class_and_without_confidence(refiner, pixels, given, without_classes):
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
