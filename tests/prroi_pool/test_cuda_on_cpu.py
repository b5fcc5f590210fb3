"""Plants bugs in prroi_pool's CUDA kernels and their launcher. The emulator or the reference must detect every bug.

planted_bugs.py lists most of the bugs. `pytest -rA` shows how each bug was detected.
"""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cuda_on_cpu import INCLUDES, CudaOnCpu, EmulationError, Emulator, kernel_names
from planted_bugs import BLOCK_BARRIER, FEATURES, GRADIENT, LAUNCHER, SLOW_BUGS, TILES, Bug, planted, without
from torch import Tensor

from prroi_pool import cuda_kernels, extension, reference

# More rows of bins than a block processes at once.
BINS = 9, 7
SCALE = 0.5


QUICK_BUGS = [
    without(
        "no barrier before tables are read, forward_strided",
        "forward_strided",
        TILES,
        "x.fill(roi.x, bins_x, columns);\n      ",
        BLOCK_BARRIER,
        "\n",
    ),
    planted(
        "tiles that overlap",
        "features_backward",
        FEATURES,
        "static_cast<int>(in_image / across) * kRows",
        "static_cast<int>(in_image / across) * (kRows - 1)",
    ),
    planted(
        "mask of half a warp",
        "rois_backward_strided",
        GRADIENT,
        "__shfl_down_sync(0xffffffff,",
        "__shfl_down_sync(0x0000ffff,",
    ),
]
ALL_BUGS = [*QUICK_BUGS, *(pytest.param(bug, marks=pytest.mark.slow) for bug in SLOW_BUGS)]


def name_of(value: object) -> str | None:
    return value.name if isinstance(value, Bug) else None


@pytest.mark.parametrize("bug", ALL_BUGS, ids=name_of)
def test_planted_bugs_are_detected(needs_emulator, bug, tmp_path):
    sources = tmp_path / "csrc"
    shutil.copytree(extension.SOURCES, sources)
    launcher = Path(shutil.copy(cuda_kernels.__file__, tmp_path))
    for file, old, new in bug.edits:
        path = launcher if file == LAUNCHER else sources / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file}: found {text.count(old)} times, not once: {old}"
        path.write_text(text.replace(old, new))
    emulator = Emulator(names_of(bug), INCLUDES, tmp_path, sources=sources)
    kernels = CudaOnCpu(emulator, _import(launcher).CudaKernels)
    with pytest.raises((EmulationError, AssertionError)) as noticed:
        check(kernels, bug.kernel, bug.layout or layout_of(bug.kernel), bug.dtype, tmp_path)
    print(noticed.value)


def names_of(bug: Bug) -> list[str]:
    """Return the kernels to compile, as few as possible."""
    kernels = [bug.kernel, *(["channels_to_the_end"] if bug.kernel == "features_backward" else [])]
    return [
        name
        for name in kernel_names([bug.dtype])
        # Kernels that process one channel at a time need numbers of channels that `make_features` does not produce.
        if any(f"::{kernel}<" in name for kernel in kernels) and not name.endswith(", 1>")
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "layout", ["strided", "channels_last", "contiguous", "unaligned", "odd width", "large", "large, channels last"]
)
@pytest.mark.parametrize("function", ["forward", "features_backward", "rois_backward"])
def test_kernels_without_planted_bugs_pass(cuda_on_cpu, function, layout, dtype, tmp_path):
    check(cuda_on_cpu, function, layout, dtype, tmp_path)


@pytest.mark.parametrize("layout", ["far apart", "many RoIs"])
def test_forward_without_planted_bugs_passes(cuda_on_cpu, layout, tmp_path):
    check(cuda_on_cpu, "forward", layout, torch.float32, tmp_path)


def check(kernels: CudaOnCpu, kernel: str, layout: str, dtype: torch.dtype, folder: Path) -> None:
    """Compare one function with the reference, on features in a given layout."""
    features = make_features(layout, dtype, folder)
    generator = torch.Generator().manual_seed(1)
    rois = make_rois(layout, generator)
    bins = (1, 1) if layout == "many RoIs" else BINS
    grad_output = torch.randn(len(rois), features.shape[1], *bins, generator=generator).to(dtype)
    channels_last = features.stride(1) == 1
    exact_features, exact_rois = features.double().requires_grad_(), rois.double().requires_grad_()
    exact = reference.prroi_pool2d(exact_features, exact_rois, *bins, SCALE)
    eps = torch.finfo(dtype).eps
    if kernel.startswith("forward"):
        actual = kernels.forward(features, rois, *bins, SCALE)
    elif kernel.startswith("features_backward"):
        actual = kernels.features_backward(grad_output, rois, features.shape, channels_last, SCALE)
        (exact,) = torch.autograd.grad(exact, exact_features, grad_output.double())
    else:
        actual = kernels.rois_backward(grad_output, features, rois, SCALE)
        (exact,) = torch.autograd.grad(exact, exact_rois, grad_output.double())
        eps = 1e-5
    torch.testing.assert_close(actual.double(), exact.detach(), rtol=eps, atol=2e-5 * exact.abs().max().item())


def layout_of(kernel: str) -> str:
    return "strided" if kernel.endswith("strided") else "channels_last"


def make_features(layout: str, dtype: torch.dtype, folder: Path) -> Tensor:
    """Return features of two images, a view of a larger tensor, so that strides do not follow from the shape."""
    generator = torch.Generator().manual_seed(0)
    if layout == "far apart":  # offsets beyond 32 bits, in a sparse file
        stride = 1 << 31
        far = torch.from_file(str(folder / "features"), shared=True, size=stride + 1600, dtype=dtype)
        features = far.as_strided((2, 4, 20, 20), (stride, 400, 20, 1))
        return features.copy_(torch.randn(features.shape, generator=generator))
    if layout == "many RoIs":
        features = torch.randn(1, 4, 2, 2, generator=generator)
        return features.to(dtype, memory_format=torch.channels_last)
    if layout == "unaligned":
        memory = torch.randn(1 + 2 * 8 * 20 * 20, generator=generator).to(dtype)
        return memory[1:].as_strided((2, 8, 20, 20), (3200, 1, 160, 8))
    if layout.startswith("large"):  # a RoI spans several tiles
        memory_format = torch.channels_last if layout.endswith("channels last") else torch.contiguous_format
        return torch.randn(2, 8, 700, 3, generator=generator).to(dtype, memory_format=memory_format)
    if layout == "odd width":
        return torch.randn(2, 8, 20, 17, generator=generator).to(dtype)
    # More channels than a block processes, with some lanes unused.
    channels = 67 if layout == "strided" else 264
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    features = torch.randn(2, channels, 22, 26, generator=generator).to(dtype, memory_format=memory_format)
    return features[:, :, 1:-1, 3:-3]


def make_rois(layout: str, generator: torch.Generator) -> Tensor:
    if layout == "many RoIs":
        return torch.tensor([[0.0, 0, 0, 1, 2]]).repeat(66_000, 1)
    if layout.startswith("large"):
        return torch.tensor([[0.0, 0, 0, 4, 1000], [1, 0, 300, 4, 320]])
    special = [
        [0.0, 0, 0, 16, 16],
        [0, -100, -100, 200, 200],
        [1, 10, 10, 60, 60],  # reaches the last pixel
        [1, 5, 5, 5, 9],  # without area
        [0, 5, 5, 3, 9],  # reversed
        [0, 500, 5, 600, 9],  # off the map
        [2, 1, 1, 9, 9],  # no such image
        [-1, 1, 1, 9, 9],
        [0, 1, 1, float("nan"), 9],
    ]
    corners = torch.rand(4, 2, generator=generator) * 40
    random = torch.cat(
        [torch.tensor([[0.0], [1], [0], [1]]), corners, corners + torch.rand(4, 2, generator=generator) * 20], 1
    )
    return torch.cat([torch.tensor(special), random])


def _import(path: Path) -> ModuleType:
    """Import a modified copy of the launcher as part of the original's package."""
    name = f"{cuda_kernels.__package__}.changed_{path.parent.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
