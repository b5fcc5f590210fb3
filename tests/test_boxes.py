import pytest
import torch
from torchvision.ops import box_iou

from iounet.boxes import box_sizes, elementwise_iou


def random_boxes(num_boxes, *, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    corners = 60 * torch.rand(num_boxes, 2, generator=generator, dtype=dtype)
    return torch.cat([corners, corners + 1 + 50 * torch.rand(num_boxes, 2, generator=generator, dtype=dtype)], 1)


def test_sizes_are_width_and_height_with_sign():
    boxes = torch.tensor([[[1.0, 2.0, 4.0, 9.0]], [[5.0, 5.0, 3.0, 5.0]]])
    assert box_sizes(boxes).tolist() == [[[3.0, 7.0]], [[-2.0, 0.0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iou_is_the_diagonal_of_torchvisions(dtype):
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
        ((0, 0, 4, 4), (4, 0, 8, 4), 0.0),  # they touch
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
