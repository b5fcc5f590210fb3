"""Plants bugs in prroi_pool's CUDA kernels and their launcher, and expects the emulator or the reference to notice.

A bug is one or several edits of the source. The old text of an edit has to occur exactly once: adapt it to a changed
source. `pytest -rA` shows how each bug was noticed.
"""

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cuda_on_cpu import INCLUDES, CudaOnCpu, EmulationError, Emulator, kernel_names, launcher
from torch import Tensor

from prroi_pool import extension, reference

BINS = 7, 7
SCALE = 0.5
# A file in csrc/ or the launcher, which is in Python.
LAUNCHER = Path(launcher.__file__).name


class Edit(NamedTuple):
    file: str
    old: str
    new: str


class Bug(NamedTuple):
    name: str
    kernels: tuple[str, ...]  # those that are compiled and launched
    edits: tuple[Edit, ...]
    layout: str = ""  # the features'; by default one for each of the kernels
    dtype: torch.dtype = torch.float32


STRIDED, CHANNELS_LAST, VIEW = "cuda/strided.cuh", "cuda/channels_last.cuh", "cuda/tensor_view.cuh"
GRADIENT, TABLE, INTEGRAL = "cuda/roi_gradient.cuh", "cuda/axis_table.cuh", "bilinear_integral.h"


def no_block_barrier(kernel: str, file: str, following: str) -> Bug:
    edit = Edit(file, f"__syncthreads();\n{following}", following.lstrip("\n"))
    return Bug(f"no block barrier in {kernel}", (kernel,), (edit,))


QUICK_BUGS = [
    no_block_barrier("forward_strided", STRIDED, "  auto& sums"),
    Bug(
        "+= for atomicAdd",
        ("features_backward_channels_last",),
        (
            Edit(
                CHANNELS_LAST,
                "atomicAdd(grad_features.at(roi.image, c, j, i), grad.value[n])",
                "*grad_features.at(roi.image, c, j, i) += grad.value[n]",
            ),
        ),
    ),
    Bug(
        "mask of half a warp",
        ("rois_backward_strided",),
        (Edit(GRADIENT, "__shfl_down_sync(0xffffffff,", "__shfl_down_sync(0x0000ffff,"),),
    ),
]
SLOW_BUGS = [
    no_block_barrier(
        "forward_channels_last", CHANNELS_LAST, "  const int64_t channel = (static_cast<int64_t>(blockIdx.y)"
    ),
    no_block_barrier(
        "features_backward_channels_last",
        CHANNELS_LAST,
        "  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kWarp * N",
    ),
    no_block_barrier("rois_backward_channels_last", CHANNELS_LAST, "\n  RoIGradient<Acc> grad;"),
    no_block_barrier(
        "features_backward_strided", STRIDED, "  const PixelRange rows = y.pixels(), columns = x.pixels();"
    ),
    no_block_barrier("rois_backward_strided", STRIDED, "\n  RoIGradient<Acc> grad;"),
    Bug(
        "no barrier before the warps' sums are read",
        ("rois_backward_channels_last",),
        (Edit(GRADIENT, "    __syncthreads();\n", ""),),
    ),
    Bug(
        "no warp barrier before sums are overwritten",
        ("forward_strided",),
        (Edit(STRIDED, "          __syncwarp();\n          for (int64_t row", "          for (int64_t row"),),
    ),
    Bug(
        "no warp barrier before sums are read",
        ("forward_strided",),
        (Edit(STRIDED, "          __syncwarp();\n          if (has_bin)", "          if (has_bin)"),),
    ),
    Bug(
        "barrier after some threads have returned",
        ("forward_channels_last",),
        (
            Edit(
                CHANNELS_LAST,
                "    return;\n  }\n  for (int64_t bin_y = threadIdx.y; bin_y < pooled_height",
                "    return;\n  }\n  __syncthreads();\n  for (int64_t bin_y = threadIdx.y; bin_y < pooled_height",
            ),
        ),
    ),
    Bug(
        "+= for atomicAdd, strided",
        ("features_backward_strided",),
        (
            Edit(
                STRIDED,
                "atomicAdd(grad_features.at(roi.image, channel, j, i), grad)",
                "*grad_features.at(roi.image, channel, j, i) += grad",
            ),
        ),
    ),
    Bug(
        "offsets of 32 bits",
        ("forward_strided",),
        (
            Edit(
                VIEW,
                "a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3]",
                "static_cast<int>(a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3])",
            ),
        ),
        "far apart",
    ),
    Bug(
        "unaligned vectors, forward",
        ("forward_channels_last", "forward_strided"),
        (Edit(LAUNCHER, "channel == 1 and is_aligned", "channel == 1"),),
        "unaligned",
    ),
    Bug(
        "unaligned vectors, gradient of the RoIs",
        ("rois_backward_channels_last", "rois_backward_strided"),
        (Edit(LAUNCHER, "channel == 1 and is_aligned", "channel == 1"),),
        "unaligned",
    ),
    Bug(
        "RoIs along y of the grid",
        ("forward_channels_last",),
        (
            Edit(LAUNCHER, "(*grid, 1), (WARP", "(*reversed(grid), 1), (WARP"),
            Edit(
                CHANNELS_LAST,
                "const int64_t k = blockIdx.x, pooled_height = output.size[2], pooled_width",
                "const int64_t k = blockIdx.y, pooled_height = output.size[2], pooled_width",
            ),
            Edit(
                CHANNELS_LAST,
                "channel = (static_cast<int64_t>(blockIdx.y)",
                "channel = (static_cast<int64_t>(blockIdx.x)",
            ),
        ),
        "many RoIs",
    ),
    Bug(
        "reads beyond the edge of the map",
        ("forward_strided",),
        (
            Edit(
                INTEGRAL,
                "std::ceil(high) < static_cast<T>(size - 1) ? std::ceil(high) : static_cast<T>(size - 1)",
                "std::ceil(high) < static_cast<T>(size) ? std::ceil(high) : static_cast<T>(size)",
            ),
        ),
    ),
    Bug(
        "writes beyond the bins",
        ("forward_strided",),
        (Edit(STRIDED, "bin_y < end_y && bin_x < pooled_width;", "bin_x < pooled_width;"),),
    ),
    Bug(
        "no end of the channels, forward",
        ("forward_channels_last",),
        (Edit(CHANNELS_LAST, "if (channel >= output.size[1])", "if (channel >= output.size[1] + kWarp * N)"),),
    ),
    Bug(
        "no end of the channels, forward strided",
        ("forward_strided",),
        (
            Edit(
                STRIDED,
                "end(first + kBlockChannels < channels ? first + kBlockChannels : channels)",
                "end(first + kBlockChannels)",
            ),
        ),
    ),
    Bug(
        "no end of the channels, gradient of the features",
        ("features_backward_channels_last",),
        (Edit(CHANNELS_LAST, "if (c < channels) {", "{"),),
    ),
    Bug(
        "no end of the channels, gradient of the RoIs",
        ("rois_backward_channels_last",),
        (Edit(CHANNELS_LAST, "if (channel >= features.size[1])", "if (channel >= features.size[1] + N)"),),
    ),
    Bug(
        "reads sums that no lane has written",
        ("forward_strided",),
        (
            Edit(
                STRIDED,
                "end = first + kWarp < columns.end() ? first + kWarp : columns.end();",
                "end = first + kWarp;",
            ),
        ),
    ),
    Bug(
        "table longer than its memory",
        ("forward_strided",),
        (Edit(TABLE, "stride * static_cast<T>(extent.num_bins) <= storage.kEntries", "stride <= storage.kEntries"),),
        "large",
    ),
    Bug(
        "sums in half precision",
        ("forward_channels_last",),
        (Edit(CHANNELS_LAST, "Sums<Acc, N> total;", "Sums<T, N> total;"),),
        dtype=torch.float16,
    ),
    Bug(
        "sums in half precision, strided",
        ("forward_strided",),
        (Edit(STRIDED, "Acc total = 0;\n        for", "T total = 0;\n        for"),),
        dtype=torch.float16,
    ),
    Bug(
        "a wrong stride",
        ("forward_strided",),
        (Edit(VIEW, "c * stride[2] + d", "c * size[3] * stride[3] + d"),),
    ),
    Bug(
        "image that does not exist",
        ("forward_strided",),
        (Edit(INTEGRAL, "batch_index < static_cast<T>(num_images)", "batch_index <= static_cast<T>(num_images)"),),
    ),
    Bug(
        "another RoI",
        ("forward_channels_last",),
        (Edit(VIEW, "const T* roi = rois + k * 5;", "const T* roi = rois + (k ^ 1) * 5;"),),
    ),
    Bug(
        "x and y swapped",
        ("features_backward_strided",),
        (Edit(VIEW, "make_extent(roi[1], roi[3], spatial_scale", "make_extent(roi[2], roi[4], spatial_scale"),),
    ),
    Bug(
        "no zero for a RoI without area",
        ("forward_strided",),
        (
            Edit(
                STRIDED,
                "    x.fill();\n    y.fill();\n  }\n  __syncthreads();",
                "    x.fill();\n    y.fill();\n  } else {\n    return;\n  }\n  __syncthreads();",
            ),
        ),
    ),
    Bug(
        "a warp left out of the sum",
        ("rois_backward_channels_last",),
        (Edit(GRADIENT, "warp < blockDim.y", "warp + 1 < blockDim.y"),),
    ),
    Bug(
        "a lane left out of the sum",
        ("rois_backward_strided",),
        (Edit(GRADIENT, "offset > 0; offset /= 2", "offset > 1; offset /= 2"),),
    ),
]
ALL_BUGS = [*QUICK_BUGS, *(pytest.param(bug, marks=pytest.mark.slow) for bug in SLOW_BUGS)]


def name_of(value: object) -> str | None:
    return value.name if isinstance(value, Bug) else None


@pytest.mark.parametrize("bug", ALL_BUGS, ids=name_of)
def test_planted_bugs_are_noticed(needs_emulator, bug, tmp_path):
    sources = tmp_path / "csrc"
    shutil.copytree(extension.SOURCES, sources)
    launcher_copy = Path(shutil.copy(launcher.__file__, tmp_path))
    for file, old, new in bug.edits:
        path = launcher_copy if file == LAUNCHER else sources / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has {text.count(old)} times, not once: {old}"
        path.write_text(text.replace(old, new))
    names = [name for name in kernel_names([bug.dtype]) if any(f"::{kernel}<" in name for kernel in bug.kernels)]
    emulator = Emulator(names, INCLUDES, tmp_path, sources=sources)
    kernels = _import(launcher_copy).CudaOnCpu(emulator)
    with pytest.raises((EmulationError, AssertionError)) as noticed:
        for kernel in bug.kernels:
            check(kernels, kernel, bug.layout or layout_of(kernel), bug.dtype, tmp_path)
    print(noticed.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", ["strided", "channels_last", "unaligned", "large"])
@pytest.mark.parametrize("function", ["forward", "features_backward", "rois_backward"])
def test_kernels_without_planted_bugs_pass(cuda_on_cpu, function, layout, dtype, tmp_path):
    check(cuda_on_cpu, function, layout, dtype, tmp_path)


@pytest.mark.parametrize("layout", ["far apart", "many RoIs"])
def test_forward_without_planted_bugs_passes(cuda_on_cpu, layout, tmp_path):
    check(cuda_on_cpu, "forward", layout, torch.float32, tmp_path)


def check(kernels: CudaOnCpu, kernel: str, layout: str, dtype: torch.dtype, folder: Path) -> None:
    """Compares one of the functions with the reference, on features of a layout."""
    features = make_features(layout, dtype, folder)
    generator = torch.Generator().manual_seed(1)
    rois = make_rois(layout, generator)
    bins = (1, 1) if layout == "many RoIs" else BINS
    grad_output = torch.randn(len(rois), features.shape[1], *bins, generator=generator).to(dtype)
    channels_last = features.stride(1) == 1
    if channels_last:
        grad_output = grad_output.contiguous(memory_format=torch.channels_last)
    exact_features, exact_rois = features.double().requires_grad_(), rois.double().requires_grad_()
    exact = reference.prroi_pool2d(exact_features, exact_rois, *bins, SCALE)
    eps = torch.finfo(dtype).eps
    if kernel.startswith("forward"):
        actual = kernels.forward(features, rois, *bins, channels_last, SCALE)
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
    """Features of two images, part of a larger tensor, so that nothing follows from their sizes alone."""
    generator = torch.Generator().manual_seed(0)
    if layout == "far apart":  # offsets beyond 32 bits in a file that occupies hardly any of the disk
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
    if layout == "large":
        return torch.randn(2, 2, 700, 3, generator=generator).to(dtype)
    # More channels than a block takes, and some lanes without any.
    channels = 67 if layout == "strided" else 264
    memory_format = torch.contiguous_format if layout == "strided" else torch.channels_last
    features = torch.randn(2, channels, 22, 26, generator=generator).to(dtype, memory_format=memory_format)
    return features[:, :, 1:-1, 3:-3]


def make_rois(layout: str, generator: torch.Generator) -> Tensor:
    if layout == "many RoIs":
        return torch.tensor([[0.0, 0, 0, 1, 2]]).repeat(66_000, 1)
    if layout == "large":
        return torch.tensor([[0.0, 0, 0, 4, 1000], [1, 0, 300, 4, 320]])
    special = [
        [0.0, 0, 0, 16, 16],  # rounding puts the end of its last bin beyond its own, to another pixel
        [0, -100, -100, 200, 200],
        [1, 10, 10, 60, 60],  # reaches the last pixel
        [1, 5, 5, 5, 9],  # without area
        [0, 5, 5, 3, 9],  # reversed
        [0, 500, 5, 600, 9],  # off the map
        [2, 1, 1, 9, 9],  # of no image
        [-1, 1, 1, 9, 9],
        [0, 1, 1, float("nan"), 9],
    ]
    corners = torch.rand(4, 2, generator=generator) * 40
    random = torch.cat(
        [torch.tensor([[0.0], [1], [0], [1]]), corners, corners + torch.rand(4, 2, generator=generator) * 20], 1
    )
    return torch.cat([torch.tensor(special), random])


def _import(path: Path):
    """A changed copy of the launcher, in the package of the original."""
    name = f"{launcher.__package__}.{path.parent.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
