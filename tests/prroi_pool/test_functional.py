"""Values, gradients and contract of the operator, for every implementation and device."""

import re

import numpy as np
import pytest
import torch
from raw_kernels import pool_with
from samples import ROIS, gradients, make_features
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import prroi_pool
from prroi_pool import PrRoIPool2D, extension, prroi_pool2d, reference

BINS = {"pooled_height": 3, "pooled_width": 2, "spatial_scale": 0.9}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_numerical_integration(pool, integrate, device, dtype):
    features, rois = make_features(device, dtype), torch.tensor(ROIS, dtype=dtype, device=device)
    expected = integrate(features.cpu(), rois.cpu(), 3, 2, 0.9)
    torch.testing.assert_close(
        pool(features, rois, 3, 2, 0.9).cpu().double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


def test_gradients_equal_finite_differences(pool, device):
    rois = torch.tensor(ROIS, dtype=torch.float64, device=device)
    images, boxes = rois[:, :1], rois[:, 1:].clone().requires_grad_()

    def pool_boxes(features, boxes):
        return pool(features, torch.cat([images, boxes], dim=1), 3, 2, 0.9)

    # The tiny RoI is tested in float32 against float64 below, because finite differences would need steps far below its
    # size.
    keep = [n for n, roi in enumerate(ROIS) if roi[3] - roi[1] > 0.1 and roi[4] - roi[2] > 0.1]
    images = images[keep]
    features = make_features(device, channels=2).requires_grad_()
    assert gradcheck(pool_boxes, (features, boxes[keep].detach().requires_grad_()))


def test_reference_has_second_derivatives():
    rois = torch.tensor(ROIS[:3], dtype=torch.float64)
    boxes = rois[:, 1:].clone().requires_grad_()

    def pool_boxes(features, boxes):
        return reference.prroi_pool2d(features, torch.cat([rois[:, :1], boxes], dim=1), 2, 2, 0.9)

    assert gradgradcheck(pool_boxes, (make_features(channels=1).requires_grad_(), boxes))


@pytest.mark.parametrize("size", [1e-4, 0.01, 1.0, 8.0])
def test_float32_keeps_its_precision_down_to_tiny_rois(pool, device, size):
    torch.manual_seed(0)
    corners = torch.rand(200, 2) * 40 + 4
    rois = torch.cat([torch.zeros(200, 1), corners, corners + size], dim=1).to(device)
    # The features are smooth, so that rounding of the coordinates, 4e-6 px, has little effect.
    y, x = torch.meshgrid(torch.arange(56.0), torch.arange(56.0), indexing="ij")
    features = (2 + torch.stack([torch.sin(x / 5 + y / 9), torch.cos(y / 7)])[None]).to(device)
    grad_output = torch.ones(200, 2, 3, 2, device=device)
    actual = gradients(pool, features, rois, grad_output, scale=1.0)
    expected = gradients(reference.prroi_pool2d, features.double(), rois.double(), grad_output.double(), scale=1.0)
    # In the reference, autograd cancels terms that grow with 1 / size. The kernels have no such terms.
    rois_tolerance = 1e-5 if pool is prroi_pool2d else max(1e-5, 1e-6 / size)
    for a, e, tolerance in zip(actual, expected, (1e-5, 1e-5, rois_tolerance), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=tolerance * e.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 5, 64, 130, 260])
@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_equal_the_reference(pool, device, dtype, channels, channels_last):
    features = make_features(device, dtype, channels, shape=(70, 23))
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    center, size = torch.rand(60, 2) * torch.tensor([25.0, 75.0]), torch.rand(60, 2) * 30
    rois = torch.cat([torch.randint(2, (60, 1)).float(), center - size / 2, center + size / 2], dim=1).to(device, dtype)
    expected = gradients(reference.prroi_pool2d, features, rois, bins=(7, 5))
    for a, e in zip(gradients(pool, features, rois, bins=(7, 5)), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * e.abs().max().item())


NAN, INF = float("nan"), float("inf")
LAYOUTS = {
    "channels-last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "batch innermost": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every other element": lambda t: torch.stack([t, -t], dim=-1).flatten(3)[..., ::2],
    "part of a larger map": lambda t: torch.nn.functional.pad(t, (2, 3, 1, 1, 4, 4), value=NAN)[:, 4:-4, 1:-1, 2:-3],
    "expanded channels": lambda t: t[:, :1].expand(t.shape),
    "expanded pixels": lambda t: t[:, :, :1, :1].expand(t.shape),
}


STRIDED = [
    *(("features", layout, False) for layout in LAYOUTS),
    *(("grad_output", layout, channels_last) for layout in LAYOUTS for channels_last in (False, True)),
    *(("rois", "columns", channels_last) for channels_last in (False, True)),
]


@pytest.mark.parametrize(("of", "layout", "channels_last"), STRIDED)
def test_any_strides(pool, device, of, layout, channels_last):
    features, rois = make_features(device, channels=4), torch.tensor(ROIS, dtype=torch.float64, device=device)
    grad_output = make_features(device, channels=4, shape=(3, 2)).repeat(len(rois) // 2, 1, 1, 1)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    arguments = {"features": features, "rois": rois, "grad_output": grad_output}
    arguments[of] = rois.t().contiguous().t() if of == "rois" else LAYOUTS[layout](arguments[of])
    expected = gradients(reference.prroi_pool2d, **{name: t.contiguous() for name, t in arguments.items()})
    for a, e in zip(gradients(pool, **arguments), expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_a_dimension_of_size_1_may_have_any_stride(pool, device, shape):
    features, rois = make_features(device, channels=4), torch.tensor(ROIS, dtype=torch.float64, device=device)
    grad_output = make_features(device, channels=4, shape=shape[::-1]).repeat(len(rois) // 2, 1, 1, 1)
    grad_output = grad_output.transpose(2, 3)
    expected = gradients(reference.prroi_pool2d, features, rois, grad_output.clone(), shape)
    for a, e in zip(gradients(pool, features, rois, grad_output, shape), expected, strict=True):
        torch.testing.assert_close(a, e)


def test_the_gradient_of_a_sum_is_expanded(pool, device):
    features = make_features(device).requires_grad_()
    rois = torch.tensor(ROIS, dtype=torch.float64, device=device)
    pool(features, rois, 3, 2, 0.9).sum().backward()
    torch.testing.assert_close(features.grad, gradients(pool, features, rois, torch.ones(8, 3, 3, 2).to(rois))[1])


def test_published_vector_of_mmcv(pool, device):
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], device=device)
    rois = torch.tensor([[0.0, 0, 0, 1, 1]], device=device)
    grad_output = torch.ones(1, 1, 2, 2, device=device)
    output, grad_features, grad_rois = gradients(pool, features, rois, grad_output, bins=(2, 2), scale=1.0)
    assert output.flatten().tolist() == [1.75, 2.25, 2.75, 3.25]
    assert grad_features.flatten().tolist() == [1, 1, 1, 1]
    assert grad_rois.tolist() == [[0, 2, 4, 2, 4]]


def test_unit_bins_on_integers_are_an_average_pooling(pool, device):
    """This is the test of the original authors' implementation."""
    features = make_features(device, torch.float32, channels=4, shape=(16, 24))
    rois = torch.tensor([[0.0, 0, 0, 14, 14], [1.0, 14, 14, 28, 28]], device=device)
    average = torch.nn.functional.avg_pool2d(features, kernel_size=2, stride=1)
    expected = torch.stack([average[0, :, :7, :7], average[1, :, 7:14, 7:14]])
    torch.testing.assert_close(pool(features, rois, 7, 7, 0.5), expected)


EMPTY_ROIS = {
    "without area": [0, 3.5, 4.5, 3.5, 4.5],
    "without width": [0, 3.5, 4.5, 3.5, 6.5],
    "reversed": [0, 6.5, 7.5, 2.5, 3.5],
    "reversed in y": [0, 2.5, 7.5, 6.5, 3.5],
    "off the map": [0, 100, 100, 120, 120],
    "off the map before it": [0, -20, -20, -2, -2],
    "far off the map": [0, 1e30, 1e30, 2e30, 2e30],
    "infinitely large": [0, -INF, -INF, INF, INF],
    "infinite end": [0, 1, 1, INF, 4],
    "infinite place": [0, INF, INF, INF, INF],
    "overflowing": [0, -3e38, -3e38, 3e38, 3e38],
    "NaN start": [0, NAN, 1, 4, 4],
    "NaN end": [0, 1, 1, 4, NAN],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EMPTY_ROIS)
def test_empty_rois_pool_to_zero_with_gradient_zero(pool, device, dtype, name):
    if name == "overflowing" and dtype == torch.float64:
        pytest.skip("finite in float64")
    features = make_features(device, dtype)
    # The empty RoI does not affect a valid one.
    rois = torch.tensor([EMPTY_ROIS[name], ROIS[0]], dtype=dtype, device=device)
    output, grad_features, grad_rois = gradients(pool, features, rois)
    assert (output[0] == 0).all() and (grad_rois[0] == 0).all()
    output_alone, grad_alone, _ = gradients(
        pool,
        features,
        rois[1:],
        torch.randn(2, 3, 3, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)[1:].to(device),
    )
    torch.testing.assert_close(output[1:], output_alone)
    torch.testing.assert_close(grad_features, grad_alone)


def test_the_cost_of_a_huge_roi_is_bounded_by_the_map(pool, integrate, device):
    features = make_features(device)
    rois = torch.tensor([[0, -1e9, -1e9, 1e9, 1e9], [0, -1e3, -1e3, 1e3, 1e3]], dtype=torch.float64, device=device)
    output, grad_features, grad_rois = gradients(pool, features, rois, bins=(3, 3), scale=1.0)
    # All pixels lie in the middle bin, so their mean over its large area is small.
    middle = features[0].sum(dim=(1, 2)) / (2e3 / 3) ** 2
    torch.testing.assert_close(output[1, :, 1, 1], middle)
    assert output.isfinite().all() and grad_features.isfinite().all() and grad_rois.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 9, 11), (2, 0, 9, 11), (2, 3, 0, 11), (2, 3, 9, 0)])
def test_empty_features(pool, device, shape):
    features = torch.zeros(shape, device=device)
    rois = torch.tensor(ROIS[: 0 if shape[0] == 0 else None], device=device).reshape(-1, 5)
    output, grad_features, grad_rois = gradients(pool, features, rois)
    assert output.shape == (len(rois), shape[1], 3, 2) and not output.any()
    assert grad_features.shape == shape and not grad_rois.any()


def test_no_rois(pool, device):
    output, grad_features, grad_rois = gradients(pool, make_features(device), torch.zeros(0, 5, device=device).double())
    assert output.shape == (0, 3, 3, 2) and not grad_features.any() and grad_rois.shape == (0, 5)


@pytest.mark.parametrize("backend", ["kernels", "without_kernels"])
@pytest.mark.parametrize("batch_index", ["-1", "2", "0.5", "nan", "1e+20"])
def test_an_invalid_batch_index_raises_on_the_cpu(request, device, backend, batch_index):
    prroi_pool2d = (request.getfixturevalue(backend) or prroi_pool).prroi_pool2d
    features = make_features(device, torch.float32)
    rois = torch.tensor([ROIS[0], [float(batch_index), 1, 1, 5, 5]], device=device)
    if device == "cpu":
        with pytest.raises(
            ValueError, match=rf"rois\[1, 0\], the batch index, is {re.escape(batch_index)}, .* in \[0, 2\)"
        ):
            prroi_pool2d(features, rois, 3, 2, 1.0)
    else:
        output, _, grad_rois = gradients(prroi_pool2d, features, rois)
        assert not output[1].any() and not grad_rois[1].any()


@pytest.mark.parametrize("batch_index", [-1.0, 2.0, NAN, 1e20])
@pytest.mark.parametrize("implementation", ["reference", "kernels", "cuda_on_cpu"])
def test_implementations_skip_an_invalid_batch_index(request, kernels, implementation, device, batch_index):
    if implementation == "cuda_on_cpu" and device != "cpu":
        pytest.skip("the CUDA kernels run on the GPU")
    pool = {
        "reference": lambda: reference.prroi_pool2d,
        "kernels": lambda: pool_with(extension.load(device)),
        "cuda_on_cpu": lambda: pool_with(request.getfixturevalue("cuda_on_cpu")),
    }[implementation]()
    rois = torch.tensor([ROIS[0], [batch_index, 1, 1, 5, 5]], device=device)
    output, grad_features, grad_rois = gradients(pool, make_features(device, torch.float32), rois)
    assert output[0].any() and not output[1].any() and not grad_rois[1].any() and grad_features.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(3, 9, 11)}, ValueError, r"\[N, C, H, W\].*features\[None\]"),
        ({"rois": torch.zeros(4, 4)}, ValueError, r"\[K, 5\].*index of each box's image"),
        ({"rois": torch.zeros(5)}, ValueError, r"\[K, 5\]"),
        ({"features": torch.zeros(2, 3, 9, 11, dtype=torch.uint8)}, TypeError, "floating point"),
        ({"features": [[0.0]]}, TypeError, "got list.*torch.as_tensor"),
        ({"features": np.zeros((2, 3, 9, 11))}, TypeError, "got ndarray.*torch.as_tensor"),
        ({"rois": torch.zeros(4, 5, dtype=torch.int64)}, TypeError, "floating point.*float"),
        ({"rois": np.zeros((4, 5))}, TypeError, r"got ndarray.*torch\.as_tensor"),
        ({"rois": [[0, 1, 1, 5, 5]]}, TypeError, r"got list.*torch\.as_tensor"),
        ({"rois": None}, TypeError, "got NoneType"),
        ({"rois": torch.zeros(4, 5, device="meta")}, ValueError, "on cpu but rois are on meta"),
        ({"pooled_height": 0}, ValueError, "must be at least 1"),
        ({"pooled_width": -1}, ValueError, "must be at least 1"),
        ({"pooled_height": 7.5}, TypeError, "whole numbers, got 7.5"),
        ({"pooled_width": NAN}, TypeError, "whole numbers, got nan"),
        ({"pooled_width": INF}, TypeError, "whole numbers, got inf"),
        ({"pooled_height": (7, 7)}, TypeError, r"whole numbers, got \(7, 7\)"),
        ({"pooled_height": "7"}, TypeError, "whole numbers, got '7'"),
        ({"spatial_scale": 0.0}, ValueError, "positive"),
        ({"spatial_scale": NAN}, ValueError, "positive"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {"features": torch.zeros(2, 3, 9, 11), "rois": torch.zeros(4, 5)}
    arguments |= {"pooled_height": 3, "pooled_width": 2, "spatial_scale": 1.0}
    with pytest.raises(error, match=message):
        prroi_pool2d(**arguments | change)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rois_dtype", [torch.float32, torch.float64])
def test_dtypes(kernels, device, dtype, rois_dtype):
    features, rois = make_features(device, dtype), torch.tensor(ROIS, dtype=rois_dtype, device=device)
    output, grad_features, grad_rois = gradients(prroi_pool2d, features, rois)
    assert (output.dtype, grad_features.dtype, grad_rois.dtype) == (dtype, dtype, rois_dtype)
    expected = reference.prroi_pool2d(features.double(), rois.double(), 3, 2, 0.9)
    torch.testing.assert_close(output.double(), expected, rtol=max(torch.finfo(dtype).eps, 1e-5), atol=1e-5)


@pytest.mark.parametrize("wanted", ["features", "rois"])
def test_only_the_gradient_that_is_needed_is_computed(kernels, device, wanted):
    features, rois = make_features(device), torch.tensor(ROIS, device=device)
    (features if wanted == "features" else rois).requires_grad_()
    with torch.profiler.profile() as profile:
        prroi_pool2d(features, rois, 3, 2, 1.0).sum().backward()
    operators = [event.name for event in profile.events() if event.name.startswith(f"{extension.NAMESPACE}::")]
    assert operators == [f"{extension.NAMESPACE}::prroi_pool2d", f"{extension.NAMESPACE}::{wanted}_backward"]


def test_rois_as_a_list_of_boxes_per_image(pool, device):
    features, rois = make_features(device), torch.tensor(ROIS, device=device).double()
    rois = rois[rois[:, 0].argsort(stable=True)]
    boxes = [rois[rois[:, 0] == image, 1:].requires_grad_() for image in (0, 1)]
    output = prroi_pool2d(features, boxes, 3, 2, 0.9)
    expected, _, grad_rois = gradients(pool, features, rois, torch.ones_like(output))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(torch.cat(torch.autograd.grad(output.sum(), boxes)), grad_rois[:, 1:])


def test_a_list_with_no_boxes_no_images_or_too_many(device):
    features = make_features(device, torch.float32)
    assert prroi_pool2d(features, [torch.zeros(0, 4, device=device)] * 2, 3, 2, 1.0).shape == (0, 3, 3, 2)
    assert prroi_pool2d(features[:0], [], 3, 2, 1.0).shape == (0, 3, 3, 2)
    with pytest.raises(ValueError, match=r"boxes of 3 images, but features holds 2"):
        prroi_pool2d(features, [torch.zeros(1, 4, device=device)] * 3, 3, 2, 1.0)
    with pytest.raises(ValueError, match=r"boxes of image 1 must have shape \[K, 4\], got \[1, 5\]"):
        prroi_pool2d(features, [torch.zeros(1, size, device=device) for size in (4, 5)], 3, 2, 1.0)


def test_second_derivatives_equal_finite_differences(kernels, device):
    rois = torch.tensor(ROIS[:3], dtype=torch.float64, device=device)
    boxes = rois[:, 1:].clone().requires_grad_()

    def pool_boxes(features, boxes):
        return prroi_pool2d(features, torch.cat([rois[:, :1], boxes], dim=1), 2, 2, 0.9)

    features = make_features(device, channels=1).requires_grad_()
    assert gradgradcheck(pool_boxes, (features, boxes))
    assert gradgradcheck(lambda features: pool_boxes(features, boxes.detach()), (features,))


def test_third_derivatives_equal_the_reference(kernels, device):
    def third(pool):
        features = make_features(device).requires_grad_()
        rois = torch.tensor(ROIS[:3], dtype=torch.float64, device=device, requires_grad=True)
        value = pool(features, rois, 2, 2, 0.9).square().sum()
        for _ in range(2):
            (value,) = torch.autograd.grad(value, rois, create_graph=True)
            value = value.square().sum()
        return torch.autograd.grad(value, (features, rois))

    torch.testing.assert_close(third(prroi_pool2d), third(reference.prroi_pool2d))


def test_forward_mode_raises(pool, device):
    features, rois = make_features(device), torch.tensor(ROIS, device=device)
    for name, tensor in {"features": features, "rois": rois}.items():
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="does not support forward-mode"):
            dual = forward_ad.make_dual(tensor, torch.ones_like(tensor))
            prroi_pool2d(**{"features": features, "rois": rois} | {name: dual}, **BINS)
    with pytest.raises(NotImplementedError, match="does not support forward-mode"):
        torch.func.jvp(lambda features: prroi_pool2d(features, rois, **BINS), (features,), (features,))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_results_do_not_depend_on_the_number_of_threads(kernels, device, channels_last):
    torch.manual_seed(0)
    features = torch.randn(2, 96, 70, 30)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    corners = torch.rand(100, 2) * 30
    rois = torch.cat([torch.randint(2, (100, 1)).float(), corners, corners + torch.rand(100, 2) * 30], dim=1)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(gradients(prroi_pool2d, features, rois, bins=(7, 7)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_the_module_calls_the_function(device):
    features, rois = make_features(device), torch.tensor(ROIS, device=device)
    module = PrRoIPool2D(3, 2, 0.9)
    assert torch.equal(module(features, rois), prroi_pool2d(features, rois, 3, 2, 0.9))
    assert repr(module) == "PrRoIPool2D(pooled_height=3, pooled_width=2, spatial_scale=0.9)"


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_a_map_of_more_than_2_to_the_31_elements(kernels, device):
    side = 46_400
    try:
        features = torch.empty(1, 1, side, side)  # 8.6 GB of address space; only written pages use memory
    except RuntimeError as error:
        pytest.skip(f"the system does not provide this much address space: {error}")
    corner = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    features[..., -9:, -9:] = corner
    offset = side - 9
    box = torch.tensor([[0, 1.5, 2.25, 7.5, 8.0]])
    far = (box + torch.tensor([0.0, offset, offset, offset, offset])).requires_grad_()  # exact in float32
    output = prroi_pool2d(features, far, 3, 2, 1.0)
    expected, _, grad_box = gradients(prroi_pool2d, corner, box, torch.ones_like(output), scale=1.0)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), far)[0], grad_box)
