"""The energy head's loss: against a literal loop, by finite differences, and on a density with a known maximum."""

import math

import pytest
import torch

from iounet.boxes import box_offsets, boxes_at
from iounet.modeling import EnergyHead, nce_loss
from iounet.postprocess import refine_boxes
from iounet.training.noise import BoxNoise, sample_energy_boxes
from prroi_pool import MultiScalePrRoIPool

OBJECTS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])


def case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    output = 3 * torch.randn(len(OBJECTS), generator=generator, dtype=torch.float64)
    return output, 2 * torch.randn(len(OBJECTS), generator=generator, dtype=torch.float64)


def loop_nce(output, objects, log_density):
    """Mean of -log((exp(f_0) / q_0) / sum of exp(f_m) / q_m) over the objects, in a loop."""
    losses = []
    for number in sorted(set(objects)):
        weights = [
            math.exp(f) / math.exp(q) for f, q, o in zip(output, log_density, objects, strict=True) if o == number
        ]
        losses.append(-math.log(weights[0] / sum(weights)))
    return sum(losses) / len(losses)


def test_loss_agrees_with_the_formula():
    output, log_density = case()
    expected = loop_nce(output.tolist(), OBJECTS.tolist(), log_density.tolist())
    assert nce_loss(output, OBJECTS, log_density).item() == pytest.approx(expected)


def test_gradient_by_finite_differences():
    output, log_density = case(seed=1)
    output.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: nce_loss(f, OBJECTS, log_density), (output,))
    loss = nce_loss(output, OBJECTS, log_density)
    (gradient,) = torch.autograd.grad(loss, output)
    for number in range(3):  # adding a constant to f of all boxes of an object changes nothing
        assert gradient[number == OBJECTS].sum().abs() < 1e-12


def test_large_energies_do_not_overflow():
    output = torch.tensor([5000.0, 4990.0, -5000.0, -4000.0])
    loss = nce_loss(output, torch.tensor([0, 0, 1, 1]), torch.zeros(4))
    assert loss.item() == pytest.approx(500.0, rel=1e-4)


def test_no_objects_give_zero_with_a_gradient():
    output = torch.zeros(0, requires_grad=True)
    loss = nce_loss(output, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0


class TestLearnedDensity:
    """Objects annotated with noise of known density: this density minimises the loss."""

    MEAN = torch.tensor([0.06, -0.04, 0.05, -0.08], dtype=torch.float64)
    STD = 0.07

    def fit(self, target_noise):
        """Learn a Gaussian f(offset) = -precision / 2 |offset - mean|^2 from many objects with one true offset."""
        torch.manual_seed(0)
        mean = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        log_precision = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([mean, log_precision], lr=0.05)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 400)
        noise = BoxNoise((0.05, 0.1, 0.2))
        # Offset of each annotation from the position that the features indicate.
        for _ in range(400):
            annotated = self.MEAN + self.STD * torch.randn(256, 4, dtype=torch.float64)
            seen = torch.tensor([[40.0, 40.0, 80.0, 72.0]], dtype=torch.float64).expand(256, 4)
            annotations = boxes_at(annotated, seen)
            boxes, objects, log_density = sample_energy_boxes(
                list(annotations[:, None]), num_boxes=32, noise=noise, target_noise=target_noise
            )
            offsets = box_offsets(torch.cat(boxes), seen[objects])
            output = -log_precision.exp() / 2 * (offsets - mean).square().sum(1)
            loss = nce_loss(output, objects, log_density)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return mean.detach(), log_precision.exp().rsqrt().item()

    def test_maximum_and_width_are_correct(self):
        mean, std = self.fit(target_noise=0.0)
        assert mean.tolist() == pytest.approx(self.MEAN.tolist(), abs=0.01)
        assert std == pytest.approx(self.STD, rel=0.1)

    def test_nce_plus_widens_the_density_around_the_same_maximum(self):
        mean, std = self.fit(target_noise=0.5)
        assert mean.tolist() == pytest.approx(self.MEAN.tolist(), abs=0.01)
        assert std > 1.1 * self.STD

    def test_refinement_reaches_the_maximum(self):
        seen = torch.tensor([[40.0, 40.0, 80.0, 72.0]], dtype=torch.float64)
        target = boxes_at(self.MEAN, seen)

        def energy(boxes):
            return -(box_offsets(boxes, seen) - self.MEAN).square().sum(1) / (2 * self.STD**2)

        refined, _ = refine_boxes(
            energy, seen, coordinates="center_size", step_policy="backtracking", num_steps=10, early_stop=0.0,
            step_size=0.004, size_step_size=0.004,
        )  # fmt: skip
        torch.testing.assert_close(refined, target, atol=0.05, rtol=0)


def test_f_is_the_output_of_the_boxs_class():
    torch.manual_seed(0)
    head = EnergyHead(MultiScalePrRoIPool(["0"], 3), in_channels=5, num_classes=4, hidden_dim=16)
    with torch.no_grad():
        head.predictor.weight.zero_()
        head.predictor.bias.copy_(torch.tensor([9.0, -7.0, 30.0, 0.5]))
    features = {"0": torch.randn(1, 5, 16, 16)}
    boxes = [torch.tensor([[4.0, 4.0, 40.0, 50.0]] * 4)]
    assert head(features, boxes, torch.tensor([1, 2, 3, 0]), [(64, 64)]).tolist() == [-7.0, 30.0, 0.5, 30.0]
