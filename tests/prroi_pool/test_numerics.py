"""Relative errors in float32, for bins from a thousandth of a pixel to hundreds of pixels."""

import pytest
import torch
from torch import Tensor

from prroi_pool import reference

WIDTHS = (0.001, 0.01, 0.1, 0.5, 0.99, 1.0, 1.01, 2.5, 16, 100, 512)
# Tolerance for RoI gradients on noise. The error is larger for positive features far from 0, where a gradient is the
# small difference of large means, which float32 rounds.
ROIS_TOLERANCE = 1e-5
TOLERANCE = 2e-6


def gradients(pool, features: Tensor, rois: Tensor, grad_output: Tensor, scale: float) -> tuple[Tensor, ...]:
    features, rois = features.detach().requires_grad_(), rois.detach().requires_grad_()
    output = pool(features, rois, *grad_output.shape[2:], scale)
    return output.detach(), *torch.autograd.grad(output, (features, rois), grad_output)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest relative error over all RoIs or images."""
    difference = (actual.double() - expected).flatten(1).norm(dim=1)
    return (difference / expected.flatten(1).norm(dim=1)).max().item()


@pytest.mark.parametrize("sign", ["positive", "zero-mean"])
@pytest.mark.parametrize(("bins", "widths"), [((1, 1), WIDTHS), ((7, 5), [w for w in WIDTHS if w <= 16])])
def test_float32_equals_float64(pool, device, bins, widths, sign):
    generator = torch.Generator().manual_seed(0)
    for width in widths:
        channels, count = (4, 3) if width > 16 else (32, 20)
        side = int(1.1 * width * max(bins)) + 12
        features = torch.randn(1, channels, side, side, generator=generator)
        features = features.relu() if sign == "positive" else features
        size = width * torch.tensor([bins[1], bins[0]]) * (1 + 0.05 * torch.rand(count, 2, generator=generator))
        start = torch.rand(count, 2, generator=generator) * (side - size)
        rois = torch.cat([torch.zeros(count, 1), 4 * start, 4 * (start + size)], 1).to(device)
        features = features.to(device)
        grad_output = torch.randn(count, channels, *bins, generator=generator).to(device)
        actual = gradients(pool, features, rois, grad_output, 0.25)
        expected = gradients(reference.prroi_pool2d, features.double(), rois.double(), grad_output.double(), 0.25)
        errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
        assert all(e < t for e, t in zip(errors, (TOLERANCE, TOLERANCE, ROIS_TOLERANCE), strict=True)), (width, errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_one_row_equals_its_mean_and_the_derivative_of_a_mean(pool, integrate, device, dtype, width):
    """Compare with an oracle without weights: d mean / db over [a, b] is (f(b) - mean) / (b - a)."""
    features = torch.randn(1, 1, 1, 600, generator=torch.Generator().manual_seed(0), dtype=dtype)
    rois = torch.tensor([[0, start, -1, start + width, 1] for start in (0.25, 30.4, 61.9995)], dtype=dtype)
    mean = integrate(features, rois, 1, 1, 1.0).flatten()

    def at(x: Tensor) -> Tensor:
        left = x.floor().long()
        share = x - left
        row = features.double().flatten() / 2  # the mean of a hat over [-1, 1] is 1 / 2
        return (1 - share) * row[left] + share * row[left + 1]

    low, high = rois.double()[:, 1], rois.double()[:, 3]
    expected = torch.stack([mean - at(low), at(high) - mean], 1) / (high - low)[:, None]
    grad_output = torch.ones(len(rois), 1, 1, 1, dtype=dtype, device=device)
    output, _, grad_rois = gradients(pool, features.to(device), rois.to(device), grad_output, 1.0)
    tolerance = ROIS_TOLERANCE if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(output.flatten().double().cpu(), mean, rtol=tolerance, atol=tolerance * 0.1)
    assert relative_error(grad_rois[:, [1, 3]].cpu(), expected) < tolerance


def test_a_coordinate_that_overflows_when_it_is_scaled_pools_to_zero(pool, device):
    features = torch.rand(1, 4, 9, 11, device=device)
    rois = torch.tensor([[0, 3e38, 1, 3.0001e38, 5], [0, 1, -3e38, 5, -2.9e38]], device=device)
    assert not any(
        result.any() for result in gradients(pool, features, rois, torch.ones(2, 4, 3, 3, device=device), 4.0)
    )
