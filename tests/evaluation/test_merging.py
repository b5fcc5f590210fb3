"""Averaged boxes, compared with their papers' formulas written as loops."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from iounet import Detections
from iounet.evaluation.merging import box_voting, weighted_box_fusion


def candidates(num_boxes=30, seed=0):
    """Three clusters of boxes of two classes; two clusters overlap."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.tensor([[20.0, 20.0, 60.0, 70.0], [28.0, 22.0, 66.0, 74.0], [120.0, 30.0, 150.0, 60.0]])
    chosen = torch.randint(0, 3, (num_boxes,), generator=generator)
    boxes = centers[chosen] + 3 * torch.randn(num_boxes, 4, generator=generator)
    scores, ious = torch.rand(2, num_boxes, generator=generator)
    return Detections(boxes, torch.tensor([1, 2, 1])[chosen], scores, ious)


def iou(a, b):
    return box_iou(torch.tensor([a]), torch.tensor([b])).item()


@pytest.mark.parametrize("sigma", [None, 0.02])
def test_voting_is_the_weighted_mean_of_overlapping_boxes(sigma):
    given = candidates()
    kept = given[given.scores.topk(4).indices]
    voted = box_voting(kept, given, given.ious, iou_threshold=0.5, sigma=sigma)
    for box, label, found in zip(kept.boxes.tolist(), kept.labels.tolist(), voted.boxes.tolist(), strict=True):
        total, sums = 0.0, [0.0] * 4
        for other, other_label, weight in zip(
            given.boxes.tolist(), given.labels.tolist(), given.ious.tolist(), strict=True
        ):
            overlap = iou(box, other)
            if other_label != label or overlap < 0.5:
                continue
            weight *= 1 if sigma is None else math.exp(-((1 - overlap) ** 2) / sigma)
            total += weight
            sums = [s + weight * c for s, c in zip(sums, other, strict=True)]
        assert found == pytest.approx([s / total for s in sums], abs=1e-3)
    assert torch.equal(voted.scores, kept.scores) and torch.equal(voted.labels, kept.labels)


def test_a_box_without_votes_stays():
    given = candidates()
    assert torch.equal(box_voting(given, given, torch.zeros(len(given))).boxes, given.boxes)
    assert len(box_voting(given[:0], given, given.scores)) == 0


def test_fusion_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 12, 10], [0, 0, 10, 10], [30, 30, 40, 40]])
    given = Detections(boxes, torch.tensor([1, 1, 2, 1]), torch.tensor([0.9, 0.3, 0.8, 0.5]), torch.zeros(4))
    fused = weighted_box_fusion(given)
    assert fused.scores.tolist() == pytest.approx([0.9, 0.8, 0.5])
    assert fused.labels.tolist() == [1, 2, 1]
    assert fused.boxes.tolist() == [[0, 0, pytest.approx(10.5), 10], [0, 0, 10, 10], [30, 30, 40, 40]]


def test_fusion_follows_the_fused_box_not_the_first():
    """The third box overlaps the first by less than the threshold, but the mean of the first two by more."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [3.5, 0, 13.5, 10], [5, 0, 15, 10]])
    assert iou(boxes[0].tolist(), boxes[2].tolist()) < 0.4
    given = Detections(boxes, torch.ones(3, dtype=torch.int64), torch.tensor([0.5, 0.49, 0.48]), torch.zeros(3))
    assert len(weighted_box_fusion(given, iou_threshold=0.4)) == 1


def test_fusion_of_no_boxes_and_its_limit():
    assert len(weighted_box_fusion(candidates()[:0])) == 0
    assert len(weighted_box_fusion(candidates(), max_detections=1)) == 1
