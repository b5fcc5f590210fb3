import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from iounet.boxes import best_iou, box_offsets, box_sizes, boxes_at, elementwise_iou


def random_boxes(num_boxes, *, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    corners = 60 * torch.rand(num_boxes, 2, generator=generator, dtype=dtype)
    return torch.cat([corners, corners + 1 + 50 * torch.rand(num_boxes, 2, generator=generator, dtype=dtype)], 1)


def test_sizes_are_width_and_height_with_sign():
    boxes = torch.tensor([[[1.0, 2.0, 4.0, 9.0]], [[5.0, 5.0, 3.0, 5.0]]])
    assert box_sizes(boxes).tolist() == [[[3.0, 7.0]], [[-2.0, 0.0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iou_is_the_diagonal_of_torchvisions_box_iou(dtype):
    a, b = random_boxes(500, seed=0, dtype=dtype), random_boxes(500, seed=1, dtype=dtype)
    expected = box_iou(a, b).diagonal()
    assert 0.2 < (expected > 0).float().mean() < 0.9  # overlapping and disjoint pairs
    torch.testing.assert_close(elementwise_iou(a, b), expected)


def test_iou_broadcasts():
    a, b = random_boxes(4, seed=2), random_boxes(7, seed=3)
    torch.testing.assert_close(elementwise_iou(a[:, None], b), box_iou(a, b))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 4, 4), (0, 0, 4, 4), 1.0),
        ((0.1, 0.2, 1e4, 0.3), (0.1, 0.2, 1e4, 0.3), 1.0),
        ((0, 0, 4, 4), (2, 0, 6, 4), 1 / 3),
        ((0, 0, 4, 4), (4, 0, 8, 4), 0.0),  # touching
        ((0, 0, 4, 4), (9, 9, 12, 12), 0.0),
        ((0, 0, 4, 4), (2, 2, 2, 4), 0.0),  # no area
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),  # no union either
        ((4, 4, 0, 0), (0, 0, 4, 4), 0.0),  # reversed
        ((4, 4, 0, 0), (4, 4, 0, 0), 0.0),
    ],
)
def test_iou_by_hand(a, b, expected):
    a, b = torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32)
    assert elementwise_iou(a, b).item() == pytest.approx(expected, rel=1e-6)
    assert elementwise_iou(b, a).item() == pytest.approx(expected, rel=1e-6)


def test_gradient():
    a, b = random_boxes(20, seed=4, dtype=torch.float64), random_boxes(20, seed=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(elementwise_iou, (a.requires_grad_(), b.requires_grad_()))


def test_gradient_of_boxes_without_area_is_finite():
    boxes = torch.tensor([[3.0, 3.0, 3.0, 3.0], [4.0, 4.0, 0.0, 0.0]], requires_grad=True)
    elementwise_iou(boxes, torch.tensor([3.0, 3.0, 3.0, 3.0])).sum().backward()
    assert torch.isfinite(boxes.grad).all()


def loop_best_iou(boxes, labels, gt_boxes, gt_labels):
    best = []
    for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        ious = [0.0]
        for (u1, v1, u2, v2), gt_label in zip(gt_boxes.tolist(), gt_labels.tolist(), strict=True):
            if gt_label == label:
                shared = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
                ious.append(shared / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared))
        best.append(max(ious))
    return torch.tensor(best)


@pytest.mark.parametrize(("num_boxes", "num_objects"), [(40, 12), (40, 1), (0, 12), (40, 0), (0, 0)])
def test_best_iou_matches_a_loop(num_boxes, num_objects):
    generator = torch.Generator().manual_seed(0)
    boxes, gt_boxes = random_boxes(num_boxes, seed=0), random_boxes(num_objects, seed=1)
    labels = torch.randint(1, 5, (num_boxes,), generator=generator)
    gt_labels = torch.randint(1, 4, (num_objects,), generator=generator)  # no object has class 4
    ious = best_iou(boxes, labels, gt_boxes, gt_labels)
    torch.testing.assert_close(ious, loop_best_iou(boxes, labels, gt_boxes, gt_labels))


def test_best_iou_is_0_for_another_class():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert best_iou(box, torch.tensor([1]), box, torch.tensor([2])).tolist() == [0.0]


def test_offsets_by_hand():
    reference = torch.tensor([10.0, 20.0, 30.0, 60.0])  # 20 by 40 around (20, 40)
    box = torch.tensor([20.0, 30.0, 40.0, 50.0])  # 20 by 20 around (30, 40)
    assert box_offsets(box, reference).tolist() == pytest.approx([0.5, 0.0, 0.0, -math.log(2)])


def test_offsets_match_box_regression():
    boxes, reference = random_boxes(100, seed=4), random_boxes(100, seed=5)
    expected = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(boxes, reference)
    torch.testing.assert_close(box_offsets(boxes, reference), expected)


def test_boxes_at_inverts_box_offsets():
    boxes, reference = random_boxes(60, seed=6, dtype=torch.float64), random_boxes(60, seed=7, dtype=torch.float64)
    there = box_offsets(boxes[:, None], reference)  # all pairs
    assert there.shape == (60, 60, 4)
    torch.testing.assert_close(boxes_at(there, reference), boxes[:, None].expand(60, 60, 4))
    torch.testing.assert_close(boxes_at(torch.zeros(60, 4, dtype=torch.float64), reference), reference)
