"""ultralytics' Results, made by hand and by an untrained YOLO."""

import numpy as np
import pytest
import torch
from named_boxes import AFTER_NMS, BOXES, CLASS_NAMES, CLASSES, SCORES

from iounet.errors import DataError
from iounet.refiner.adapters.ultralytics import refine

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = torch.cat([BOXES, SCORES[:, None], CLASSES[:, None]], 1)
TRACKED = torch.cat([BOXES, torch.tensor([[10.0], [11.0], [12.0], [13.0]]), DATA[:, 4:]], 1)


@pytest.fixture
def given(ultralytics, pixels):
    """A function: columns of boxes and other fields of Results → Results for the image."""

    def given(data=DATA, **more):
        from ultralytics.engine.results import Results

        results = Results(
            np.ascontiguousarray(pixels[..., ::-1]), "a.jpg", dict(enumerate(CLASS_NAMES)), boxes=data.clone(), **more
        )
        results.save_dir = "runs/detect"
        return results

    return given


def test_only_boxes_change(refiner, given, expected, same):
    results = given(speed={"inference": 1.5})
    better = refine(refiner, results)
    assert type(better) is type(results)
    same(better.boxes.xyxy, expected.boxes)
    assert torch.equal(better.boxes.conf, SCORES) and torch.equal(better.boxes.cls, CLASSES.float())
    assert better.boxes.id is None and better.boxes.orig_shape == (50, 80)
    assert better.names == results.names and better.path == "a.jpg" and better.save_dir == "runs/detect"
    assert better.speed == {"inference": 1.5} and better.orig_img is results.orig_img
    assert torch.equal(results.boxes.data, DATA)
    assert better.summary()[1]["name"] == "cross"


def test_fields_stay_with_their_boxes(refiner, given, expected, same):
    masks = torch.arange(4.0)[:, None, None].expand(4, 50, 80)
    results = given(TRACKED, masks=masks, keypoints=masks[:, :5, :3])
    kept = refine(refiner, results)
    same(kept.boxes.xyxy, expected.boxes)
    assert torch.equal(kept.boxes.data[:, 4:], TRACKED[:, 4:])
    assert torch.equal(kept.masks.data, masks) and torch.equal(kept.keypoints.data, results.keypoints.data)
    left = refine(refiner, results, nms="greedy")
    same(left.boxes.xyxy, expected.boxes[AFTER_NMS])
    assert left.boxes.id.tolist() == [11, 13, 12] and left.boxes.conf.tolist() == [0.875, 0.75, 0.5]
    assert left.masks.data[:, 0, 0].tolist() == left.keypoints.data[:, 0, 0].tolist() == AFTER_NMS
    assert len(results) == 4


def test_soft_nms_lowers_the_scores(refiner, given):
    better = refine(refiner, given(TRACKED), nms="soft")
    assert better.boxes.id.tolist()[0] == 11 and sorted(better.boxes.id.tolist()) == [10, 11, 12, 13]
    assert better.boxes.conf.min() < 0.2


def test_results_in_numpy(refiner, given, expected, same):
    better = refine(refiner, given(TRACKED, masks=torch.ones(4, 50, 80)).numpy(), nms="greedy")
    assert isinstance(better.boxes.data, np.ndarray) and isinstance(better.masks.data, np.ndarray)
    same(better.boxes.xyxy, expected.boxes[AFTER_NMS])


def test_in_half_precision(refiner, given, expected):
    better = refine(refiner, given(DATA.half()))
    assert better.boxes.data.dtype == torch.float16
    torch.testing.assert_close(better.boxes.xyxy.float(), expected.boxes, rtol=1e-3, atol=1e-2)


def test_several_images_and_none(refiner, given, expected, same):
    first, empty = refine(refiner, [given(), given(DATA[:0])])
    same(first.boxes.xyxy, expected.boxes)
    assert empty.boxes.data.shape == (0, 6)
    assert len(refine(refiner, given(DATA[:0]), nms="greedy")) == 0


def test_classes(refiner, given, without_classes, expected, same):
    same(refine(refiner, given(), class_agnostic=True).boxes.xyxy, without_classes.boxes)
    results = given()
    results.names = {0: "Kreuz", 1: "Zebra", 2: "Stern"}
    with pytest.raises(DataError, match="none of the detector's classes"):
        refine(refiner, results)
    same(refine(refiner, results, class_names=CLASS_NAMES).boxes.xyxy, expected.boxes)


def test_results_without_boxes(refiner, ultralytics, pixels):
    from ultralytics.engine.results import Results

    with pytest.raises(DataError, match="a.jpg: the results have no axis-aligned boxes"):
        refine(refiner, Results(pixels, "a.jpg", {0: "star"}, probs=torch.ones(1)))


def test_results_of_a_yolo(refiner, ultralytics, pixels, same):
    torch.manual_seed(0)
    model = ultralytics.YOLO("yolov8n.yaml", verbose=False)
    model.model.names = dict.fromkeys(range(80), "star")
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    found = model.predict([bgr, bgr[:40]], imgsz=96, conf=1e-9, max_det=5, device="cpu", verbose=False)
    assert [len(results) for results in found] == [5, 5]
    for better, results, picture in zip(refine(refiner, found), found, [pixels, pixels[:40]], strict=True):
        same(better.boxes.xyxy, refiner.refine(picture, results.boxes.xyxy, [2] * 5).boxes)
        assert not torch.equal(better.boxes.xyxy, results.boxes.xyxy)
