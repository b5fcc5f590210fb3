"""A pyramid pooled in one launch of the CUDA kernels, run by the emulator. test_cuda.py tests the same on a GPU."""

import functools

import pytest
import torch
from torch._subclasses import FakeTensorMode

from prroi_pool import pyramid
from prroi_pool.multiscale import _pool_in_fixed_shapes

SCALES = [1.0, 0.5, 0.25]
OUTPUT_SIZE = (3, 2)


def make_inputs(dtype, channels_last):
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    maps = [torch.randn(2, 5, 16 // s, 24 // s, generator=generator, dtype=torch.float64) for s in (1, 2, 4)]
    maps = [features.to(dtype, memory_format=memory_format) for features in maps]
    start, size = torch.rand(2, 9, 2, generator=generator, dtype=torch.float64) * 12
    rois = torch.cat([torch.randint(2, (9, 1), generator=generator), start, start + size], 1).to(dtype)
    return maps, rois, torch.randint(3, (9, 2), generator=generator)[:, 0]


def pools(cuda_on_cpu, levels):
    """Return pooling in one launch, and pooling level by level."""
    level_by_level = functools.partial(_pool_in_fixed_shapes, levels=levels, scales=SCALES, output_size=OUTPUT_SIZE)

    def in_one_launch(maps, rois):
        kernels = cuda_on_cpu.of_pyramid
        return pyramid.pool_pyramid(kernels, level_by_level, maps, rois, levels, OUTPUT_SIZE, SCALES)

    return in_one_launch, level_by_level


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("wants", ["maps", "rois", "both"])
def test_one_launch_equals_level_by_level(cuda_on_cpu, channels_last, wants):
    results = []
    maps, rois, levels = make_inputs(torch.float64, channels_last)
    wanted = {"maps": maps, "rois": [rois], "both": [*maps, rois]}[wants]
    for pool in pools(cuda_on_cpu, levels):
        for tensor in wanted:
            tensor.requires_grad_()
        output = pool(maps, rois)
        first = torch.autograd.grad(output.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in first), wanted)
        results.append([output, *first, *second, *torch.autograd.grad(pool(maps, rois).square().sum(), wanted)])
    torch.testing.assert_close(*results)
    layouts = [[tensor.stride() for tensor in result[-len(wanted) :]] for result in results]
    assert layouts[0] == layouts[1]


def test_maps_may_change_after_forward_if_rois_need_no_gradient(cuda_on_cpu):
    maps, rois, levels = make_inputs(torch.float64, False)
    for features in maps:
        features.requires_grad_()
    in_one_launch, _ = pools(cuda_on_cpu, levels)
    changing = [features * 1 for features in maps]
    output = in_one_launch(changing, rois)
    for features in changing:
        features.data.zero_(), features.add_(1)
    assert all(grad.any() for grad in torch.autograd.grad(output.sum(), maps))


def test_a_level_that_does_not_exist_pools_to_zero(cuda_on_cpu):
    maps, rois, levels = make_inputs(torch.float32, False)
    levels[:2] = torch.tensor([-1, 3])
    output = cuda_on_cpu.of_pyramid.forward(maps, rois, levels.contiguous(), *OUTPUT_SIZE, SCALES)
    assert not output[:2].any() and output[2:].flatten(1).any(1).all()


def test_maps_that_do_not_fit_one_launch():
    maps, rois, _ = make_inputs(torch.float32, False)
    assert pyramid.fits_one_launch(maps, rois)
    assert not pyramid.fits_one_launch(maps * 3, rois)
    assert not pyramid.fits_one_launch([maps[0].half(), *maps[1:]], rois)
    assert not pyramid.fits_one_launch([maps[0][:, :3], *maps[1:]], rois)
    negative = torch.randn(2, 5, 4, 4, dtype=torch.complex64).conj().imag
    assert negative.is_neg() and not pyramid.fits_one_launch([negative], rois)
    with FakeTensorMode() as mode:
        assert not pyramid.fits_one_launch([mode.from_tensor(maps[0])], rois)
        assert not pyramid.fits_one_launch(maps, rois)
