"""The operators with PyTorch's compilers, and their registration."""

import copy
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import prroi_pool
from prroi_pool import MultiScalePrRoIPool, PrRoIPool2D, extension, prroi_pool2d

pytestmark = pytest.mark.usefixtures("kernels")

ROIS = [[0, 1.3, 2.2, 7.6, 6.9], [1, -3.2, -1.1, 4.7, 3.3], [1, 6.4, 4.6, 14.2, 12.8], [0, 4.1, 4.2, 4.7, 4.8]]

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


@pytest.fixture(params=["kernels", "without kernels"])
def package(request):
    """Return the package, or its copy whose operators call the reference."""
    return prroi_pool if request.param == "kernels" else request.getfixturevalue("without_kernels")


def make_features(device, dtype, channels_last=False):
    features = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return features.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def make_rois(device, dtype=torch.float32):
    return torch.tensor(ROIS, dtype=dtype, device=device)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_opcheck(package, device, dtype, channels_last):
    operators = getattr(torch.ops, package.extension.NAMESPACE)
    features = make_features(device, dtype, channels_last).requires_grad_()
    rois = make_rois(device, torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
    opcheck(operators.prroi_pool2d.default, (features, rois, 3, 2, 0.9))
    opcheck(operators.prroi_pool2d.default, (features, rois[:0], 3, 2, 0.9))
    grad_output = torch.randn(len(ROIS), 3, 3, 2, device=device).to(dtype).requires_grad_()
    opcheck(operators.features_backward.default, (grad_output, rois, features.shape, channels_last, 0.9))
    # The reference computes its derivative. The reference's tensor sizes depend on the RoIs' values, unknown to
    # compilers.
    detached = [tensor.detach() for tensor in (grad_output, features, rois)]
    opcheck(operators.rois_backward.default, (*detached, 0.9))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_operators_without_kernels_equal_those_with(without_kernels, device, dtype, channels_last):
    features = make_features(device, dtype, channels_last)
    rois = make_rois(device, torch.float64)
    grad_output = torch.randn(len(ROIS), 3, 3, 2, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    calls = {
        "prroi_pool2d": (features, rois, 3, 2, 0.9),
        "features_backward": (grad_output, rois, features.shape, channels_last, 0.9),
        "rois_backward": (grad_output, features, rois, 0.9),
    }
    for name, arguments in calls.items():
        namespaces = (without_kernels.extension.NAMESPACE, extension.NAMESPACE)
        found, expected = (getattr(getattr(torch.ops, namespace), name)(*arguments) for namespace in namespaces)
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        eps = torch.finfo(expected.dtype).eps
        torch.testing.assert_close(found, expected, rtol=2 * eps, atol=1e-5 if dtype != torch.float64 else 1e-12)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph_for_any_number_of_rois(package, device, backend):
    torch.compiler.reset()
    module = package.PrRoIPool2D(3, 2, 0.9)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for num_rois in (4, 3, 2):
        results = []
        for pool in (module, compiled):
            features = make_features(device, torch.float32).requires_grad_()
            rois = make_rois(device)[:num_rois].clone().requires_grad_()
            with torch._dynamo.config.patch(error_on_recompile=num_rois < 4):
                output = pool(features, rois)
            results.append((output, *torch.autograd.grad(output.square().sum(), (features, rois))))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_under_autocast_with_half_rois(package, device, dtype):
    torch.compiler.reset()

    def loss(features, rois):
        with torch.autocast(device, torch.bfloat16):
            return pool(features, rois).float().square().sum()

    pool = package.PrRoIPool2D(3, 2, 0.9)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    features, rois = make_features(device, dtype).requires_grad_(), make_rois(device).bfloat16().requires_grad_()
    found, expected = (torch.autograd.grad(function(features, rois), (features, rois)) for function in (compiled, loss))
    assert found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(TORCH < (2, 12), reason="torch.compile before PyTorch 2.12 cannot compile torch.func.grad")
def test_compiles_a_gradient_of_torch_func(package, device):
    torch.compiler.reset()

    def loss(features, rois):
        return package.prroi_pool2d(features, rois, 3, 2, 0.9).square().sum()

    inputs = make_features(device, torch.float32), make_rois(device)
    gradients = torch.func.grad(loss, (0, 1))
    torch.testing.assert_close(
        torch.compile(gradients, fullgraph=True, backend="aot_eager")(*inputs), gradients(*inputs)
    )


class _PassesOn(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_gradients_inside_a_dispatch_mode(package, device):
    """torch.utils.flop_counter uses such a mode. Inside operators, it disables more than autograd."""

    def gradients():
        features, rois = make_features(device, torch.float32).requires_grad_(), make_rois(device).requires_grad_()
        return torch.autograd.grad(package.prroi_pool2d(features, rois, 3, 2, 0.9).square().sum(), (features, rois))

    expected = gradients()
    with _PassesOn():
        torch.testing.assert_close(gradients(), expected)


def test_a_torch_jit_trace_contains_the_operator(package, device, tmp_path):
    features, rois = make_features(device, torch.float32), make_rois(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.trace(package.PrRoIPool2D(3, 2, 0.9), (features, rois)).save(tmp_path / "traced.pt")
        traced = torch.jit.load(tmp_path / "traced.pt")
        torch.testing.assert_close(traced(features, rois[:2]), prroi_pool2d(features, rois[:2], 3, 2, 0.9))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_torch_jit_script_is_refused():
    for module in (PrRoIPool2D(3, 2, 0.9), torch.nn.Sequential(MultiScalePrRoIPool(["0"], 7))):
        with pytest.raises(
            NotImplementedError, match=r"^prroi_pool does not support torch\.jit\.script.*torch\.export$"
        ):
            torch.jit.script(module)


def test_torch_fx_traces_one_node(device):
    class Client(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.pool = torch.nn.Conv2d(3, 3, 1), PrRoIPool2D(3, 2, 0.9)
            self.pyramid_pool = MultiScalePrRoIPool(["0", "1"], (3, 2))

        def forward(self, images, rois, boxes):
            features = self.backbone(images)
            maps = {"0": features, "1": features[:, :, ::2, ::2]}
            return (
                self.pool(features, rois)
                + prroi_pool2d(features, rois, 3, 2, 0.5)
                + self.pyramid_pool(maps, [boxes, boxes], [(9, 11), (9, 11)])
            )

    client = Client().to(device)
    inputs = make_features(device, torch.float32), make_rois(device), make_rois(device)[:2, 1:]
    traced = torch.fx.symbolic_trace(client)
    torch.testing.assert_close(traced(*inputs), client(*inputs))
    torch.testing.assert_close(copy.deepcopy(traced)(*inputs), client(*inputs))
    pyramid_pool = torch.fx.symbolic_trace(client.pyramid_pool)
    inputs = {"0": inputs[0], "1": inputs[0]}, [inputs[2], inputs[2]], [(9, 11), (9, 11)], None
    torch.testing.assert_close(pyramid_pool(*inputs), client.pyramid_pool(*inputs))


def test_exports_with_a_dynamic_number_of_rois(package, device):
    features, rois = make_features(device, torch.float32), make_rois(device)
    shapes = {"features": None, "rois": {0: torch.export.Dim("K")}}
    module = package.PrRoIPool2D(3, 2, 0.9)
    exported = torch.export.export(module, (features, rois), dynamic_shapes=shapes).module()
    for num_rois in (4, 2):
        torch.testing.assert_close(
            exported(features, rois[:num_rois]), prroi_pool2d(features, rois[:num_rois], 3, 2, 0.9)
        )


def test_an_invalid_batch_index_raises_in_a_compiled_graph():
    compiled = torch.compile(PrRoIPool2D(3, 2, 0.9), fullgraph=True, backend="eager")
    with pytest.raises(ValueError, match=r"rois\[0, 0\], the batch index, is 7"):
        compiled(make_features("cpu", torch.float32), torch.tensor([[7.0, 1, 1, 5, 5]]))


def test_two_copies_in_one_process(tmp_path):
    """Two projects vendor the package under different paths."""
    for parent in ("one", "two/external"):
        package = Path(prroi_pool.__file__).parent
        shutil.copytree(package, tmp_path / parent / "prroi_pool", ignore=shutil.ignore_patterns("__pycache__"))
    script = """
        import torch
        import one.prroi_pool, two.external.prroi_pool
        features, rois = torch.randn(1, 2, 5, 5), torch.tensor([[0.0, 1, 1, 4, 4]], requires_grad=True)
        results = [p.prroi_pool2d(features, rois, 2, 2, 1.0) for p in (one.prroi_pool, two.external.prroi_pool)]
        assert torch.equal(*results)
        sum(results).sum().backward()
        print(results[0].grad_fn.name(), results[1].grad_fn.name())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert "one_prroi_pool" in first and "two_external_prroi_pool" in second


def test_a_reloaded_package_works():
    script = """
        import sys, torch
        import prroi_pool
        for name in [name for name in sys.modules if name.startswith("prroi_pool")]:
            del sys.modules[name]
        import prroi_pool
        assert prroi_pool.prroi_pool2d(torch.ones(1, 1, 5, 5), torch.tensor([[0.0, 1, 1, 3, 3]]), 1, 1, 1.0).item() == 1
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_a_pyramid_compiles_to_one_graph(device):
    torch.compiler.reset()

    def eager(maps, boxes):
        return pool(maps, [boxes], [(64, 64)])

    pool = MultiScalePrRoIPool(["0", "1"], 3, canonical_scale=20, canonical_level=3)
    maps = {"0": torch.randn(1, 2, 16, 16, device=device), "1": torch.randn(1, 2, 8, 8, device=device)}
    # No shape depends on the levels of the boxes, so one graph serves all.
    few = torch.tensor([[3.0, 3, 20, 20], [4, 4, 60, 60], [5, 5, 9, 9]], device=device)
    many = torch.cat([few.flip(0), few + 1])
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True, dynamic=True)
    for boxes in (few, many):
        with torch._dynamo.config.patch(error_on_recompile=boxes is many):
            inputs = [boxes.clone().requires_grad_() for _ in range(2)]
            outputs = [function(maps, given) for function, given in zip((compiled, eager), inputs, strict=True)]
        gradients = [
            torch.autograd.grad(output.square().sum(), given)[0] for output, given in zip(outputs, inputs, strict=True)
        ]
        torch.testing.assert_close(outputs[0], outputs[1])
        torch.testing.assert_close(gradients[0], gradients[1])
