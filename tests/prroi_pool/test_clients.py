"""Behaviour on which projects that embed the operator rely: the authors' interface, half-precision RoIs under autocast,
contiguous outputs, torch.func."""

import numpy as np
import pytest
import torch
from samples import ROIS, gradients, make_features

import prroi_pool
from prroi_pool import PrRoIPool2D, extension, prroi_pool2d
from prroi_pool.functional import PrRoIPool2DFunction, _import_prroi_pooling, rois_of_images


@pytest.fixture(params=["kernels", "without kernels"])
def pool(request, device):
    """Return `prroi_pool2d` with and without kernels."""
    if request.param == "kernels":
        request.getfixturevalue("kernels")
        return prroi_pool.prroi_pool2d
    return request.getfixturevalue("without_kernels").prroi_pool2d


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_output_is_contiguous_and_the_gradient_has_the_features_format(pool, device, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    features = make_features(device).contiguous(memory_format=memory_format)
    output, grad_features, _ = gradients(pool, features, torch.tensor(ROIS, device=device).double())
    assert output.is_contiguous()
    output.view(len(ROIS), -1)  # as in front of a linear layer
    assert grad_features.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("seven", [7, 7.0, np.int64(7), np.int32(7), np.float64(7), np.float32(7), torch.tensor(7)])
def test_numbers_of_bins_of_other_types(kernels, seven):
    features, rois = make_features(), torch.tensor(ROIS)
    expected = prroi_pool2d(features, rois, 7, 7, 0.5)
    assert torch.equal(prroi_pool2d(features, rois, seven, seven, np.float32(0.5)), expected)
    module = PrRoIPool2D(seven, seven, np.float32(0.5))
    assert repr(module) == "PrRoIPool2D(pooled_height=7, pooled_width=7, spatial_scale=0.5)"
    assert torch.equal(module(features, rois), expected)


def test_the_module_checks_its_arguments_on_construction():
    with pytest.raises(TypeError, match="whole numbers, got 7.5"):
        PrRoIPool2D(7, 7.5, 1.0)
    with pytest.raises(ValueError, match="positive"):
        PrRoIPool2D(7, 7, -1.0)


def test_the_names_of_the_authors_implementation(kernels, device):
    """Projects that embed the operator import these names, and their installation guides call them."""
    assert _import_prroi_pooling() is extension.kernels("cuda" if torch.cuda.is_available() else "cpu")
    features, rois = make_features(device), torch.tensor(ROIS, device=device)
    arguments = (features, rois, 3, 2, 0.9)
    assert torch.equal(PrRoIPool2DFunction.apply(*arguments), prroi_pool2d(*arguments))


def test_import_prroi_pooling_returns_none_without_kernels(without_kernels):
    assert without_kernels.functional._import_prroi_pooling() is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("as_list", [False, True])
def test_half_rois_are_converted_to_float32(pool, device, dtype, as_list):
    features, rois = make_features(device, dtype), torch.tensor(ROIS, device=device).to(dtype)
    expected = gradients(pool, features, rois.float())
    rois.requires_grad_()
    if as_list:
        order = rois[:, 0].argsort(stable=True)
        output = pool(features, list(rois[order, 1:].split([4, 4])), 3, 2, 0.9)[order.argsort()]
    else:
        output = pool(features, rois, 3, 2, 0.9)
    assert output.dtype == dtype and torch.equal(output, expected[0])
    generator = torch.Generator().manual_seed(1)
    grad_output = torch.randn(output.shape, generator=generator, dtype=dtype).to(device)
    (grad_rois,) = torch.autograd.grad(output, rois, grad_output)
    torch.testing.assert_close(grad_rois, expected[2].to(dtype))


def test_the_image_index_is_not_rounded(device):
    """bfloat16 cannot represent 257, and float16 cannot represent 2049."""
    boxes = torch.tensor([[1.0, 1, 4, 4]], device=device, dtype=torch.bfloat16)
    assert rois_of_images([boxes[:0]] * 257 + [boxes]).tolist() == [[257, 1, 1, 4, 4]]


def test_features_and_rois_keep_their_dtypes_under_autocast(pool, device):
    features, rois = make_features(device, torch.float32), torch.tensor(ROIS, device=device)
    half = features.bfloat16()
    expected, expected_half = gradients(pool, features, rois), gradients(pool, half, rois)
    with torch.autocast(device, torch.bfloat16):
        found, found_half = gradients(pool, features, rois), gradients(pool, half, rois)
    assert all(map(torch.equal, found, expected)) and all(map(torch.equal, found_half, expected_half))
    assert found[0].dtype == torch.float32 and found_half[0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_torch_func(pool, device):
    inputs = make_features(device), torch.tensor(ROIS[:3], dtype=torch.float64, device=device)

    def pooled(features, rois):
        return pool(features, rois, 3, 2, 0.9)

    def loss(features, rois):
        return pooled(features, rois).square().sum()

    def autograd_of(function, *, argument):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(*leaves), leaves[argument], create_graph=True)[0]

    for argument in (0, 1):
        expected = autograd_of(loss, argument=argument)
        torch.testing.assert_close(torch.func.grad(loss, argument)(*inputs), expected)
        output, vjp = torch.func.vjp(pooled, *inputs)
        torch.testing.assert_close(vjp(2 * output)[argument], expected)
        jacobian = torch.func.jacrev(pooled, argument)(*inputs)
        expected_jacobian = torch.autograd.functional.jacobian(pooled, inputs)[argument]
        torch.testing.assert_close(jacobian, expected_jacobian)
        # All gradients at once, for a batch of feature maps or a batch of RoI sets.
        several = [torch.stack([t, t.flip(-2)]) if n == argument else t for n, t in enumerate(inputs)]
        in_dims = (0, None) if argument == 0 else (None, 0)
        gradients = torch.func.vmap(torch.func.grad(loss, argument), in_dims)(*several)
        torch.testing.assert_close(gradients[0], expected)

    hessian = torch.func.jacrev(torch.func.jacrev(loss, 1), 1)(*inputs)
    torch.testing.assert_close(
        hessian, torch.autograd.functional.hessian(lambda rois: loss(inputs[0], rois), inputs[1])
    )
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.hessian(loss, 1)(*inputs)
