import math

import pytest
import torch
from noise import images_of

from iounet.modeling import IoUHead
from iounet.modeling.iou_head import iou_loss
from prroi_pool import MultiScalePrRoIPool

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE_SIZES = [(64, 64), (64, 48)]


def make_head(*, num_classes=4, seed=0, loss="smooth_l1", class_agnostic=False):
    torch.manual_seed(seed)
    pool = MultiScalePrRoIPool(["0", "1", "2", "3"], 3, canonical_scale=32, canonical_level=4)
    head = IoUHead(
        pool, in_channels=5, num_classes=num_classes, hidden_dim=16, loss=loss, class_agnostic=class_agnostic
    ).double()
    torch.nn.init.normal_(head.predictor.weight)  # large enough for finite differences
    return head


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(1)
    return {
        str(level): torch.randn(
            2, 5, 64 // 2 ** (level + 2), 64 // 2 ** (level + 2), generator=generator, dtype=torch.float64
        )
        for level in range(4)
    }


@pytest.fixture
def boxes():
    """Boxes of two images, on several levels."""
    first = torch.tensor(
        [[3.2, 4.1, 13.7, 12.9], [7.3, 9.2, 50.1, 41.6], [20.4, 30.3, 26.2, 41.7]], dtype=torch.float64
    )
    return [first, torch.tensor([[1.3, 2.6, 40.9, 60.2]], dtype=torch.float64)]


LABELS = torch.tensor([1, 3, 2, 3])


def test_the_iou_is_that_of_the_boxs_class(features, boxes):
    head = make_head()
    with torch.no_grad():
        head.predictor.weight.zero_()
        head.predictor.bias.copy_(torch.tensor([9.0, -1.0, 0.0, 0.5]))
    # The layer predicts 2 IoU - 1; column 0 (background) is never read.
    assert head(features, boxes, LABELS, IMAGE_SIZES).tolist() == [0.0, 0.75, 0.5, 0.75]


def test_only_outputs_of_the_given_classes_get_gradients(features, boxes):
    head = make_head()
    head(features, boxes, torch.tensor([1, 1, 3, 3]), IMAGE_SIZES).sum().backward()
    assert [bool(row.abs().sum() > 0) for row in head.predictor.weight.grad] == [False, True, False, True]


def test_a_class_agnostic_head_treats_all_classes_alike(features, boxes):
    head = make_head(class_agnostic=True)
    ious = head(features, boxes, LABELS, IMAGE_SIZES)
    assert torch.equal(ious, head(features, boxes, torch.tensor([0, 1, 0, 2]), IMAGE_SIZES))
    assert head.all_classes(features, boxes, IMAGE_SIZES).shape == (4, 4)
    assert torch.equal(head.decoded(head.all_classes(features, boxes, IMAGE_SIZES)[:, 1]), ious)
    ious.sum().backward()
    assert head.predictor.weight.grad.shape == (1, 16) and head.predictor.weight.grad.abs().sum() > 0


def test_each_prediction_depends_on_the_image_and_position_of_its_box(features, boxes):
    head = make_head()
    together = head(features, boxes, LABELS, IMAGE_SIZES)
    alone = [
        head({name: maps[1:] for name, maps in features.items()}, [boxes[1]], LABELS[3:], IMAGE_SIZES[:1]),
        head(features, [boxes[0][1:2], boxes[1][:0]], LABELS[1:2], IMAGE_SIZES),
    ]
    torch.testing.assert_close(together[[3, 1]], torch.cat(alone))
    assert len(set(together.tolist())) == 4


def test_gradient_in_the_boxes_by_finite_differences(features, boxes):
    head = make_head()
    levels = head.assign_levels(features, boxes, IMAGE_SIZES)
    assert len(levels.unique()) > 1

    def predict(flat):
        return head(features, list(flat.split([3, 1])), LABELS, IMAGE_SIZES, levels)

    flat = torch.cat(boxes).requires_grad_()
    assert torch.autograd.gradcheck(predict, (flat,), eps=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(predict(flat).sum(), flat)
    assert (gradient.abs() > 1e-6).all()  # the output depends on every coordinate of every box


def test_a_fixed_level_keeps_the_prediction_continuous():
    # Boxes of 32 pixels and more are pooled from the next level.
    head = make_head()
    features = {str(level): torch.randn(1, 5, 16 >> level, 16 >> level, dtype=torch.float64) for level in range(4)}
    small, large = (torch.tensor([[8.0, 8.0, 40.0 + change, 40.0]], dtype=torch.float64) for change in (-1e-4, 1e-4))
    label, size = torch.tensor([1]), [(64, 64)]
    level = head.assign_levels(features, [small], size)
    assert head.assign_levels(features, [large], size) == level + 1
    at_small = head(features, [small], label, size)
    assert abs(head(features, [large], label, size, level) - at_small) < 1e-3
    assert abs(head(features, [large], label, size) - at_small) > 1e-3
    torch.testing.assert_close(head(features, [small], label, size, level), at_small)


def test_no_boxes(features):
    head = make_head()
    empty = [torch.zeros(0, 4, dtype=torch.float64)] * 2
    assert head(features, empty, torch.zeros(0, dtype=torch.int64), IMAGE_SIZES).shape == (0,)


def test_initial_predictions_are_0_5():
    torch.manual_seed(0)
    pool = MultiScalePrRoIPool(["0"], 7)
    head = IoUHead(pool, in_channels=8, num_classes=3)
    ious = head(
        {"0": torch.randn(1, 8, 16, 16)}, [torch.tensor([[4.0, 4.0, 40.0, 50.0]])], torch.tensor([2]), [(64, 64)]
    )
    assert ious.item() == pytest.approx(0.5, abs=0.1)
    assert head.mlp.fc6.weight.shape == (1024, 8 * 7 * 7)
    assert head.mlp.fc7.weight.shape == (1024, 1024)


@pytest.mark.parametrize("loss", ["smooth_l1", "bce"])
def test_calibration_is_platt_scaling_and_preserves_the_order(features, boxes, loss):
    head = make_head(loss=loss)
    predicted = head(features, boxes, LABELS, IMAGE_SIZES)
    assert torch.equal(head.calibrated(predicted), predicted)  # not calibrated yet
    head.calibration.copy_(torch.tensor([0.7, -0.4]))
    output = head.output(features, boxes, LABELS, IMAGE_SIZES)
    expected = 1 / (1 + torch.exp(-(0.7 * output - 0.4)))
    torch.testing.assert_close(head.calibrated(predicted), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(head.calibrated(predicted).argsort(), predicted.argsort())


class TestLoss:
    def test_by_hand(self):
        # On 2 IoU - 1: differences 0.4 and 1.2; smooth-L1: 0.5 * 0.4^2 and 1.2 - 0.5.
        loss = iou_loss(2 * torch.tensor([0.7, 0.2]) - 1, torch.tensor([0.5, 0.8]))
        assert loss.item() == pytest.approx((0.08 + 0.7) / 2)

    def test_cross_entropy_by_hand(self):
        loss = iou_loss(torch.tensor([0.7, 0.2]).logit(), torch.tensor([0.5, 0.8]), "bce")
        expected = -(0.5 * math.log(0.7) + 0.5 * math.log(0.3)) - (0.8 * math.log(0.2) + 0.2 * math.log(0.8))
        assert loss.item() == pytest.approx(expected / 2)

    def test_perfect_predictions_have_a_loss_of_0(self):
        assert iou_loss(torch.tensor([0.5, 1.0]), torch.tensor([0.75, 1.0])) == 0

    @pytest.mark.parametrize("kind", ["smooth_l1", "bce"])
    def test_no_boxes_have_a_loss_of_0_with_a_gradient(self, kind):
        predicted = torch.zeros(0, requires_grad=True)
        loss = iou_loss(predicted, torch.zeros(0), kind)
        loss.backward()
        assert loss == 0
        assert predicted.grad.shape == (0,)


def test_cross_entropy_bounds_the_predicted_iou(opinionated):
    detector = opinionated({"MODEL.IOU_HEAD.LOSS": "bce", "TEST.SCORE_THRESHOLD": 0.0})
    with torch.no_grad():
        detector.iou_head.predictor.weight.mul_(1000)
        features = detector.extract(images_of((64, 64)))
        (found,) = detector.detect(features, detector.propose(features))
    assert ((found.ious >= 0) & (found.ious <= 1)).all() and found.ious.min() < 0.1 and found.ious.max() > 0.9
