"""Boxes scattered around objects: the density, compared with torch.distributions and by sampling."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from iounet.boxes import box_offsets
from iounet.errors import OptionError
from iounet.training.noise import MIN_BOXES_PER_OBJECT, BoxNoise, sample_energy_boxes

OBJECTS = [
    torch.tensor([[10.0, 20.0, 50.0, 40.0], [100.0, 30.0, 130.0, 110.0]]),
    torch.zeros(0, 4),
    torch.tensor([[0.0, 0.0, 16.0, 16.0]]),
]


@pytest.mark.parametrize("stds", [(0.05, 0.1, 0.2), (0.3,)])
def test_density_equals_torchs_mixture(stds):
    offsets = 0.4 * torch.randn(200, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    widths = torch.tensor(stds, dtype=torch.float64)[:, None].expand(-1, 4)
    mixture = MixtureSameFamily(
        Categorical(torch.ones(len(stds))), Independent(Normal(torch.zeros_like(widths), widths), 1)
    )
    torch.testing.assert_close(BoxNoise(stds).log_density(offsets), mixture.log_prob(offsets))


def test_samples_have_that_density():
    """Check the integral of a known density by importance sampling, and the moments."""
    torch.manual_seed(0)
    noise = BoxNoise((0.05, 0.1, 0.2))
    offsets = noise.sample(400_000, torch.zeros(0, dtype=torch.float64))
    target = Independent(Normal(torch.full((4,), 0.03, dtype=torch.float64), 0.08), 1)
    weights = (target.log_prob(offsets) - noise.log_density(offsets)).exp()
    assert weights.mean().item() == pytest.approx(1, abs=0.02)
    assert (weights[:, None] * offsets).mean(0).tolist() == pytest.approx([0.03] * 4, abs=0.002)
    variance = sum(std**2 for std in noise.stds) / 3
    assert offsets.square().mean(0).tolist() == pytest.approx([variance] * 4, rel=0.02)


def test_the_log_density_is_finite_far_away():
    far = torch.tensor([50.0, 0.0, 0.0, 0.0])
    assert BoxNoise((0.1,)).log_density(far).item() == pytest.approx(
        -0.5 * 500**2 - 4 * math.log(0.1 * math.sqrt(2 * math.pi))
    )


@pytest.mark.parametrize("stds", [(), (0.1, 0.0), (-0.1,)])
def test_stds_must_be_positive(stds):
    with pytest.raises(OptionError, match="stds must be positive numbers"):
        BoxNoise(stds)


def test_each_image_shares_its_boxes_among_its_objects():
    boxes, objects, log_density = sample_energy_boxes(OBJECTS, num_boxes=40, noise=BoxNoise())
    assert [len(of_image) for of_image in boxes] == [40, 0, 40]
    assert objects.bincount().tolist() == [20, 20, 40]
    assert objects.diff().min() == 0
    _, few, _ = sample_energy_boxes(OBJECTS, num_boxes=1, noise=BoxNoise())
    assert few.bincount().tolist() == [MIN_BOXES_PER_OBJECT] * 3


@pytest.mark.parametrize("target_noise", [0.0, 0.1])
def test_the_first_box_of_each_object_is_its_target(target_noise):
    torch.manual_seed(1)
    noise = BoxNoise((0.1,))
    firsts, others = [], []
    for _ in range(300):
        boxes, objects, log_density = sample_energy_boxes(OBJECTS, num_boxes=16, noise=noise, target_noise=target_noise)
        offsets = box_offsets(torch.cat(boxes), torch.cat(OBJECTS)[objects])
        torch.testing.assert_close(noise.log_density(offsets), log_density, rtol=1e-3, atol=1e-3)
        is_first = torch.tensor([1, *objects.diff().tolist()]).bool()
        firsts.append(offsets[is_first])
        others.append(offsets[~is_first])
    assert torch.cat(firsts).std().item() == pytest.approx(0.1 * target_noise, rel=0.1, abs=1e-5)
    assert torch.cat(others).std().item() == pytest.approx(0.1, rel=0.1)


def test_no_objects_at_all():
    boxes, objects, log_density = sample_energy_boxes([torch.zeros(0, 4)] * 2, num_boxes=16, noise=BoxNoise())
    assert [len(of_image) for of_image in boxes] == [0, 0]
    assert objects.shape == log_density.shape == (0,)
