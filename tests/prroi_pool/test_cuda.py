"""Tests that need a GPU: devices, streams, CUDA graphs. test_cuda_kernels.py tests the kernels' results without one."""

import os
import subprocess
import sys

import pytest
import torch

from prroi_pool import MultiScalePrRoIPool, extension, prroi_pool2d, pyramid, reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.fixture(autouse=True)
def build():
    if torch.cuda.is_available():
        extension.load("cuda")


def make_inputs(device="cuda"):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 16, 40, 50, generator=generator)
    start, size = torch.rand(2, 30, 2, generator=generator) * 30
    rois = torch.cat([torch.randint(2, (30, 1), generator=generator).float(), start, start + size], 1)
    return features.to(device).requires_grad_(), rois.to(device).requires_grad_()


def pool_and_differentiate(features, rois, pool=prroi_pool2d):
    output = pool(features, rois, 7, 7, 0.9)
    return output, *torch.autograd.grad(output.square().sum(), (features, rois))


def assert_equals_reference(results):
    expected = pool_and_differentiate(*make_inputs("cpu"), reference.prroi_pool2d)
    for actual, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(actual.cpu(), exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())


def test_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")
    assert torch.cuda.current_device() == 0
    results = pool_and_differentiate(*make_inputs("cuda:1"))
    assert {result.device.index for result in results} == {1}
    assert_equals_reference(results)


def test_on_a_side_stream():
    features, rois = make_inputs()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Long enough that a kernel on the wrong stream would read the memory before it is written.
        for _ in range(50):
            busy = torch.randn(2000, 2000, device="cuda")
            busy @ busy
        late = features * 1
        results = pool_and_differentiate(late, rois)
    torch.cuda.current_stream().wait_stream(stream)
    assert_equals_reference(results)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_captured_as_a_graph(channels_last, dtype):
    """A refinement step, forward and RoI gradient, is replayed with other boxes."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    features, rois = (tensor.detach() for tensor in make_inputs())
    features = features.to(dtype, memory_format=memory_format)
    static_rois = rois[torch.randperm(len(rois))].requires_grad_()

    def step():
        output = prroi_pool2d(features, static_rois, 7, 7, 0.9)
        return output, *torch.autograd.grad(output.float().square().sum(), static_rois)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        static_rois.copy_(rois)
    graph.replay()
    torch.testing.assert_close(captured, step())


def test_no_call_synchronises_with_the_gpu():
    features, rois = make_inputs()
    pool_and_differentiate(features, rois)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pool_and_differentiate(features, rois)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("channels_last", [False, True])
def test_results_are_deterministic(channels_last):
    features, rois = make_inputs()
    if channels_last:
        features = features.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        first = pool_and_differentiate(features, rois)
        for _ in range(5):
            assert all(map(torch.equal, pool_and_differentiate(features, rois), first))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_pyramid_in_one_launch(dtype, channels_last):
    """Values and gradients are bitwise identical to those of the operators, called level by level."""
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    maps = {
        name: torch.randn(2, 64, 64 // stride, 96 // stride, generator=generator).to("cuda", dtype)
        for name, stride in (("0", 1), ("1", 2), ("2", 4))
    }
    maps = {name: features.to(memory_format=memory_format).requires_grad_() for name, features in maps.items()}
    start, size = torch.rand(2, 60, 2, generator=generator) * 200
    boxes = torch.cat([start, start + size], 1).to("cuda", torch.float64 if dtype == torch.float64 else torch.float32)
    boxes = [boxes[:25].clone().requires_grad_(), boxes[25:].clone().requires_grad_()]
    pool = MultiScalePrRoIPool(list(maps), 7, canonical_scale=80, canonical_level=3)
    inputs = [*maps.values(), *boxes]

    def run():
        output = pool(maps, boxes, [(256, 384), (250, 384)])
        return output, *torch.autograd.grad(output.float().square().sum(), inputs)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        at_once = run()
    forwards = [event.count for event in profile.key_averages() if "prroi_pool::forward" in event.key]
    assert forwards == [1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyramid, "fits_one_launch", lambda maps, rois: False)
        level_by_level = run()
    for actual, expected in zip(at_once, level_by_level, strict=True):
        torch.testing.assert_close(actual, expected)


def test_second_derivatives_of_a_pyramid():
    maps = {
        name: torch.randn(1, 2, side, side, dtype=torch.float64, device="cuda") for name, side in (("0", 8), ("1", 4))
    }
    boxes = torch.tensor([[1.3, 2.1, 9.7, 8.2], [2.2, 1.4, 28.0, 25.1]], dtype=torch.float64, device="cuda")
    pool = MultiScalePrRoIPool(list(maps), 2, canonical_scale=10, canonical_level=3)

    def run(first, second, boxes):
        return pool({"0": first, "1": second}, [boxes], [(32, 32)])

    inputs = [tensor.requires_grad_() for tensor in (*maps.values(), boxes)]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("channels", [64, 66])
def test_a_view_that_is_not_aligned_for_vector_loads(channels):
    buffer = torch.randn(1 + channels * 40 * 50, device="cuda")
    shape, strides = (1, channels, 40, 50), (channels * 2000, 1, channels * 50, channels)
    for offset in (0, 1):
        features = buffer[offset : offset + channels * 2000].as_strided(shape, strides, offset)
        rois = torch.tensor([[0, 3.2, 4.1, 30.7, 28.3]], device="cuda")
        expected = reference.prroi_pool2d(features, rois, 7, 7, 1.0)
        torch.testing.assert_close(prroi_pool2d(features, rois, 7, 7, 1.0), expected, rtol=1e-4, atol=1e-5)


def test_no_rois():
    features = torch.randn(1, 64, 20, 20, device="cuda", requires_grad=True)
    output = prroi_pool2d(features, torch.zeros(0, 5, device="cuda"), 7, 7, 1.0)
    assert output.shape == (0, 64, 7, 7)
    output.sum().backward()
    assert not features.grad.any()


def test_only_the_driver_and_nvrtc_are_needed(tmp_path):
    """The kernels are built with an empty PATH and an empty cache, without compiler or toolkit."""
    code = """
import torch
from prroi_pool import prroi_pool2d
features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], device="cuda")
print(prroi_pool2d(features, torch.tensor([[0.0, 0, 0, 1, 1]], device="cuda"), 2, 2, 1.0).flatten().tolist())
"""
    environment = os.environ | {"PATH": "", "CXX": "", "CUDA_HOME": "", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[1.75, 2.25, 2.75, 3.25]\n" and "Warning" not in done.stderr
    assert "compiling the CUDA kernels for float32" in done.stderr
    again = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (again.stdout, again.stderr) == (done.stdout, "")
