"""Precise RoI Pooling in standard ONNX operators, for `torch.onnx.export(..., dynamo=True)`.

The integral separates, as in `reference.py`: the output of each RoI is A_y F A_x^T, where F contains the pixels under
the RoI, and A_y and A_x the weights of rows and columns. Pooling and its gradients are computed as batched matrix
products.

This module needs onnxscript, as does torch.onnx.export.

Example:
    ```python
    torch.onnx.export(model, args, dynamo=True, custom_translation_table=prroi_pool.onnx.translations())
    ```
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import FLOAT, INT64, script
from onnxscript.onnx_opset import opset18 as op
from onnxscript.values import Opset

from .extension import NAMESPACE

# Number of RoIs whose pixels are in memory at once. These RoIs are padded to the largest of them, so RoIs of similar
# size are grouped.
ROIS_AT_ONCE = 64

_ours = Opset(NAMESPACE, 1)


def translations(rois_at_once: int | None = ROIS_AT_ONCE) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the `custom_translation_table` of torch.onnx.export for the operators of this package.

    The ONNX file needs opset 18 or newer. The numbers of images and RoIs and the sizes of the maps may be dynamic.
    Results are computed in float32. A RoI whose image or level does not exist pools to 0.

    Args:
        rois_at_once: number of RoIs that one iteration of an ONNX Loop pools, which bounds memory. None pools all RoIs
            at once, without a Loop. The gradient of the RoIs is always computed for all RoIs at once.
    """

    def pool_from_pyramid(maps, rois, levels, pooled_height: int, pooled_width: int, spatial_scales: Sequence[float]):
        bins = op.Constant(value_ints=[pooled_width, pooled_height])
        geometry, places, _ = _prepare(maps, rois, levels, bins, spatial_scales)
        if rois_at_once is None:
            columns, rows = _axes(geometry, places, bins)
            _, pooled_rows = _patch(_pixels(maps), columns[0], *rows[:2])
            pooled = op.MatMul(op.Unsqueeze(columns[1], [1]), pooled_rows)
        else:
            order, rank = _by_size(places)
            places = op.Gather(places, order, axis=0)
            columns, rows = _axes(op.Gather(geometry, order, axis=0), places, bins)
            at_once = op.Constant(value_ints=[rois_at_once])
            pooled = op.Gather(_pool_in_parts(_pixels(maps), *columns[:2], *rows[:2], places, at_once), rank, axis=0)
        return op.CastLike(op.Transpose(pooled, perm=[0, 3, 1, 2]), maps[0])

    def pool_from_map(features, rois, pooled_height: int, pooled_width: int, spatial_scale: float):
        levels = _first_level(rois)
        return pool_from_pyramid([features], rois, levels, pooled_height, pooled_width, [spatial_scale])

    operators = getattr(torch.ops, NAMESPACE)
    return {
        operators.prroi_pool2d.default: pool_from_map,
        operators.rois_backward.default: _rois_backward_of_map,
        operators.pyramid_pool.default: pool_from_pyramid,
        operators.pyramid_rois_backward.default: _rois_backward_of_pyramid,
    }


# ---- Functions that the exporter traces, with ONNX values in place of tensors


def _rois_backward_of_map(grad_output, features, rois, spatial_scale: float):
    return _rois_backward_of_pyramid(grad_output, [features], rois, _first_level(rois), [spatial_scale])


def _rois_backward_of_pyramid(grad_output, maps, rois, levels, spatial_scales: Sequence[float]):
    bins = op.Concat(op.Shape(grad_output, start=3, end=4), op.Shape(grad_output, start=2, end=3), axis=0)
    geometry, places, scales = _prepare(maps, rois, levels, bins, spatial_scales)
    columns, rows = _axes(geometry, places, bins)
    patch, pooled_rows = _patch(_pixels(maps), columns[0], *rows[:2])
    by_bin = op.Transpose(op.Cast(grad_output, to=1), perm=[0, 2, 3, 1])
    by_geometry = _geometry_backward(patch, pooled_rows, *columns[1:], *rows[2:], by_bin)
    return op.CastLike(_by_coordinates(by_geometry, scales, bins), rois)


def _axes(geometry, places, bins):
    """Return the results of `_axis` for columns and rows. A row is given as its first pixel's index in `_pixels`."""
    x_low, x_size, y_low, y_size = op.Split(geometry, num_outputs=4, axis=1)
    x_first, x_last, y_first, y_last, start, width = op.Split(places, num_outputs=6, axis=1)
    bins_x, bins_y = op.Split(bins, num_outputs=2, axis=0)
    y, *weights = _axis(y_low, y_size, y_first, y_last, bins_y)
    return _axis(x_low, x_size, x_first, x_last, bins_x), (op.Add(start, op.Mul(y, width)), *weights)


def _first_level(rois):
    return op.Expand(op.Constant(value_ints=[0]), op.Shape(rois, start=0, end=1))


def _prepare(maps, rois, levels, bins, spatial_scales: Sequence[float]):
    shapes = op.Concat(*[op.Unsqueeze(op.Shape(features), [0]) for features in maps], axis=0)
    return _place(op.Cast(rois, to=1), levels, bins, shapes, op.Constant(value_floats=list(spatial_scales)))


def _pixels(maps):
    """Return the pixels of all maps, concatenated: [M, C]."""
    channels = op.Shape(maps[0], start=1, end=2)
    shape = op.Concat(op.Constant(value_ints=[-1]), channels, axis=0)
    rows = [op.Reshape(op.Transpose(op.Cast(features, to=1), perm=[0, 2, 3, 1]), shape) for features in maps]
    return rows[0] if len(rows) == 1 else op.Concat(*rows, axis=0)


# ---- ONNX functions


@script(_ours, default_opset=op)
def _place(
    rois: FLOAT[...], levels: INT64[...], bins: INT64[...], shapes: INT64[...], scale_of_level: FLOAT[...]
) -> tuple[FLOAT[...], INT64[...], FLOAT[...]]:
    """Locate each RoI in its map.

    Args:
        rois: [K, 5].
        levels: [K].
        bins: [2], the number of bins along x and along y.
        shapes: [L, 4], the shapes of the maps.
        scale_of_level: [L].

    Returns:
        geometry [K, 4]: left side, bin width, top side and bin height, in pixels of the RoI's map. The sizes are 0 if
        the RoI pools to 0.
        places [K, 6]: first and last column, first and last row, index of the first pixel of the RoI's image in
        `_pixels`, and width of the map.
        scales [K, 1]: spatial scale of the RoI's map.
    """
    has_level = op.And(levels >= 0, levels < op.Shape(shapes, start=0, end=1))
    level = op.Where(has_level, levels, 0)
    images, _channels, heights, widths = op.Split(op.Gather(shapes, level, axis=0), num_outputs=4, axis=1)
    scales = op.Unsqueeze(op.Gather(scale_of_level, level, axis=0), [1])
    sizes = op.Concat(widths, heights, axis=1)
    pixels_of_level = op.ReduceProd(op.Gather(shapes, op.Constant(value_ints=[0, 2, 3]), axis=1), [1], keepdims=0)
    first_of_level = op.CumSum(pixels_of_level, op.Constant(value_int=0), exclusive=1)

    # (x1, y1) and (x2, y2)
    low = rois[:, 1:3]
    size = (rois[:, 3:5] - low) * scales / op.Cast(bins, to=1)
    low = low * scales
    # Both comparisons are false for NaN.
    is_proper = op.And(op.And(size > 0.0, size < 3.0e38), op.Abs(low) < 1.0e9)
    image = rois[:, 0:1]
    has_image = op.And(op.And(image >= 0.0, image < op.Cast(images, to=1)), image == op.Floor(image))
    low = op.Where(is_proper, low, 0.0)
    size = op.Where(is_proper, size, 0.0)
    first = op.Relu(op.Floor(low))
    last = op.Min(op.Ceil(low + size * op.Cast(bins, to=1)), op.Cast(sizes, to=1) - 1.0)
    pools = op.And(op.And(is_proper, first <= last), op.And(has_image, op.Unsqueeze(has_level, [1])))
    pools = op.And(pools[:, 0:1], pools[:, 1:2])
    size = op.Where(pools, size, 0.0)
    low = op.Where(pools, low, 0.0)
    first = op.Cast(op.Where(pools, first, 0.0), to=7)
    last = op.Cast(op.Where(pools, last, 0.0), to=7)
    image = op.Cast(op.Where(pools, image, 0.0), to=7)
    start = op.Unsqueeze(op.Gather(first_of_level, level, axis=0), [1]) + image * widths * heights
    geometry = op.Concat(low[:, 0:1], size[:, 0:1], low[:, 1:2], size[:, 1:2], axis=1)
    places = op.Concat(first[:, 0:1], last[:, 0:1], first[:, 1:2], last[:, 1:2], start, widths, axis=1)
    return geometry, places, scales


@script(_ours, default_opset=op)
def _by_size(places: INT64[...]) -> tuple[INT64[...], INT64[...]]:
    """Return the order of the RoIs by their number of pixels, [K], and the rank of each RoI in this order, [K]."""
    pixels = (places[:, 1] - places[:, 0] + 1) * (places[:, 3] - places[:, 2] + 1)
    count = op.Shape(pixels)
    _, order = op.TopK(pixels, count, largest=0)
    ranks = op.Range(op.Constant(value_int=0), op.Squeeze(count), op.Constant(value_int=1))
    return order, op.ScatterElements(ranks, order, ranks, axis=0)


@script(_ours, default_opset=op)
def _axis(
    low: FLOAT[...], size: FLOAT[...], first: INT64[...], last: INT64[...], num_bins: INT64[...]
) -> tuple[INT64[...], FLOAT[...], FLOAT[...], FLOAT[...]]:
    """Return the pixels of an axis and their weights in each bin.

    Args:
        low: [k, 1], start of each RoI on this axis, see `_place`.
        size: [k, 1], size of a bin.
        first: [k, 1], first pixel.
        last: [k, 1], last pixel.
        num_bins: [1].

    Returns:
        pixels [k, S].
        weights [k, B, S]: mean over the bin of the hat function around the pixel, as in `reference.mean_of_hat`.
        by_low, by_size [k, B, S]: derivatives of the weights with respect to `low` and `size`.
    """
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    # The appended 0 makes this work without RoIs.
    longest = op.ReduceMax(op.Concat(op.Squeeze(last - first, [1]), op.Constant(value_ints=[0]), axis=0), keepdims=0)
    pixels = first + op.Range(zero, longest + one, one)
    inside = op.Unsqueeze(op.And(pixels <= last, size > 0.0), [1])
    pixels = op.Min(pixels, last)
    bins = op.Unsqueeze(op.Cast(op.Range(zero, op.Squeeze(num_bins), one), to=1), [1])
    size_of_bin = op.Unsqueeze(op.Where(size > 0.0, size, 1.0), [2])
    # Subtract the RoI's start from the pixel first, which is exact for nearby values; tiny bins need this precision.
    distance = op.Unsqueeze(op.Cast(pixels, to=1) - low, [1])
    enter = op.Max(op.Min((distance - 1.0) / size_of_bin - bins, 1.0), 0.0)
    peak = op.Max(op.Min(distance / size_of_bin - bins, 1.0), 0.0)
    leave = op.Max(op.Min((distance + 1.0) / size_of_bin - bins, 1.0), 0.0)
    rising = op.Where(inside, peak - enter, 0.0)
    falling = op.Where(inside, leave - peak, 0.0)
    middle_of_rising = bins + (enter + peak) / 2.0
    middle_of_falling = bins + (peak + leave) / 2.0
    on_rising = 1.0 - (distance - size_of_bin * middle_of_rising)
    on_falling = 1.0 + (distance - size_of_bin * middle_of_falling)
    weights = rising * on_rising + falling * on_falling
    return pixels, weights, rising - falling, rising * middle_of_rising - falling * middle_of_falling


@script(_ours, default_opset=op)
def _patch(pixels: FLOAT[...], x: INT64[...], y: INT64[...], y_weights: FLOAT[...]) -> tuple[FLOAT[...], FLOAT[...]]:
    """Return the pixels under each RoI, [K, R, S * C], and their weighted sums over each bin's rows, [K, P, S, C]."""
    patch = op.Gather(pixels, op.Unsqueeze(y, [2]) + op.Unsqueeze(x, [1]), axis=0)
    columns = op.Shape(patch, start=2, end=4)
    patch = op.Reshape(patch, op.Concat(op.Shape(y), op.ReduceProd(columns), axis=0), allowzero=1)
    pooled_rows = op.MatMul(y_weights, patch)
    shape = op.Concat(op.Shape(pooled_rows, start=0, end=2), columns, axis=0)
    return patch, op.Reshape(pooled_rows, shape, allowzero=1)


@script(_ours, default_opset=op)
def _pool_in_parts(
    pixels: FLOAT[...],
    x: INT64[...],
    x_weights: FLOAT[...],
    y: INT64[...],
    y_weights: FLOAT[...],
    places: INT64[...],
    at_once: INT64[...],
) -> FLOAT[...]:
    """Return the pooled features of RoIs that are sorted by size: [K, P, Q, C]."""
    # Without RoIs there is one empty part, because an empty sequence cannot be concatenated.
    num_parts = op.Squeeze(op.Max(op.Shape(x, start=0, end=1) + at_once - 1, at_once) / at_once)
    zero = op.Constant(value_ints=[0])
    axes = op.Constant(value_ints=[0, 1])
    axes_of_weights = op.Constant(value_ints=[0, 2])
    parts = op.SequenceEmpty()
    for part in range(num_parts):
        begin = part * at_once
        end = begin + at_once
        # Rows and columns of the largest RoI in this part; at least one.
        of_part = op.Slice(places, begin, end, zero)
        lengths = op.Concat(of_part[:, 1:2] - of_part[:, 0:1], of_part[:, 3:4] - of_part[:, 2:3], axis=1)
        columns, rows = op.Split(
            op.ReduceMax(op.Concat(lengths, [[0, 0]], axis=0), zero, keepdims=0) + 1, num_outputs=2, axis=0
        )
        begins = op.Concat(begin, zero, axis=0)
        x_ends = op.Concat(end, columns, axis=0)
        y_ends = op.Concat(end, rows, axis=0)
        x_part = op.Slice(x, begins, x_ends, axes)
        y_part = op.Slice(y, begins, y_ends, axes)
        patch = op.Gather(pixels, op.Unsqueeze(y_part, [2]) + op.Unsqueeze(x_part, [1]), axis=0)
        width = op.Shape(patch, start=2, end=4)
        patch = op.Reshape(patch, op.Concat(op.Shape(y_part), op.ReduceProd(width), axis=0), allowzero=1)
        pooled_rows = op.MatMul(op.Slice(y_weights, begins, y_ends, axes_of_weights), patch)
        shape = op.Concat(op.Shape(pooled_rows, start=0, end=2), width, axis=0)
        pooled_rows = op.Reshape(pooled_rows, shape, allowzero=1)
        x_weights_part = op.Unsqueeze(op.Slice(x_weights, begins, x_ends, axes_of_weights), [1])
        parts = op.SequenceInsert(parts, op.MatMul(x_weights_part, pooled_rows))
    return op.ConcatFromSequence(parts, axis=0)


@script(_ours, default_opset=op)
def _geometry_backward(
    patch: FLOAT[...],
    pooled_rows: FLOAT[...],
    x_weights: FLOAT[...],
    x_by_low: FLOAT[...],
    x_by_size: FLOAT[...],
    y_by_low: FLOAT[...],
    y_by_size: FLOAT[...],
    grad_output: FLOAT[...],
) -> FLOAT[...]:
    """Return the gradient of the geometry, [K, 4], given the gradient of the output, [K, P, Q, C]."""
    # Gradient of the column weights: the pooled rows times the output's gradient, summed over the rows of bins.
    of_x = op.MatMul(grad_output, op.Transpose(pooled_rows, perm=[0, 1, 3, 2]))
    of_x = op.ReduceSum(of_x, [1], keepdims=0)
    # Gradient of the row weights: the output's gradient, spread over the columns, times the pixels.
    spread = op.MatMul(op.Unsqueeze(op.Transpose(x_weights, perm=[0, 2, 1]), [1]), grad_output)
    shape = op.Concat(op.Shape(spread, start=0, end=2), op.Shape(patch, start=2, end=3), axis=0)
    spread = op.Reshape(spread, shape, allowzero=1)
    of_y = op.MatMul(spread, op.Transpose(patch, perm=[0, 2, 1]))
    by_geometry = op.Concat(
        op.ReduceSum(of_x * x_by_low, [1, 2]),
        op.ReduceSum(of_x * x_by_size, [1, 2]),
        op.ReduceSum(of_y * y_by_low, [1, 2]),
        op.ReduceSum(of_y * y_by_size, [1, 2]),
        axis=1,
    )
    return op.Squeeze(by_geometry, [2])


@script(_ours, default_opset=op)
def _by_coordinates(by_geometry: FLOAT[...], scales: FLOAT[...], bins: INT64[...]) -> FLOAT[...]:
    """Return the gradient of (batch_index, x1, y1, x2, y2), [K, 5], given the gradient of the geometry."""
    x_low, x_size, y_low, y_size = op.Split(by_geometry, num_outputs=4, axis=1)
    by_second = op.Concat(x_size, y_size, axis=1) * scales / op.Cast(bins, to=1)
    by_first = op.Concat(x_low, y_low, axis=1) * scales - by_second
    return op.Concat(x_low * 0.0, by_first, by_second, axis=1)
