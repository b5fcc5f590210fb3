import pytest
import torch
from noise import images_of

from iounet.postprocess import greedy_nms

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def inputs(build_tiny):
    """RoI heads with varied outputs; features, proposals and sizes of two images."""
    roi_heads = build_tiny().roi_heads
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        roi_heads.box_predictor.cls_score.weight.mul_(30)
        roi_heads.box_predictor.bbox_pred.weight.mul_(10)
    features = {str(level): torch.randn(2, 16, 16 >> level, 16 >> level, generator=generator) for level in range(4)}
    sizes = [(64, 64), (56, 60)]
    proposals = []
    for num_proposals in (30, 20):
        corners = 40 * torch.rand(num_proposals, 2, generator=generator)
        proposals.append(torch.cat([corners, corners + 4 + 16 * torch.rand(num_proposals, 2, generator=generator)], 1))
    return roi_heads, features, proposals, sizes


@torch.no_grad()
def test_candidates_after_greedy_nms_agree_with_torchvision(inputs):
    roi_heads, features, proposals, sizes = inputs
    pooled = roi_heads.box_head(roi_heads.box_roi_pool(features, proposals, sizes))
    expected = roi_heads.postprocess_detections(*roi_heads.box_predictor(pooled), proposals, sizes)
    candidates = roi_heads.candidates(features, proposals, sizes)
    for image in range(2):
        boxes, labels, scores = (column[image] for column in candidates)
        keep, _ = greedy_nms(boxes, scores, labels, roi_heads.nms_thresh)
        keep = keep[: roi_heads.detections_per_img]
        expected_boxes, expected_scores, expected_labels = (column[image] for column in expected)
        assert 5 < len(keep) < len(boxes)
        assert labels[keep].tolist() == expected_labels.tolist()
        torch.testing.assert_close(scores[keep], expected_scores)
        torch.testing.assert_close(boxes[keep], expected_boxes, rtol=0, atol=1e-4)


@torch.no_grad()
def test_candidates_lie_in_their_image_and_score_above_the_threshold(inputs):
    roi_heads, features, proposals, sizes = inputs
    for boxes, labels, scores, (height, width) in zip(
        *roi_heads.candidates(features, proposals, sizes), sizes, strict=True
    ):
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 1e-2).all()
        assert (scores > roi_heads.score_thresh).all()
        assert set(labels.tolist()) <= {1, 2, 3}


@torch.no_grad()
def test_a_high_threshold_leaves_no_candidates(inputs):
    roi_heads, features, proposals, sizes = inputs
    roi_heads.score_thresh = 1.0
    boxes, labels, scores = roi_heads.candidates(features, proposals, sizes)
    assert [tuple(column.shape) for column in (*boxes, *labels, *scores)] == [(0, 4)] * 2 + [(0,)] * 4
    assert {column.dtype for column in labels} == {torch.int64}


@torch.no_grad()
def test_no_proposals(inputs):
    roi_heads, features, _, sizes = inputs
    boxes, _, _ = roi_heads.candidates(features, [torch.zeros(0, 4)] * 2, sizes)
    assert [len(boxes_in_image) for boxes_in_image in boxes] == [0, 0]


def test_losses_agree_with_torchvision(inputs):
    roi_heads, features, proposals, sizes = inputs
    roi_heads.train()
    targets = [
        {"boxes": proposals[0][:3] + 0.5, "labels": torch.tensor([1, 3, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    losses = []
    for compute in (
        lambda: roi_heads.losses(features, proposals, sizes, targets),
        lambda: roi_heads(features, proposals, sizes, targets)[1],
    ):
        torch.manual_seed(0)  # seeds the sampler
        losses.append({name: loss.item() for name, loss in compute().items()})
    assert set(losses[0]) == {"loss_classifier", "loss_box_reg"}
    assert losses[0] == pytest.approx(losses[1])
    assert min(losses[0].values()) > 0


def test_regress_repeats_the_box_branch(opinionated):
    detector = opinionated({"TEST.SCORE_THRESHOLD": 0.0})
    with torch.no_grad():
        features = detector.extract(images_of((64, 64), (50, 80)))
        proposals = detector.propose(features)
        boxes, labels, _ = detector.roi_heads.candidates(features.maps, proposals, features.sizes)
        for label in (1, 2, 3):
            of_label = [torch.full((len(p),), label) for p in proposals]
            regressed = detector.roi_heads.regress(features.maps, proposals, of_label, features.sizes)
            for moved, of_image, its_labels in zip(regressed, boxes, labels, strict=True):
                expected = of_image[its_labels == label]
                assert len(expected) == len(moved) > 5
                torch.testing.assert_close(moved, expected)
