"""detectron2's Instances, and stand-ins for them, because detectron2 has no wheels.

The stand-ins have the behaviour of ``detectron2.structures`` that the adapter uses: fields are attributes of equal
length that are indexed together, and ``Boxes`` are float32. If detectron2 is installed, the tests also run with its
classes.
"""

import pytest
import torch
from named_boxes import AFTER_NMS, BOXES, CLASS_NAMES, CLASSES, SCORES

from iounet.errors import DataError
from iounet.refiner.adapters.detectron2 import refine

pytestmark = pytest.mark.usefixtures("one_thread")


class StandInBoxes:
    def __init__(self, tensor):
        self.tensor = tensor.to(torch.float32)

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, rows):
        return type(self)(self.tensor[rows])


class StandInInstances:
    def __init__(self, image_size, **fields):
        self._image_size, self._fields = image_size, {}
        for name, value in fields.items():
            setattr(self, name, value)

    @property
    def image_size(self):
        return self._image_size

    def __setattr__(self, name, value):
        if name.startswith("_"):
            super().__setattr__(name, value)
            return
        assert all(len(other) == len(value) for other in self._fields.values())
        self._fields[name] = value

    def __getattr__(self, name):
        if name == "_fields" or name not in self._fields:
            raise AttributeError(name)
        return self._fields[name]

    def get_fields(self):
        return self._fields

    def has(self, name):
        return name in self._fields

    def __len__(self):
        return len(next(iter(self._fields.values())))

    def __getitem__(self, rows):
        return type(self)(self._image_size, **{name: value[rows] for name, value in self._fields.items()})


@pytest.fixture(params=["stand-ins", "detectron2"])
def given(request):
    """A function: further fields → Instances with the four boxes."""
    if request.param == "stand-ins":
        instances, boxes = StandInInstances, StandInBoxes
    else:
        structures = pytest.importorskip("detectron2.structures", reason="detectron2 is not installed")
        instances, boxes = structures.Instances, structures.Boxes

    def given(rows=slice(None), **more):
        return instances(
            (50, 80), pred_boxes=boxes(BOXES[rows]), scores=SCORES[rows], pred_classes=CLASSES[rows], **more
        )

    return given


def test_only_boxes_change(refiner, pixels, given, expected, same):
    instances = given(names=["a", "b", "c", "d"])
    better = refine(refiner, pixels, instances, class_names=CLASS_NAMES)
    assert type(better) is type(instances) and type(better.pred_boxes) is type(instances.pred_boxes)
    same(better.pred_boxes.tensor, expected.boxes)
    same(better.pred_ious, expected.ious)
    same(better.pred_ious_before, expected.ious_before)
    assert better.image_size == (50, 80) and better.names == ["a", "b", "c", "d"]
    assert torch.equal(better.scores, SCORES) and torch.equal(better.pred_classes, CLASSES)
    assert torch.equal(instances.pred_boxes.tensor, BOXES) and not instances.has("pred_ious")


def test_fields_stay_with_their_boxes(refiner, pixels, given, expected, same):
    masks = torch.arange(4)[:, None, None].expand(4, 50, 80)
    better = refine(refiner, pixels, given(pred_masks=masks), class_names=CLASS_NAMES, nms="greedy")
    same(better.pred_boxes.tensor, expected.boxes[AFTER_NMS])
    same(better.pred_ious, expected.ious[AFTER_NMS])
    assert better.scores.tolist() == [0.875, 0.75, 0.5] and better.pred_classes.tolist() == [0, 2, 1]
    assert better.pred_masks[:, 0, 0].tolist() == AFTER_NMS


def test_no_instances(refiner, pixels, given):
    for nms in (None, "greedy"):
        better = refine(refiner, pixels, given(slice(0)), class_names=CLASS_NAMES, nms=nms)
        assert len(better) == 0 and better.pred_boxes.tensor.shape == (0, 4)


def test_refined_again(refiner, pixels, given):
    once = refine(refiner, pixels, given(), class_names=CLASS_NAMES)
    twice = refine(refiner, pixels, once, class_names=CLASS_NAMES, nms="greedy")
    torch.testing.assert_close(twice.pred_ious_before, once.pred_ious[AFTER_NMS], rtol=0, atol=1e-4, equal_nan=True)


def test_classes(refiner, pixels, given, without_classes, same):
    same(refine(refiner, pixels, given(), class_agnostic=True).pred_boxes.tensor, without_classes.boxes)
    with pytest.raises(DataError, match="pass class_names"):
        refine(refiner, pixels, given())


def test_an_image_of_another_size(refiner, pixels, given):
    with pytest.raises(DataError, match=r"image of \(50, 80\) pixels.*image has \(40, 80\)"):
        refine(refiner, pixels[:40], given(), class_names=CLASS_NAMES)
