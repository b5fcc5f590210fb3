"""Exports models with the operators to ONNX and runs them with ONNX Runtime."""

import json

import pytest
import torch
from processes import run
from torch import nn
from torch.export import Dim

import prroi_pool
from prroi_pool import MultiScalePrRoIPool, PrRoIPool2D, prroi_pool2d, reference

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
    pytest.skip("the export needs torch.compiler.is_exporting and a custom_translation_table", allow_module_level=True)
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from prroi_pool.onnx import translations  # noqa: E402

BINS = (3, 2)
SCALE = 0.9
NAN, INF = float("nan"), float("inf")
# (batch_index, x1, y1, x2, y2) on two images of 9 × 11 pixels, at a scale of 0.9
ROIS = {
    "inside": [[0, 1.3, 2.2, 7.6, 6.9], [1, 4.1, 1.2, 9.7, 8.8]],
    "partly outside": [[1, -3.2, -1.1, 4.7, 3.3], [1, 6.4, 4.6, 14.2, 12.8], [0, -6.3, -4.2, 17.7, 15.4]],
    "whole map": [[0, -1.2, -1.2, 12.5, 10.4], [1, -1.2, -1.2, 12.5, 10.4]],
    "tiny": [[0, 3.3, 3.6, 3.31, 3.61], [1, 0.4, 5.15, 9.6, 5.16], [1, 4.44, 4.44, 4.45, 4.45]],
    "off the map": [[0, -30, 2, -20, 5], [1, 2, 30, 5, 40], [0, 1e6, 1e6, 2e6, 2e6], [1, -3, 2, -1.3, 5]],
    "larger than the map": [[0, -1e3, -1e3, 1e3, 1e3], [1, -40, 2.2, 40, 3.4]],
    "without area": [[0, 7.6, 2.2, 1.3, 6.9], [0, 1.3, 6.9, 7.6, 2.2], [1, 2, 2, 2, 5], [1, 3, 4, 3, 4]],
    "not finite": [
        *([1, *(NAN if i == j else c for j, c in enumerate([1.3, 2.2, 7.6, 6.9]))] for i in range(4)),
        *([0, *(INF if i == j else c for j, c in enumerate([1.3, 2.2, 7.6, 6.9]))] for i in range(4)),
        *([0, *(-INF if i == j else c for j, c in enumerate([1.3, 2.2, 7.6, 6.9]))] for i in range(4)),
        [1, -INF, -INF, INF, INF],
        [1, -3e38, -3e38, 3e38, 3e38],
    ],
    "of images that do not exist": [[n, 1.3, 2.2, 7.6, 6.9] for n in (2, -1, 0.5, NAN, INF, 1e18)],
    "none": [],
}


def make_features(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def make_grad_output(count, channels=3):
    return torch.randn(count, channels, *BINS, generator=torch.Generator().manual_seed(1))


def random_rois(count, num_images=2, size=(9, 11)):
    generator = torch.Generator().manual_seed(2)
    x1, y1, w, h = torch.rand(4, count, generator=generator)
    x1, y1 = x1 * 1.4 * size[1] - 2, y1 * 1.4 * size[0] - 2
    images = torch.randint(num_images, (count,), generator=generator)
    return torch.stack([images, x1, y1, x1 + w * size[1], y1 + h * size[0]], 1)


class Exported:
    """A module exported to ONNX. It is called like the module, with tensors, and returns tensors."""

    def __init__(self, module, arguments, dynamic_shapes, rois_at_once=64, opset=18):
        with torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                arguments,
                dynamo=True,
                custom_translation_table=translations(rois_at_once),
                dynamic_shapes=dynamic_shapes,
                opset_version=opset,
                verbose=False,
            )
        self.proto = program.model_proto
        self.session = self.load()

    def load(self, **settings):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        for name, value in settings.items():
            setattr(options, name, value)
        return onnxruntime.InferenceSession(self.proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __call__(self, *arguments):
        return torch.from_numpy(self.session.run(None, self.feed(*arguments))[0])

    def feed(self, *arguments):
        names = [value.name for value in self.proto.graph.input]
        return dict(zip(names, (tensor.numpy() for tensor in arguments), strict=True))


def dynamic(*arguments):
    return tuple({axis: Dim.AUTO for axis in range(tensor.dim())} for tensor in arguments)


class Pool(nn.Module):
    """A model that calls `prroi_pool2d`."""

    def forward(self, features, rois):
        return prroi_pool2d(features, rois, *BINS, SCALE)


class RoisBackward(nn.Module):
    def forward(self, grad_output, features, rois):
        return getattr(torch.ops, prroi_pool.extension.NAMESPACE).rois_backward(grad_output, features, rois, SCALE)


@pytest.fixture(scope="module", params=[64, 2, None], ids=["64 at once", "2 at once", "all at once"])
def pool(request):
    arguments = make_features(2, 3, 9, 11), random_rois(5)
    return Exported(Pool(), arguments, (*dynamic(arguments[0]), {0: Dim.AUTO}), request.param)


@pytest.fixture(scope="module")
def rois_backward():
    arguments = make_grad_output(5), make_features(2, 3, 9, 11), random_rois(5)
    shapes = ({0: Dim.AUTO, 1: Dim.AUTO}, *dynamic(arguments[1]), {0: Dim.AUTO})
    return Exported(RoisBackward(), arguments, shapes)


def expected_gradient(grad_output, features, rois, scale=SCALE):
    """Return the gradient by autograd through the reference in float64."""
    rois = rois.double().requires_grad_()
    pooled = reference.prroi_pool2d(features.double(), rois, *grad_output.shape[2:], scale)
    return torch.autograd.grad(pooled, rois, grad_output.double())[0].float()


@pytest.mark.parametrize("kind", ROIS)
def test_values_and_gradients_of_rois(pool, rois_backward, kind):
    features, rois = make_features(2, 3, 9, 11), torch.tensor(ROIS[kind]).view(-1, 5)
    # Mixed with other RoIs, which must not be affected.
    rois = torch.cat([rois, random_rois(3)])
    expected = reference.prroi_pool2d(features.double(), rois.double(), *BINS, SCALE).float()
    torch.testing.assert_close(pool(features, rois), expected, rtol=1e-5, atol=2e-6)
    has_image = (rois[:, 0] == 0) | (rois[:, 0] == 1)
    eager = prroi_pool2d(features, rois[has_image], *BINS, SCALE)
    torch.testing.assert_close(pool(features, rois)[has_image], eager, rtol=1e-5, atol=2e-6)

    grad_output = make_grad_output(len(rois))
    found = rois_backward(grad_output, features, rois)
    torch.testing.assert_close(found, expected_gradient(grad_output, features, rois), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "channels", "height", "width"), [(1, 3, 9, 11), (3, 1, 7, 20), (2, 5, 1, 1), (4, 2, 30, 1)]
)
def test_sizes_are_dynamic(pool, rois_backward, images, channels, height, width):
    features, rois = make_features(images, channels, height, width), random_rois(7, images, (height, width))
    expected = prroi_pool2d(features, rois, *BINS, SCALE)
    assert expected.any()
    torch.testing.assert_close(pool(features, rois), expected, rtol=1e-5, atol=2e-6)
    grad_output = make_grad_output(7, channels)
    found = rois_backward(grad_output, features, rois)
    torch.testing.assert_close(found, expected_gradient(grad_output, features, rois), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 200])
def test_any_number_of_rois(pool, rois_backward, count):
    features, rois = make_features(2, 3, 9, 11), random_rois(count)
    expected = prroi_pool2d(features, rois, *BINS, SCALE)
    torch.testing.assert_close(pool(features, rois), expected, rtol=1e-5, atol=2e-6)
    grad_output = make_grad_output(count)
    found = rois_backward(grad_output, features, rois)
    torch.testing.assert_close(found, expected_gradient(grad_output, features, rois), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [21, 23])
def test_newer_opsets(opset):
    features, rois = make_features(2, 3, 9, 11), random_rois(70)
    exported = Exported(PrRoIPool2D(7, 1, 0.5), (features, rois), (None, {0: Dim.AUTO}), opset=opset)
    assert [(entry.domain, entry.version) for entry in exported.proto.opset_import] == [("", opset)]
    torch.testing.assert_close(exported(features, rois), prroi_pool2d(features, rois, 7, 1, 0.5), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 1e-3), (torch.float64, 1e-6)])
def test_features_of_other_dtypes(dtype, eps):
    features, rois = make_features(2, 3, 9, 11).to(dtype), random_rois(6)
    exported = Exported(PrRoIPool2D(3, 2, SCALE), (features, rois), (None, {0: Dim.AUTO}))
    found = exported(features, rois)
    assert found.dtype == dtype
    torch.testing.assert_close(found, prroi_pool2d(features, rois, 3, 2, SCALE), rtol=eps, atol=2e-6)


def all_nodes(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from all_nodes(attribute.g)


def check_standard(exported):
    onnx.checker.check_model(exported.proto, full_check=True)
    assert {node.domain for node in all_nodes(exported.proto.graph)} == {""}
    assert not exported.proto.functions
    assert [(entry.domain, entry.version) for entry in exported.proto.opset_import] == [("", 18)]


def test_the_models_are_valid_and_contain_only_standard_operators(pool, rois_backward):
    check_standard(pool)
    check_standard(rois_backward)


def run_by_reference(exported, arguments):
    proto = onnx.ModelProto()
    proto.CopyFrom(exported.proto)
    # The evaluator treats a missing condition of a Loop as false.
    for loop in [node for node in proto.graph.node if node.op_type == "Loop" and not node.input[1]]:
        loop.input[1] = "always"
    true = onnx.helper.make_tensor("always", onnx.TensorProto.BOOL, [], [True])
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["always"], value=true))
    return torch.from_numpy(ReferenceEvaluator(proto).run(None, exported.feed(*arguments))[0])


def test_the_reference_runtime_of_onnx_gives_the_same_result(pool, rois_backward):
    """ONNX's reference runtime is written in Python to check the specification."""
    features, rois = make_features(2, 3, 9, 11), torch.tensor([*ROIS["inside"], *ROIS["partly outside"], *ROIS["tiny"]])
    expected = prroi_pool2d(features, rois, *BINS, SCALE)
    torch.testing.assert_close(run_by_reference(pool, (features, rois)), expected, rtol=1e-5, atol=2e-6)
    arguments = make_grad_output(len(rois)), features, rois
    found = run_by_reference(rois_backward, arguments)
    torch.testing.assert_close(found, expected_gradient(*arguments), rtol=1e-5, atol=1e-5)


def largest_tensor(exported, arguments, folder):
    """Return the number of elements in the largest output of a node, from the profile of a run."""
    session = exported.load(
        enable_profiling=True,
        profile_file_prefix=str(folder / "profile"),
        graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    )
    session.run(None, exported.feed(*arguments))
    with open(session.end_profiling()) as file:
        events = json.load(file)
    nodes = [event["args"] for event in events if "output_type_shape" in event.get("args", {})]
    assert any(node["op_name"] == "MatMul" for node in nodes), "the profile must include nodes inside the Loop"
    shapes = [shape for node in nodes for value in node["output_type_shape"] for shape in value.values()]
    return max(torch.Size(shape).numel() for shape in shapes)


def test_memory_is_bounded_by_the_pixels_under_the_rois(pool, rois_backward, tmp_path):
    """No tensor contains the whole map for each RoI."""
    features, count = make_features(2, 4, 60, 50), 256
    small = random_rois(count, size=(3, 3))  # 5 × 5 pixels at most
    assert largest_tensor(pool, (features, small), tmp_path) <= max(features.numel(), count * 4 * 25)
    gradient = torch.ones(count, 4, *BINS)
    assert largest_tensor(rois_backward, (gradient, features, small), tmp_path) <= max(features.numel(), count * 4 * 25)


def test_one_large_roi_costs_memory_only_in_its_part(tmp_path):
    features, rois = make_features(2, 4, 60, 50), random_rois(256, size=(3, 3))
    rois[100] = torch.tensor([0, 0, 0, 60, 70.0])
    exported = Exported(Pool(), (features, rois), (None, {0: Dim.AUTO}), 16)
    largest = largest_tensor(exported, (features, rois), tmp_path)
    assert largest <= 16 * 4 * 60 * 50
    torch.testing.assert_close(
        exported(features, rois), prroi_pool2d(features, rois, *BINS, SCALE), rtol=1e-5, atol=2e-6
    )


# ---- a pyramid


class Head(nn.Module):
    """The second stage of a detector, with a minimal backbone: pooled boxes of two images, and their gradient."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleList([nn.Conv2d(3, 4, s, stride=s) for s in (4, 8, 16)])
        self.pool = MultiScalePrRoIPool(["0", "1", "2"], BINS, canonical_scale=16, canonical_level=3)
        self.linear = nn.Linear(4 * BINS[0] * BINS[1], 2)

    def maps(self, images):
        return {str(level): layer(images) for level, layer in enumerate(self.backbone)}

    def forward(self, images, first_boxes, second_boxes):
        boxes, sizes = [first_boxes, second_boxes], [tuple(images.shape[2:])] * 2
        return self.linear(self.pool(self.maps(images), boxes, sizes).flatten(1))


class HeadsGradient(Head):
    """Returns the gradient of the sum of the outputs with respect to the boxes."""

    def forward(self, images, boxes, levels):
        maps, sizes = self.maps(images), [tuple(images.shape[2:])]
        gradient = self.linear.weight.sum(0).view(1, -1, *BINS).expand(boxes.shape[0], -1, -1, -1)
        return self.pool.boxes_backward(gradient, maps, [boxes], sizes, levels)


IMAGE_SIZES = {2: 16 * Dim("height"), 3: 16 * Dim("width")}


def boxes_of_all_levels(count, seed):
    generator = torch.Generator().manual_seed(seed)
    start, size = (
        60 * torch.rand(count, 2, generator=generator),
        4 * 2 ** (5 * torch.rand(count, 2, generator=generator)),
    )
    return torch.cat([start, start + size], 1) - 5


def heads(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[64, None], ids=["64 at once", "all at once"])
def head(request):
    arguments = torch.zeros(2, 3, 64, 80), boxes_of_all_levels(3, 0), boxes_of_all_levels(4, 1)
    shapes = (IMAGE_SIZES, {0: Dim("first")}, {0: Dim("second")})
    return Exported(heads(Head), arguments, shapes, request.param)


@pytest.mark.parametrize(
    ("counts", "size"), [((50, 60), (64, 80)), ((0, 3), (96, 48)), ((2, 0), (64, 80)), ((0, 0), (32, 32))]
)
def test_the_head_of_a_detector(head, counts, size):
    check_standard(head)
    images = make_features(2, 3, *size)
    boxes = [boxes_of_all_levels(count, seed) for seed, count in enumerate(counts)]
    module = heads(Head)
    if sum(counts) > 50:
        levels = module.pool.assign_levels(module.maps(images), boxes, [size] * 2)
        assert levels.bincount(minlength=3).gt(5).all()
    torch.testing.assert_close(head(images, *boxes), module(images, *boxes), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_boxes_in_a_pyramid():
    module, images, boxes = heads(HeadsGradient), make_features(1, 3, 64, 80), boxes_of_all_levels(40, 0)
    sizes, maps = [(64, 80)], module.maps(images)
    levels = module.pool.assign_levels(maps, [boxes], sizes)
    shapes = (IMAGE_SIZES, *[{0: Dim.AUTO}] * 2)
    exported = Exported(module, (images, boxes[:3], levels[:3]), shapes)
    moving = boxes.clone().requires_grad_()
    values = module.linear(module.pool(maps, [moving], sizes, levels).flatten(1))
    expected = torch.autograd.grad(values.sum(), moving)[0]
    torch.testing.assert_close(exported(images, boxes, levels), expected, rtol=1e-4, atol=1e-5)
    assert exported(images, boxes[:0], levels[:0]).shape == (0, 4)
    elsewhere = levels.clone()
    elsewhere[[3, 17]] = torch.tensor([3, -1])
    expected[[3, 17]] = 0
    torch.testing.assert_close(exported(images, boxes, elsewhere), expected, rtol=1e-4, atol=1e-5)


class PoolOfLevels(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = MultiScalePrRoIPool(["0", "1"], BINS)

    def forward(self, fine, coarse, boxes, levels):
        return self.pool({"0": fine, "1": coarse}, [boxes], [(32, 40)], levels)


def test_a_level_that_does_not_exist_pools_to_zero():
    fine, coarse, boxes = make_features(1, 3, 16, 20), make_features(1, 3, 8, 10), boxes_of_all_levels(4, 0) / 3
    exported = Exported(PoolOfLevels(), (fine, coarse, boxes, torch.tensor([0, 1, 1, 0])), None)
    found = exported(fine, coarse, boxes, torch.tensor([0, 1, 2, -1]))
    expected = PoolOfLevels()(fine, coarse, boxes, torch.tensor([0, 1, 1, 1]))
    assert expected.flatten(1).any(1).all()
    expected[2:] = 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def test_maps_of_several_dtypes_give_the_widest_dtype():
    fine, coarse, boxes = make_features(1, 3, 16, 20).half(), make_features(1, 3, 8, 10), boxes_of_all_levels(4, 0) / 3
    arguments = fine, coarse, boxes, torch.tensor([0, 1, 1, 0])
    found = Exported(PoolOfLevels(), arguments, None)(*arguments)
    expected = PoolOfLevels()(*arguments)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)  # eager mode rounds to half before it widens


# ---- the package


def test_without_onnxscript_only_the_export_is_missing():
    """The error names onnxscript."""
    run("""if True:
        import sys
        sys.modules["onnxscript"] = None
        import torch, prroi_pool
        prroi_pool.MultiScalePrRoIPool(["0"], 2)
        try:
            import prroi_pool.onnx
        except ModuleNotFoundError as error:
            assert error.name == "onnxscript", error
        else:
            raise AssertionError("imported")
    """)
