"""Plants bugs in prroi_pool's CUDA kernels and their launcher, and expects the emulator or the reference to notice.

A bug is one or several edits of the source. The old text of an edit has to occur exactly once: adapt it to a changed
source. `pytest -rA` shows how each bug was noticed.
"""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from cuda_on_cpu import INCLUDES, CudaOnCpu, EmulationError, Emulator, kernel_names
from torch import Tensor

from prroi_pool import cuda_kernels, extension, reference

# More rows of bins than a block takes at once.
BINS = 9, 7
SCALE = 0.5
# A file in csrc/ or the launcher, which is in Python.
LAUNCHER = Path(cuda_kernels.__file__).name


class Edit(NamedTuple):
    file: str
    old: str
    new: str


class Bug(NamedTuple):
    name: str
    kernel: str
    edits: tuple[Edit, ...]
    layout: str = ""  # of the features; by default the one that the kernel is for
    dtype: torch.dtype = torch.float32


STRIDED, CHANNELS_LAST = "cuda/strided.cuh", "cuda/channels_last.cuh"
FEATURES, GRADIENT, TILES = "cuda/features_backward.cuh", "cuda/roi_gradient.cuh", "cuda/tiles.cuh"
TENSORS, TABLES, INTEGRAL = "cuda/tensors.cuh", "cuda/axis_tables.cuh", "bilinear_integral.h"


def planted(
    name: str,
    kernel: str,
    file: str,
    old: str,
    new: str,
    *others: Edit,
    layout: str = "",
    dtype: torch.dtype = torch.float32,
) -> Bug:
    return Bug(name, kernel, (Edit(file, old, new), *others), layout, dtype)


def without(name: str, kernel: str, file: str, before: str, removed: str, after: str, *, layout: str = "") -> Bug:
    """A statement removed that occurs elsewhere, too."""
    return planted(name, kernel, file, before + removed + after, before + after, layout=layout)


BLOCK_BARRIER, WARP_BARRIER = "__syncthreads();", "__syncwarp();"
TILE_KERNELS = "forward_strided", "rois_backward_strided", "forward_channels_last", "rois_backward_channels_last"

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
SLOW_BUGS = [
    # Barriers
    *(
        without(
            f"no barrier before tables are read, {kernel}",
            kernel,
            TILES,
            "x.fill(roi.x, bins_x, columns);\n      ",
            BLOCK_BARRIER,
            "\n",
        )
        for kernel in TILE_KERNELS[1:]
    ),
    *(
        without(
            f"no barrier before tables are overwritten, {kernel}",
            kernel,
            TILES,
            "",
            BLOCK_BARRIER,
            "  // what the tables of the tile before were needed for is done",
            layout="large, channels last" if kernel.endswith("channels_last") else "large",
        )
        for kernel in TILE_KERNELS
    ),
    without(
        "no barrier before the gradient of the output is overwritten",
        "rois_backward_channels_last",
        CHANNELS_LAST,
        "",
        BLOCK_BARRIER,
        "\n      grads.fill",
    ),
    without(
        "no barrier before the warps' sums are read",
        "rois_backward_channels_last",
        GRADIENT,
        "",
        BLOCK_BARRIER,
        "\n    if (threadIdx.y == 0",
    ),
    without(
        "no barrier before weights are overwritten",
        "features_backward",
        FEATURES,
        "",
        BLOCK_BARRIER,
        "  // the weights before are no longer needed",
    ),
    without(
        "no barrier before weights are read",
        "features_backward",
        FEATURES,
        "",
        BLOCK_BARRIER,
        "\n          for (int n = 0; n < count",
    ),
    without(
        "no barrier before RoIs are counted",
        "features_backward",
        FEATURES,
        "",
        BLOCK_BARRIER,
        "\n    int place =",
    ),
    without(
        "no barrier before the list of RoIs is read",
        "features_backward",
        FEATURES,
        "num_chosen = total;\n    }\n    ",
        BLOCK_BARRIER,
        "",
    ),
    without(
        "no barrier before values are overwritten",
        "features_backward",
        FEATURES,
        "bins += kTransposed) {\n    ",
        BLOCK_BARRIER,
        "",
    ),
    without(
        "no barrier before values are read",
        "features_backward",
        FEATURES,
        "",
        BLOCK_BARRIER,
        "\n#pragma unroll\n    for (int bin = threadIdx.y",
    ),
    without(
        "no warp barrier before sums are read, strided",
        "forward_strided",
        STRIDED,
        "",
        WARP_BARRIER,
        "\n#pragma unroll\n        for (int m",
    ),
    without(
        "no warp barrier before sums are read",
        "forward_channels_last",
        CHANNELS_LAST,
        "",
        WARP_BARRIER,
        "\n    if (warp < bins_y.count) {",
    ),
    without(
        "no warp barrier before sums are overwritten",
        "forward_channels_last",
        CHANNELS_LAST,
        "",
        WARP_BARRIER,
        "\n  });",
    ),
    without(
        "no warp barrier before weights are read",
        "features_backward",
        FEATURES,
        "",
        WARP_BARRIER,
        "\n    if (lane < kRows) {",
    ),
    planted(
        "barrier after some warps have left",
        "forward_channels_last",
        CHANNELS_LAST,
        "const Acc* const y_weights = y.weights(warp, rows);",
        "const Acc* const y_weights = y.weights(warp, rows);\n        __syncthreads();",
    ),
    planted(
        "vote of half a warp",
        "features_backward",
        FEATURES,
        "__ballot_sync(0xffffffff, reaches)",
        "__ballot_sync(0x0000ffff, reaches)",
    ),
    # Addresses
    planted(
        "offsets of 32 bits",
        "forward_strided",
        TENSORS,
        "data + image * image_stride + channel * channel_stride",
        "data + static_cast<int>(image * image_stride + channel * channel_stride)",
        layout="far apart",
    ),
    *(
        planted(
            f"unaligned vectors, {kernel}", kernel, LAUNCHER, "return aligned and all", "return all", layout="unaligned"
        )
        for kernel in ("forward_channels_last", "rois_backward_channels_last")
    ),
    planted(
        "unaligned vectors, features_backward",
        "features_backward",
        FEATURES,
        "(stride_a | stride_b | stride_c) % count == 0 && ",
        "",
        layout="odd width",
    ),
    planted(
        "RoIs along y of the grid",
        "forward_channels_last",
        LAUNCHER,
        "grid = (grid_width, _num_chunks(like.shape[1], like.dtype, at_once), 1)",
        "grid = (_num_chunks(like.shape[1], like.dtype, at_once), grid_width, 1)",
        Edit(
            CHANNELS_LAST,
            "sums[kBins][kBins][kWarp + 1];\n  const int64_t k = blockIdx.x;",
            "sums[kBins][kBins][kWarp + 1];\n  const int64_t k = blockIdx.y;",
        ),
        Edit(CHANNELS_LAST, "first_of_block(blockIdx.y * kWarp * N)", "first_of_block(blockIdx.x * kWarp * N)"),
        layout="many RoIs",
    ),
    planted(
        "reads beyond the edge of the map",
        "forward_strided",
        INTEGRAL,
        "last < static_cast<T>(size - 1) ? last : static_cast<T>(size - 1)",
        "last < static_cast<T>(size) ? last : static_cast<T>(size)",
    ),
    planted(
        "writes beyond the bins",
        "forward_strided",
        STRIDED,
        "if (bin_y < bins_y.count && channels.first + c < rois.channels)",
        "if (channels.first + c < rois.channels)",
    ),
    planted(
        "writes beyond the columns of the map",
        "features_backward",
        FEATURES,
        "if (column < num_columns)",
        "if (column < kColumns)",
    ),
    planted(
        "writes beyond the columns of the map, contiguous",
        "features_backward",
        FEATURES,
        "whole = num_columns == kColumns && map",
        "whole = map",
        layout="contiguous",
    ),
    planted(
        "writes beyond the rows of the map",
        "features_backward",
        FEATURES,
        "if (has_channels && row < tile.rows.count)",
        "if (has_channels)",
    ),
    # Channels
    planted(
        "no end of the channels, forward_strided",
        "forward_strided",
        STRIDED,
        "if (bin_y < bins_y.count && channels.first + c < rois.channels)",
        "if (bin_y < bins_y.count)",
    ),
    planted(
        "no end of the channels, forward_channels_last",
        "forward_channels_last",
        CHANNELS_LAST,
        "count = left < kWarp * N ? left : kWarp * N;",
        "count = left < kWarp * N ? kWarp * N : kWarp * N;",
    ),
    planted(
        "reads beyond the channels",
        "forward_channels_last",
        CHANNELS_LAST,
        "first = own < channels ? own : channels - N;",
        "first = own;",
    ),
    planted(
        "no end of the channels, features_backward",
        "features_backward",
        FEATURES,
        "has_channels = channel < rois.channels;",
        "has_channels = channel < rois.channels + N;",
    ),
    planted(
        "no end of the channels, rois_backward_strided",
        "rois_backward_strided",
        STRIDED,
        "channels.first + c < rois.channels ? widen(pixels[r][c]) : Acc(0)",
        "widen(pixels[r][c])",
    ),
    planted(
        "no end of the channels, rois_backward_channels_last",
        "rois_backward_channels_last",
        CHANNELS_LAST,
        "if (warp >= bins_y.count || !has_channels)",
        "if (warp >= bins_y.count)",
    ),
    planted(
        "no end of the channels, channels_to_the_end",
        "features_backward",
        FEATURES,
        "if (first + lane < channels && bins + bin < num_bins)",
        "if (bins + bin < num_bins)",
    ),
    # Memory of the block
    planted(
        "tables of bins that overlap",
        "forward_strided",
        TABLES,
        "store(entries[first - tile.first + 4 * bin + n]",
        "store(entries[first - tile.first + bin + n]",
        Edit(
            TABLES,
            "return &entries[pixels[bin].first - tile.first + 4 * bin]",
            "return &entries[pixels[bin].first - tile.first + bin]",
        ),
    ),
    planted(
        "sums that start with what an earlier block left",
        "forward_channels_last",
        CHANNELS_LAST,
        "sums[warp][bin_x][lane] = Pack<Acc, N>{};",
        "",
    ),
    planted(
        "reads a weight that no thread has written",
        "forward_strided",
        TABLES,
        "if (n < count) {",
        "if (n + 1 < count) {",
    ),
    # Arithmetic
    planted(
        "sums in half precision",
        "forward_channels_last",
        TENSORS,
        "sums.value[n] += weight * widen(values.value[n]);",
        "sums.value[n] = widen(Narrow<T>::from(sums.value[n] + weight * widen(values.value[n])));",
        dtype=torch.float16,
    ),
    planted(
        "sums in half precision, strided",
        "forward_strided",
        STRIDED,
        "column_sums[c] += weight * widen(values[r][c]);",
        "column_sums[c] = widen(Narrow<T>::from(column_sums[c] + weight * widen(values[r][c])));",
        dtype=torch.float16,
    ),
    planted(
        "a wrong stride",
        "forward_strided",
        STRIDED,
        "offset = bin_rows.first * map.row_stride + column_offset;\n          in_parts<kRows>(0, bin_rows.count, "
        "[&](int row, auto number) {\n            T values",
        "offset = bin_rows.first * map.width + column_offset;\n          in_parts<kRows>(0, bin_rows.count, "
        "[&](int row, auto number) {\n            T values",
    ),
    planted(
        "image that does not exist",
        "forward_strided",
        INTEGRAL,
        "batch_index < static_cast<T>(num_images)",
        "batch_index <= static_cast<T>(num_images)",
    ),
    planted(
        "another RoI",
        "forward_channels_last",
        TENSORS,
        "rois.data + k * 5",
        "rois.data + (k ^ 1) * 5",
    ),
    planted(
        "x and y swapped",
        "features_backward",
        TENSORS,
        "roi.x = make_extent(data[1], data[3]",
        "roi.x = make_extent(data[2], data[4]",
    ),
    planted(
        "no zero for a RoI without area",
        "forward_strided",
        STRIDED,
        "    Acc totals[kBinsOfLane][kChannels] = {};\n",
        "    Acc totals[kBinsOfLane][kChannels] = {};\n    if (!roi.pools) {\n      return;\n    }\n",
    ),
    planted(
        "a warp left out of the sum",
        "rois_backward_channels_last",
        GRADIENT,
        "warp < blockDim.y && threadIdx.x > 0",
        "warp + 1 < blockDim.y && threadIdx.x > 0",
    ),
    planted(
        "a lane left out of the sum",
        "rois_backward_strided",
        GRADIENT,
        "offset > 0; offset /= 2",
        "offset > 1; offset /= 2",
    ),
]
ALL_BUGS = [*QUICK_BUGS, *(pytest.param(bug, marks=pytest.mark.slow) for bug in SLOW_BUGS)]


def name_of(value: object) -> str | None:
    return value.name if isinstance(value, Bug) else None


@pytest.mark.parametrize("bug", ALL_BUGS, ids=name_of)
def test_planted_bugs_are_noticed(needs_emulator, bug, tmp_path):
    sources = tmp_path / "csrc"
    shutil.copytree(extension.SOURCES, sources)
    launcher = Path(shutil.copy(cuda_kernels.__file__, tmp_path))
    for file, old, new in bug.edits:
        path = launcher if file == LAUNCHER else sources / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has {text.count(old)} times, not once: {old}"
        path.write_text(text.replace(old, new))
    emulator = Emulator(names_of(bug), INCLUDES, tmp_path, sources=sources)
    kernels = CudaOnCpu(emulator, _import(launcher).CudaKernels)
    with pytest.raises((EmulationError, AssertionError)) as noticed:
        check(kernels, bug.kernel, bug.layout or layout_of(bug.kernel), bug.dtype, tmp_path)
    print(noticed.value)


def names_of(bug: Bug) -> list[str]:
    """The kernels to compile: as few as possible."""
    kernels = [bug.kernel, *(["channels_to_the_end"] if bug.kernel == "features_backward" else [])]
    return [
        name
        for name in kernel_names([bug.dtype])
        # Those that take one channel at a time are for numbers of channels that `make_features` does not make.
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
    if layout.startswith("large"):  # a RoI has several tiles
        memory_format = torch.channels_last if layout.endswith("channels last") else torch.contiguous_format
        return torch.randn(2, 8, 700, 3, generator=generator).to(dtype, memory_format=memory_format)
    if layout == "odd width":
        return torch.randn(2, 8, 20, 17, generator=generator).to(dtype)
    # More channels than a block takes, and some lanes without any.
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
        [2, 1, 1, 9, 9],  # of no image
        [-1, 1, 1, 9, 9],
        [0, 1, 1, float("nan"), 9],
    ]
    corners = torch.rand(4, 2, generator=generator) * 40
    random = torch.cat(
        [torch.tensor([[0.0], [1], [0], [1]]), corners, corners + torch.rand(4, 2, generator=generator) * 20], 1
    )
    return torch.cat([torch.tensor(special), random])


def _import(path: Path) -> ModuleType:
    """A changed copy of the launcher, in the package of the original."""
    name = f"{cuda_kernels.__package__}.changed_{path.parent.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
