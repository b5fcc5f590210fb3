"""Pooling from a pyramid as one operator, as in exported programs."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

import prroi_pool
from prroi_pool import MultiScalePrRoIPool, reference

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
# In older versions, MultiScalePrRoIPool cannot detect that torch.export is tracing it.
exports = pytest.mark.skipif(TORCH < (2, 10), reason="the export of a pyramid needs PyTorch 2.10")

SCALES = [1.0, 0.5, 0.25]
BINS = (3, 2)
# On levels 0, 2, 1, 0, 2. The fourth RoI has no area.
ROIS = [
    [0, 1.3, 2.2, 7.6, 6.9],
    [1, -3.2, -1.1, 44.7, 13.3],
    [1, 6.4, 4.6, 14.2, 22.8],
    [0, 4, 4, 3, 5],
    [0, 2, 3, 9, 8.5],
]
LEVELS = [0, 2, 1, 0, 2]


@pytest.fixture(params=["kernels", "without kernels"])
def package(request):
    """Return the package, or its copy, whose operators have another namespace and call the reference."""
    return prroi_pool if request.param == "kernels" else request.getfixturevalue("without_kernels")


@pytest.fixture
def operators(package):
    return getattr(torch.ops, package.extension.NAMESPACE)


def make_inputs(dtype=torch.float64, channels_last=False):
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    maps = [torch.randn(2, 3, 16 // s, 24 // s, generator=generator).to(dtype) for s in (1, 2, 4)]
    maps = [features.to(memory_format=memory_format).requires_grad_() for features in maps]
    return maps, torch.tensor(ROIS, dtype=dtype).requires_grad_(), torch.tensor(LEVELS)


def make_grad_output(dtype=torch.float64):
    return torch.randn(len(ROIS), 3, *BINS, generator=torch.Generator().manual_seed(1)).to(dtype)


def by_reference(maps, rois, levels):
    """Pool one RoI after the other. RoIs on a level that does not exist give 0."""
    pooled = [
        reference.prroi_pool2d(maps[level], roi[None], *BINS, SCALES[level])
        if 0 <= level < len(maps)
        else maps[0].new_zeros(1, 3, *BINS)
        for roi, level in zip(rois, levels.tolist(), strict=True)
    ]
    return torch.cat(pooled)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(operators, dtype, channels_last):
    maps, rois, levels = make_inputs(dtype, channels_last)
    opcheck(operators.pyramid_pool.default, (maps, rois, levels, *BINS, SCALES))
    opcheck(operators.pyramid_pool.default, (maps, rois[:0], levels[:0], *BINS, SCALES))
    maps, rois = [features.detach() for features in maps], rois.detach()
    opcheck(operators.pyramid_rois_backward.default, (make_grad_output(dtype), maps, rois, levels, SCALES))


def test_each_roi_is_pooled_from_its_level_with_autograds_gradient(operators):
    maps, rois, levels = make_inputs()
    levels[4] = 3
    expected = by_reference(maps, rois, levels)
    grad_output = make_grad_output()
    expected_gradients = torch.autograd.grad(expected, [rois, *maps], grad_output)
    pooled = operators.pyramid_pool(maps, rois, levels, *BINS, SCALES)
    torch.testing.assert_close(pooled, expected)
    assert pooled[:3].flatten(1).any(1).all() and not pooled[3:].any()
    torch.testing.assert_close(torch.autograd.grad(pooled, [rois, *maps], grad_output), expected_gradients)
    detached = [features.detach() for features in maps]
    grad_rois = operators.pyramid_rois_backward(grad_output, detached, rois.detach(), levels, SCALES)
    torch.testing.assert_close(grad_rois, expected_gradients[0])


def test_gradients_of_gradients(operators):
    """A penalty on the norm of the boxes' gradient needs them."""
    found, expected = [], []
    for results, pool in (
        (found, lambda *inputs: operators.pyramid_pool(*inputs, *BINS, SCALES)),
        (expected, by_reference),
    ):
        maps, rois, levels = make_inputs()
        inputs = [rois, *maps]
        gradients = torch.autograd.grad(pool(maps, rois, levels).square().sum(), inputs, create_graph=True)
        results += torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), inputs)
    torch.testing.assert_close(found, expected)


def test_no_rois(operators):
    maps, rois, levels = make_inputs()
    rois = rois.detach()[:0].requires_grad_()
    pooled = operators.pyramid_pool(maps, rois, levels[:0], *BINS, SCALES)
    assert pooled.shape == (0, 3, *BINS)
    gradients = torch.autograd.grad(pooled.sum(), [rois, *maps])
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in (rois, *maps)]
    assert not any(gradient.any() for gradient in gradients)


def test_fake_tensors_have_the_shapes_of_real_ones(operators):
    with FakeTensorMode():
        maps = [torch.empty(2, 3, 16 // s, 24 // s, dtype=torch.float16) for s in (1, 2, 4)]
        rois, levels = torch.empty(5, 5), torch.empty(5, dtype=torch.int64)
        pooled = operators.pyramid_pool(maps, rois, levels, *BINS, SCALES)
        grad_rois = operators.pyramid_rois_backward(pooled, maps, rois, levels, SCALES)
    assert pooled.shape == (5, 3, *BINS) and pooled.dtype == torch.float16
    assert grad_rois.shape == (5, 5) and grad_rois.dtype == torch.float32


def test_boxes_backward_is_the_gradient_of_the_boxes(package):
    pool = package.MultiScalePrRoIPool(["a", "b", "c"], BINS, canonical_scale=8, canonical_level=0)
    maps, rois, levels = make_inputs()
    x = {name: features.detach() for name, features in zip("abc", maps, strict=True)}
    boxes = [rois[:3, 1:].detach().requires_grad_(), rois[3:, 1:].detach().requires_grad_()]
    grad_output = make_grad_output()
    arguments = x, boxes, [(16, 24), (16, 20)]
    expected = torch.autograd.grad(pool(*arguments, levels), boxes, grad_output)
    with torch.no_grad():
        found = pool.boxes_backward(grad_output, *arguments, levels)
    torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize("shape", [(4, 3, 3, 2), (6, 3, 3, 2), (5, 2, 3, 2), (5, 3, 2, 3)])
def test_boxes_backward_requires_a_gradient_of_the_outputs_shape(shape):
    pool = MultiScalePrRoIPool(["a", "b", "c"], BINS)
    maps, rois, levels = make_inputs()
    with pytest.raises(ValueError, match=r"grad_output must be \[5, 3, 3, 2\]"):
        x = dict(zip("abc", maps, strict=True))
        pool.boxes_backward(torch.zeros(shape), x, [rois[:, 1:]], [(16, 24)], levels)


class Head(nn.Module):
    """The second stage of a detector: pooled boxes and a linear layer."""

    def __init__(self, package):
        super().__init__()
        self.backbone = nn.ModuleList([nn.Conv2d(3, 3, 3, stride=s, padding=1) for s in (1, 2, 4)])
        self.pool = package.MultiScalePrRoIPool(["0", "1", "2"], BINS, canonical_scale=8, canonical_level=1)
        self.linear = nn.Linear(18, 2)

    def forward(self, image, boxes):
        maps = {str(level): layer(image) for level, layer in enumerate(self.backbone)}
        return self.linear(self.pool(maps, [boxes], [(image.shape[2], image.shape[3])]).flatten(1))


@exports
def test_an_exported_program_is_saved_loaded_and_trained(package, tmp_path):
    torch.manual_seed(0)
    head = Head(package)
    image, boxes = torch.randn(1, 3, 16, 24), torch.tensor(ROIS)[:, 1:]
    program = torch.export.export(head, (image, boxes), dynamic_shapes=(None, {0: torch.export.Dim("boxes")}))
    called = [str(node.target) for node in program.graph.nodes if package.extension.NAMESPACE in str(node.target)]
    assert called == [f"{package.extension.NAMESPACE}.pyramid_pool.default"]
    torch.export.save(program, tmp_path / "head.pt2")
    loaded = torch.export.load(tmp_path / "head.pt2").module()
    trained = []
    for module in (head, loaded):
        module = copy.deepcopy(module)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(image, boxes[:4]).square().sum().backward()
        optimizer.step()
        trained.append(dict(module.named_parameters()))
    torch.testing.assert_close(trained[1], trained[0])
    changes = [(trained[0][name] - start).abs().max() for name, start in head.named_parameters()]
    assert min(changes) > 1e-3, "every level is trained"
    assert loaded(image, boxes[:0]).shape == (0, 2)


@exports
def test_maps_of_several_dtypes_give_the_widest_dtype_as_without_export(package):
    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = package.MultiScalePrRoIPool(["0", "1"], BINS)

        def forward(self, fine, coarse, boxes, levels):
            return self.pool({"0": fine, "1": coarse}, [boxes], [(16, 24)], levels)

    maps, rois, levels = make_inputs(torch.float32)
    inputs = maps[0].detach().half(), maps[1].detach(), rois.detach()[:, 1:], levels.clamp(max=1)
    expected = Pool()(*inputs)
    found = torch.export.export(Pool(), inputs).module()(*inputs)
    assert found.dtype == expected.dtype == torch.float32
    # Without export, the fine level is pooled in half precision; the exported operator pools in float32.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_levels_agree_in_a_pyramid_that_was_not_exported():
    """The operator and MultiScalePrRoIPool, which pools level by level, assign the same levels."""
    maps, rois, levels = make_inputs()
    x = {str(level): features for level, features in enumerate(maps)}
    order = rois[:, 0].argsort(stable=True)
    counts = rois[:, 0].long().bincount().tolist()
    boxes = list(rois[order, 1:].split(counts))
    expected = MultiScalePrRoIPool(list(x), BINS)(x, boxes, [(16, 24)], levels[order])
    operator = getattr(torch.ops, prroi_pool.extension.NAMESPACE).pyramid_pool
    torch.testing.assert_close(operator(maps, rois[order], levels[order], *BINS, SCALES), expected)
