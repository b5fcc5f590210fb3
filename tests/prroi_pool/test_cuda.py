"""What only a GPU can show: devices, streams, graphs. That the kernels are right is shown in test_cuda_kernels.py."""

import pytest
import torch

from prroi_pool import extension, prroi_pool2d, reference

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


def assert_right(results):
    expected = pool_and_differentiate(*make_inputs("cpu"), reference.prroi_pool2d)
    for actual, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(actual.cpu(), exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())


def test_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")
    assert torch.cuda.current_device() == 0
    results = pool_and_differentiate(*make_inputs("cuda:1"))
    assert {result.device.index for result in results} == {1}
    assert_right(results)


def test_on_a_side_stream():
    features, rois = make_inputs()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Long enough that a kernel on the wrong stream would read before this is written.
        for _ in range(50):
            busy = torch.randn(2000, 2000, device="cuda")
            busy @ busy
        late = features * 1
        results = pool_and_differentiate(late, rois)
    torch.cuda.current_stream().wait_stream(stream)
    assert_right(results)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_captured_as_a_graph(channels_last, dtype):
    """A step of the refinement: forward and RoI gradient, replayed with other boxes."""
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


def test_nothing_waits_for_the_gpu():
    features, rois = make_inputs()
    pool_and_differentiate(features, rois)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pool_and_differentiate(features, rois)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_rois_gradient_has_the_same_bits_every_time():
    features, rois = make_inputs()
    gradients = [pool_and_differentiate(features, rois)[2] for _ in range(5)]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_the_feature_gradient_says_that_it_is_not_deterministic():
    features, rois = make_inputs()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="prroi_pool features_backward on CUDA"):
            pool_and_differentiate(features, rois)
    finally:
        torch.use_deterministic_algorithms(False)
