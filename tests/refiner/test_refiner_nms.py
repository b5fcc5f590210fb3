"""Suppression of duplicate boxes before refinement."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")

# Two groups of three boxes; one box of the second group has a different class.
HEAPS = torch.tensor([[8.0, 9.0, 40.0, 44.0], [9.0, 9.0, 41.0, 44.0], [8.0, 10.0, 40.0, 45.0],
                      [44.0, 8.0, 76.0, 46.0], [45.0, 8.0, 77.0, 46.0], [44.0, 9.0, 76.0, 47.0]])  # fmt: skip
CLASSES = torch.tensor([1, 1, 1, 1, 1, 3])
SCORES = torch.tensor([0.3, 0.9, 0.6, 0.2, 0.1, 0.5])


def test_iou_guided_keeps_the_best_placed_box_of_each_group(refiner, image):
    ious = refiner.score(image, HEAPS, CLASSES)
    best = [int(ious[:3].argmax()), 3 + int(ious[3:5].argmax()), 5]
    refined = refiner.refine(image, HEAPS, CLASSES, SCORES, nms="iou_guided")
    assert refined.index.tolist() == [best[0], 5, best[1]]  # by descending score
    torch.testing.assert_close(refined.scores, torch.tensor([0.9, 0.5, 0.2]))  # the best score of each cluster
    alone = refiner.refine(image, HEAPS[refined.index], CLASSES[refined.index])
    torch.testing.assert_close(refined.boxes, alone.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(refined.ious_before, ious[refined.index])


def test_greedy_keeps_the_best_scores(refiner, image):
    refined = refiner.refine(image, HEAPS, CLASSES, SCORES, nms="greedy")
    assert refined.index.tolist() == [1, 5, 3]


def test_soft_keeps_all_and_lowers_scores(refiner, image):
    refined = refiner.refine(image, HEAPS, CLASSES, SCORES, nms="soft")
    assert sorted(refined.index.tolist()) == [0, 1, 2, 3, 4, 5]
    assert (refined.scores <= SCORES[refined.index]).all() and refined.scores.min() < 0.1


def test_all_kept_boxes_are_returned(refiner, image):
    """The detector's limit of 100 detections does not apply."""
    corners = torch.cartesian_prod(torch.arange(15.0), torch.arange(8.0)) * 5
    boxes = torch.cat([corners, corners + 5], 1)
    assert len(refiner.refine(image, boxes, [1] * 120, nms="greedy")) == 120


@pytest.mark.parametrize("nms", ["greedy", "soft", "iou_guided"])
def test_scores_and_boxes_of_other_types(refiner, image, nms):
    expected = refiner.refine(image, HEAPS, CLASSES, SCORES, nms=nms)
    for boxes, scores in (
        (HEAPS.numpy(), SCORES.double().numpy()),
        (HEAPS.double(), SCORES.tolist()),
        (HEAPS, SCORES.half()),
    ):
        refined = refiner.refine(image, boxes, CLASSES, scores, nms=nms)
        assert refined.index.tolist() == expected.index.tolist()


def test_boxes_outside_the_image_are_dropped(refiner, image):
    boxes = torch.cat([torch.tensor([[90.0, 10.0, 99.0, 20.0]]), HEAPS])
    classes = torch.cat([torch.tensor([1]), CLASSES])
    scores = torch.cat([torch.tensor([1.0]), SCORES])
    assert refiner.refine(image, boxes, classes, scores, nms="greedy").index.tolist() == [2, 6, 4]
    assert len(refiner.refine(image, boxes[:1], classes[:1], scores[:1], nms="greedy")) == 0
