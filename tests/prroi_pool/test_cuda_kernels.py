"""Cases specific to the CUDA kernels, run by the emulator. test_functional.py also tests these kernels."""

import fuzz
import pytest
import torch

from prroi_pool import reference


@pytest.mark.parametrize("seed", range(6))
def test_random_rois(cuda_on_cpu, seed):
    assert fuzz.check_batch(seed, "cpu", cuda_on_cpu, half_types=True) is None


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [3, 16, 300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_are_accumulated_in_float32(cuda_on_cpu, dtype, channels, channels_last):
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    features = torch.randn(1, channels, 20, 30, generator=generator).to(dtype, memory_format=memory_format)
    start, size = torch.rand(2, 40, 2, generator=generator) * torch.tensor([30.0, 20.0])
    rois = torch.cat([torch.zeros(40, 1), start, start + size], 1)
    grad_output = torch.randn(40, channels, 7, 7, generator=generator).to(dtype)

    output = cuda_on_cpu.forward(features, rois, 7, 7, 0.7)
    grad_features = cuda_on_cpu.features_backward(grad_output, rois, features.shape, channels_last, 0.7)
    grad_rois = cuda_on_cpu.rois_backward(grad_output, features, rois, 0.7)

    exact_features, exact_rois = features.double().requires_grad_(), rois.double().requires_grad_()
    expected = reference.prroi_pool2d(exact_features, exact_rois, 7, 7, 0.7)
    expected_gradients = torch.autograd.grad(expected, (exact_features, exact_rois), grad_output.double())
    # Only the result is rounded to half precision, not the terms of its sum. The RoIs' gradient is not rounded to half.
    for actual, exact, eps in zip(
        (output, grad_features, grad_rois),
        (expected, *expected_gradients),
        (torch.finfo(dtype).eps, torch.finfo(dtype).eps, 1e-5),
        strict=True,
    ):
        torch.testing.assert_close(actual.double(), exact, rtol=eps, atol=2e-5 * exact.abs().max().item())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("bins", "size"), [((2, 2), 700.0), ((70, 1), 30.0), ((1, 70), 30.0), ((9, 40), 20.0)])
def test_rois_too_large_for_the_tables_and_unusual_numbers_of_bins(cuda_on_cpu, bins, size, channels_last):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 710, 60, generator=generator, dtype=torch.float64)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0, 1.2, 3.4, 1.2 + size / 2, 3.4 + size], [0, 4, 5, 7, 9]], dtype=torch.float64)
    grad_output = torch.randn(2, 4, *bins, generator=generator, dtype=torch.float64)
    actual = (
        cuda_on_cpu.forward(features, rois, *bins, 1.0),
        cuda_on_cpu.features_backward(grad_output, rois, features.shape, channels_last, 1.0),
        cuda_on_cpu.rois_backward(grad_output, features, rois, 1.0),
    )
    features.requires_grad_(), rois.requires_grad_()
    expected = reference.prroi_pool2d(features, rois, *bins, 1.0)
    expected = (expected, *torch.autograd.grad(expected, (features, rois), grad_output))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [1e5, 3e5, 1e6, 4e6, 1e9])
def test_rois_far_larger_than_the_map(cuda_on_cpu, size, channels_last):
    """The kernels agree on the bins that reach a pixel even if float32 cannot resolve single pixels."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(1, 4, 9, 11, generator=generator)
    features = features.contiguous(memory_format=torch.channels_last) if channels_last else features
    rois = torch.tensor([[0, -size, -size, size, size], [0, -size / 3, -size, size, size / 2]])
    grad_output = torch.randn(2, 4, 8, 8, generator=generator)
    actual = (
        cuda_on_cpu.forward(features, rois, 8, 8, 1.0),
        cuda_on_cpu.features_backward(grad_output, rois, features.shape, channels_last, 1.0),
        cuda_on_cpu.rois_backward(grad_output, features, rois, 1.0),
    )
    features, rois = features.double().requires_grad_(), rois.double().requires_grad_()
    expected = reference.prroi_pool2d(features, rois, 8, 8, 1.0)
    expected = (expected, *torch.autograd.grad(expected, (features, rois), grad_output.double()))
    for ours, exact in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


def test_a_map_wider_than_the_integers_of_float32(cuda_on_cpu):
    width = 2**24 + 3
    features = torch.ones(1, 1, 1, width)
    rois = torch.tensor([[0.0, width - 4, -1, width + 5, 1], [0.0, 2**24 + 2, -1, 2**26, 1]])
    output = cuda_on_cpu.forward(features, rois, 1, 2, 1.0)
    assert output.isfinite().all() and (output >= 0).all() and (output <= 1).all()


def test_shared_memory_of_an_earlier_roi_is_not_read(cuda_on_cpu):
    """By rounding, the last bin of this RoI ends beyond the RoI, on a pixel that no thread sums."""
    wide = torch.tensor([[0, 0.5, 0.5, 39.5, 39.5]])
    cuda_on_cpu.forward(torch.full((1, 64, 40, 40), float("nan")), wide, 7, 7, 1.0)
    features = torch.rand(1, 64, 40, 40, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor([[0.0, 0, 0, 16, 16]])
    output = cuda_on_cpu.forward(features, rois, 7, 7, 1.0)
    torch.testing.assert_close(output, reference.prroi_pool2d(features, rois, 7, 7, 1.0))
