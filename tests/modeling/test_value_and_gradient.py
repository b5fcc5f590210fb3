"""The gradient with respect to boxes, written out for exported programs, against autograd."""

import pytest
import torch

from iounet.modeling.energy_head import EnergyHead
from iounet.modeling.iou_head import IoUHead
from prroi_pool import MultiScalePrRoIPool

SIZES = [(64, 96), (60, 90)]


def smooth_l1(**options):
    return IoUHead(loss="smooth_l1", **options)


def bce(**options):
    return IoUHead(loss="bce", **options)


@pytest.mark.parametrize("make", [smooth_l1, bce, EnergyHead])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_agrees_with_autograd(make, class_agnostic):
    torch.manual_seed(0)
    pool = MultiScalePrRoIPool(["0", "1"], 3, canonical_scale=60)
    head = make(roi_pool=pool, in_channels=4, num_classes=4, hidden_dim=16, class_agnostic=class_agnostic)
    head = head.double().eval()
    torch.nn.init.normal_(head.predictor.weight)
    maps = {"0": torch.randn(2, 4, 16, 24).double(), "1": torch.randn(2, 4, 8, 12).double()}
    corners = torch.rand(2, 6, 2).double() * 40
    boxes = torch.cat([corners, corners + 5 + torch.rand(2, 6, 2).double() * 40], 2).requires_grad_()
    boxes_of = [boxes[0], boxes[1]]
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 3, 1, 1, 0])
    levels = head.assign_levels(maps, boxes_of, SIZES)
    assert set(levels.tolist()) == {0, 1}

    expected = head(maps, boxes_of, labels, SIZES, levels)
    (gradient,) = torch.autograd.grad(expected.sum(), boxes)
    with torch.no_grad():
        values, written_out = head.value_and_gradient(maps, [b.detach() for b in boxes_of], labels, SIZES, levels)
    assert gradient.abs().min() > 1e-4
    torch.testing.assert_close(values, expected.detach())
    torch.testing.assert_close(written_out, gradient.flatten(0, 1))
