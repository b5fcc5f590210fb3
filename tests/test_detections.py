import dataclasses
import json

import pytest
import torch

from iounet import Detections
from iounet.detections import RefinedDetections
from iounet.postprocess import Stop


def three():
    return Detections(
        boxes=torch.tensor([[0.0, 0.0, 10.0, 20.0], [1.0, 2.0, 3.0, 5.0], [4.0, 4.0, 8.0, 8.0]]),
        labels=torch.tensor([2, 1, 2]),
        scores=torch.tensor([0.75, 0.5, 0.25]),
        ious=torch.tensor([0.875, 0.625, 1.0]),
    )


def test_length_and_immutability():
    detections = three()
    assert len(detections) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        detections.scores = torch.zeros(3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("boxes", torch.zeros(3, 5), r"Detections\.boxes must have shape \[N, 4\], got \[3, 5\]"),
        ("boxes", torch.zeros(4), r"Detections\.boxes must have shape \[N, 4\], got \[4\]"),
        ("boxes", torch.zeros(3, 4, dtype=torch.int64), r"Detections\.boxes must be floating point"),
        ("labels", torch.ones(2, dtype=torch.int64), r"Detections\.labels must have shape \[3\].*got \[2\]"),
        ("scores", torch.zeros(3, 1), r"Detections\.scores must have shape \[3\].*got \[3, 1\]"),
        ("ious", torch.zeros(0), r"Detections\.ious must have shape \[3\].*got \[0\]"),
    ],
)
def test_a_wrong_shape_names_its_field(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(three(), **{field: value})


@pytest.mark.parametrize(
    ("index", "positions"),
    [
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.tensor([], dtype=torch.int64), []),
        (slice(1, None), [1, 2]),
        (slice(0, 0), []),
    ],
)
def test_indexing_picks_the_same_rows_of_every_field(index, positions):
    picked = three()[index]
    assert len(picked) == len(positions)
    for field in dataclasses.fields(Detections):
        values = getattr(three(), field.name).tolist()
        assert getattr(picked, field.name).tolist() == [values[position] for position in positions]


class TestUnmoved:
    """The result of refinement with zero steps."""

    def test_of_detections(self):
        given = three()
        unmoved = RefinedDetections.unmoved(given)
        assert all(getattr(unmoved, field.name) is getattr(given, field.name) for field in dataclasses.fields(given))
        assert unmoved.ious_before is given.ious
        assert unmoved.stops.tolist() == [Stop.STEPS] * 3 and unmoved.index.tolist() == [0, 1, 2]

    def test_refined_detections_keep_their_index(self):
        picked = RefinedDetections.unmoved(three())[torch.tensor([2, 0])]
        again = RefinedDetections.unmoved(dataclasses.replace(picked, ious=picked.ious / 2))
        assert again.index.tolist() == [2, 0]
        assert torch.equal(again.ious_before, picked.ious / 2)


def test_to_moves_every_field():
    moved = three().to("meta")
    assert {getattr(moved, field.name).device.type for field in dataclasses.fields(Detections)} == {"meta"}


def test_rescaled_sizes_are_height_and_width():
    rescaled = three().rescaled((20, 10), (40, 30))
    assert rescaled.boxes.tolist() == [[0, 0, 30, 40], [3, 4, 9, 10], [12, 8, 24, 16]]
    assert rescaled.labels.tolist() == [2, 1, 2]


def test_rescaled_maps_the_border_of_one_image_onto_that_of_the_other():
    # A coordinate one rounding error beyond the image would fail checks that boxes lie inside.
    for height in range(20, 200, 3):
        for width in range(200, 1300, 97):
            border = Detections(
                torch.tensor([[0.0, 0.0, width, height]]), torch.tensor([1]), torch.tensor([1.0]), torch.tensor([1.0])
            )
            assert border.rescaled((height, width), (375, 500)).boxes.tolist() == [[0, 0, 500, 375]]


def test_to_coco():
    entries = three().to_coco(42, [3, 90])
    assert entries[1] == {
        "image_id": 42,
        "category_id": 3,
        "bbox": [1.0, 2.0, 2.0, 3.0],
        "score": 0.5,
        "predicted_iou": 0.625,
    }
    assert [entry["category_id"] for entry in entries] == [90, 3, 90]
    assert json.loads(json.dumps(entries)) == entries
    assert three()[:0].to_coco(42, [3, 90]) == []


def test_to_coco_of_a_class_without_a_category():
    unknown = Detections(torch.ones(1, 4), torch.tensor([0]), torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="label 0 has no category id"):
        unknown.to_coco(42, [3, 90])
