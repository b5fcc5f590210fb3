"""Bugs to plant in prroi_pool's CUDA kernels and their launcher, for test_cuda_on_cpu.py.

A bug consists of one or more edits of the source. The old text of an edit must occur exactly once. Adapt it when you
change the source.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from prroi_pool import cuda_kernels

# The launcher is in Python; all other files are in csrc/.
LAUNCHER = Path(cuda_kernels.__file__).name


class Edit(NamedTuple):
    file: str
    old: str
    new: str


class Bug(NamedTuple):
    name: str
    kernel: str
    edits: tuple[Edit, ...]
    layout: str = ""  # layout of the features; by default the one that the kernel is designed for
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
    """Return a bug that removes one occurrence of a statement, found by the text before and after it."""
    return planted(name, kernel, file, before + removed + after, before + after, layout=layout)


BLOCK_BARRIER, WARP_BARRIER = "__syncthreads();", "__syncwarp();"
TILE_KERNELS = "forward_strided", "rois_backward_strided", "forward_channels_last", "rois_backward_channels_last"

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
            "  // all threads are done with the tables of the previous tile",
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
        "  // all threads are done with the previous weights",
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
        "vote by half a warp",
        "features_backward",
        FEATURES,
        "__ballot_sync(0xffffffff, reaches)",
        "__ballot_sync(0x0000ffff, reaches)",
    ),
    # Addresses
    planted(
        "32-bit offsets",
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
        "RoIs along the grid's y axis",
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
        Edit(LAUNCHER, "if grid[1] > MAX_CHUNKS:", "if False:"),
        layout="many RoIs",
    ),
    planted(
        "reads beyond the edge of the map",
        "forward_strided",
        INTEGRAL,
        "last < static_cast<T>(size - 1) ? last : static_cast<T>(size - 1)",
        "last < static_cast<T>(size) ? last : static_cast<T>(size)",
        Edit(INTEGRAL, "last_pixel < size - 1 ? last_pixel + 1 : size;", "last_pixel + 1;"),
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
        "writes beyond the channels, forward_strided",
        "forward_strided",
        STRIDED,
        "if (bin_y < bins_y.count && channels.first + c < rois.channels)",
        "if (bin_y < bins_y.count)",
    ),
    planted(
        "writes beyond the channels, forward_channels_last",
        "forward_channels_last",
        CHANNELS_LAST,
        "count = left < kWarp * N ? left : kWarp * N;",
        "count = left < kWarp * N ? kWarp * N : kWarp * N;",
    ),
    planted(
        "reads beyond the channels",
        "forward_channels_last",
        CHANNELS_LAST,
        "first = exist ? own : channels - N;",
        "first = own;",
    ),
    planted(
        "writes beyond the channels, features_backward",
        "features_backward",
        FEATURES,
        "has_channels = channel < rois.channels;",
        "has_channels = channel < rois.channels + N;",
    ),
    planted(
        "adds channels beyond the last, rois_backward_strided",
        "rois_backward_strided",
        STRIDED,
        "channels.first + c < rois.channels ? widen(pixels[r][c]) : Acc(0)",
        "widen(pixels[r][c])",
    ),
    planted(
        "adds channels beyond the last, rois_backward_channels_last",
        "rois_backward_channels_last",
        CHANNELS_LAST,
        "if (warp >= bins_y.count || !channels.exist)",
        "if (warp >= bins_y.count)",
    ),
    planted(
        "writes beyond the channels, channels_to_the_end",
        "features_backward",
        FEATURES,
        "if (first + lane < channels && bins + bin < num_bins)",
        "if (bins + bin < num_bins)",
    ),
    # Memory of the block
    planted(
        "tables of bins overlap",
        "forward_strided",
        TABLES,
        "store(entries[first - tile.first + kGap * bin + n]",
        "store(entries[first - tile.first + bin + n]",
        Edit(
            TABLES,
            "return &entries[pixels[bin].first - tile.first + kGap * bin]",
            "return &entries[pixels[bin].first - tile.first + bin]",
        ),
    ),
    planted(
        "sums that start with the values of an earlier block",
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
        "accepts an image that does not exist",
        "forward_strided",
        INTEGRAL,
        "batch_index < static_cast<T>(num_images)",
        "batch_index <= static_cast<T>(num_images)",
    ),
    planted(
        "reads another RoI",
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
        "writes no zeros for a RoI without area",
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
