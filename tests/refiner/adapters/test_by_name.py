"""Shared by all adapters: which boxes are refined, and which stay unchanged."""

import numpy as np
import pytest
import torch
from named_boxes import BOXES, CLASS_NAMES, CLASSES, NAMES, SCORES

from iounet.errors import DataError
from iounet.refiner.adapters.by_name import Found, names_of, refine_by_name

pytestmark = pytest.mark.usefixtures("one_thread")


def refine(refiner, *found, nms=None, class_agnostic=False):
    return refine_by_name(refiner, found, nms=nms, class_agnostic=class_agnostic)


def test_boxes_of_known_classes_are_refined_and_others_unchanged(refiner, pixels, expected, same):
    (outcome,) = refine(refiner, Found(pixels, BOXES, NAMES, SCORES))
    assert torch.equal(outcome.boxes[2], BOXES[2])
    same(outcome.boxes, expected.boxes)
    same(outcome.ious, expected.ious)
    same(outcome.ious_before, expected.ious_before)
    assert torch.equal(outcome.scores, SCORES) and outcome.rows.tolist() == [0, 1, 2, 3]


def test_class_agnostic_refines_all_boxes(refiner, pixels, without_classes, same):
    (outcome,) = refine(refiner, Found(pixels, BOXES, NAMES, SCORES), class_agnostic=True)
    same(outcome.boxes, without_classes.boxes)
    same(outcome.ious, without_classes.ious)


def test_boxes_of_unknown_classes_are_excluded_from_nms(refiner, pixels, expected, same):
    boxes = torch.cat([BOXES, BOXES[[2, 2]]])
    scores = torch.cat([SCORES, torch.tensor([0.8, 0.1])])
    (outcome,) = refine(refiner, Found(pixels, boxes, [*NAMES, "zebra", "zebra"], scores), nms="greedy")
    assert outcome.rows.tolist() == [1, 4, 3, 2, 5]  # by descending score, without the first star
    same(outcome.boxes, torch.cat([expected.boxes, BOXES[[2, 2]]])[outcome.rows])
    assert outcome.ious.isnan().tolist() == [False, True, False, True, True]


def test_iou_guided_nms_returns_its_scores(refiner, pixels):
    (outcome,) = refine(refiner, Found(pixels, BOXES, NAMES, SCORES), nms="iou_guided")
    assert sorted(outcome.scores.tolist()) == [0.5, 0.75, 0.875]  # the kept star has the score of the better star


def test_without_scores(refiner, pixels, expected, same):
    (outcome,) = refine(refiner, Found(pixels, BOXES, NAMES, None))
    same(outcome.boxes, expected.boxes)
    assert outcome.scores.tolist() == [1.0] * 4


def test_several_images(refiner, pixels, expected):
    found = [
        Found(pixels, BOXES, NAMES, SCORES),
        Found(pixels[:40, :44], BOXES[:1], NAMES[:1], SCORES[:1]),
        Found(pixels, BOXES[2:3], ["zebra"], SCORES[2:3]),
        Found(pixels, BOXES[:0], [], SCORES[:0]),
    ]
    for nms in (None, "greedy"):
        outcomes = refine(refiner, *found, nms=nms)
        assert [len(outcome.boxes) for outcome in outcomes] == [4 if nms is None else 3, 1, 1, 0]
        torch.testing.assert_close(outcomes[0].boxes, expected.boxes[outcomes[0].rows], rtol=0, atol=1e-3)
        alone = refiner.refine(pixels[:40, :44], BOXES[:1], [2])
        torch.testing.assert_close(outcomes[1].boxes, alone.boxes, rtol=0, atol=1e-3)
        assert torch.equal(outcomes[2].boxes, BOXES[2:3])
    assert refine(refiner) == []


def test_arrays_in_double_precision(refiner, pixels, expected):
    boxes = BOXES.double().numpy()
    (outcome,) = refine(refiner, Found(pixels, boxes, NAMES, SCORES.numpy()))
    assert outcome.boxes.dtype == torch.float64
    torch.testing.assert_close(outcome.boxes.float(), expected.boxes, rtol=0, atol=1e-3)
    assert np.array_equal(boxes, BOXES.double().numpy())


def test_names_of_numbers(refiner):
    assert names_of(CLASSES.tolist(), CLASS_NAMES, refiner, class_agnostic=False) == ["star", "cross", "zebra", "star"]
    assert names_of([7, 1], {7: "star"}, refiner, class_agnostic=False) == ["star", ""]
    assert names_of([7, 1], None, refiner, class_agnostic=True) == ["", ""]
    assert names_of([], None, refiner, class_agnostic=False) == []


def test_numbers_without_names(refiner):
    with pytest.raises(DataError, match="no class names; pass class_names"):
        names_of([1], None, refiner, class_agnostic=False)


def test_a_detector_with_other_classes(refiner):
    with pytest.raises(DataError, match=r"none of the detector's classes \(horse, zebra\).*\(cross, star, triangle\)"):
        names_of([1], ["horse", "zebra"], refiner, class_agnostic=False)
    with pytest.raises(DataError, match=r"class9, \.\.\.\)"):
        names_of([1], [f"class{number}" for number in range(80)], refiner, class_agnostic=False)
