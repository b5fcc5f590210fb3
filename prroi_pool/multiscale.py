"""Precise RoI Pooling from a feature pyramid, with the interface of torchvision's MultiScaleRoIAlign."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
import torch.fx
from torch import Tensor, nn

from . import extension, pyramid, pyramid_ops
from .functional import (
    NO_TORCHSCRIPT,
    check_features,
    checked_bins,
    checked_rois,
    in_full_precision,
    prroi_pool2d,
    rois_of_images,
)
from .ops import transforms_are_active


class MultiScalePrRoIPool(nn.Module):
    """Pools each box from the level of a feature pyramid that matches its size.

    Equation 1 of Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, assigns a level to each box.
    The stride of a level is image size / map size, rounded to a power of two. torchvision's `MultiScaleRoIAlign` does
    the same, so this module can replace `roi_heads.box_roi_pool` of torchvision's detectors. Unlike torchvision's
    module, it is differentiable in the boxes. torch.fx traces a call as one node.

    Args:
        featmap_names: names of the maps to pool from, finest first. Names that are missing from a pyramid are skipped.
        output_size: number of bins, (height, width) or one number for both.
        sampling_ratio: ignored, because exact integration needs no samples. Accepted for compatibility with
            `MultiScaleRoIAlign`.
        canonical_scale: side in pixels of a square box that is pooled from `canonical_level` (224 in equation 1).
        canonical_level: the level of such a box (k0 in equation 1). Level k has stride 2**k.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int | None = None,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ):
        super().__init__()
        self.featmap_names = list(featmap_names)
        height, width = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
        self.output_size = checked_bins(height, width, spatial_scale=1)[:2]
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level

    def forward(
        self,
        x: Mapping[str, Tensor],
        boxes: Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
        levels: Tensor | None = None,
    ) -> Tensor:
        """Pool the boxes of a batch of images.

        Args:
            x: Tensor[N, C, H_l, W_l] for each name in `featmap_names`; other maps are ignored. If the maps differ in
                dtype, as under autocast, the output has the widest dtype.
            boxes: one Tensor[K_n, 4] per image, xyxy in pixels of the network's input image.
            image_shapes: (height, width) of each input image of the network, before padding to a batch.
            levels: Tensor[K] of an integer dtype, as returned by `assign_levels`. By default, levels are assigned from
                `boxes`. Pass them while you move boxes, so that each box keeps its initial level.

        Returns:
            Tensor[K, C, *output_size] in the order of the concatenated boxes, differentiable in `x` and `boxes`.

        Raises:
            KeyError: `x` has none of `featmap_names`.
            TypeError: maps, boxes or levels have the wrong dtype.
            ValueError: a shape or device is invalid, or, on the CPU only, a level does not exist. On CUDA, a box with
                such a level pools to 0.
        """
        settings = self.featmap_names, self.output_size, self.canonical_scale, self.canonical_level
        return _pool(x, boxes, image_shapes, levels, *settings)

    @staticmethod
    def in_fixed_shapes(device: torch.device) -> bool:
        """Return whether tensor sizes in `forward` do not depend on values: on CUDA with kernels, or when compiling."""
        return torch.compiler.is_compiling() or (device.type == "cuda" and extension.kernels("cuda") is not None)

    @torch.no_grad()
    def assign_levels(
        self, x: Mapping[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return the pyramid level of each box.

        Args:
            x: as in `forward`.
            boxes: as in `forward`.
            image_shapes: as in `forward`.

        Returns:
            Tensor[K] of int64: position of each box's map in `featmap_names`, not counting names that `x` lacks.
        """
        scales = _scales(_maps(x, self.featmap_names), image_shapes)
        return _assign_levels(scales, boxes, self.canonical_scale, self.canonical_level)

    def boxes_backward(
        self,
        grad_output: Tensor,
        x: Mapping[str, Tensor],
        boxes: Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
        levels: Tensor,
    ) -> Tensor:
        """Return the gradient of the boxes, Tensor[K, 4].

        Programs exported by torch.export or torch.onnx.export use this method, because they have no autograd.

        Args:
            grad_output: gradient of the output of `forward`, Tensor[K, C, *output_size].
            x: as in `forward`.
            boxes: as in `forward`.
            image_shapes: as in `forward`.
            levels: as in `forward`, but required.

        Raises:
            KeyError: `x` has none of `featmap_names`.
            TypeError: boxes or levels have the wrong dtype.
            ValueError: a shape or device is invalid.
        """
        maps = _maps(x, self.featmap_names)
        rois = checked_rois(rois_of_images(boxes), maps[0].device)
        # The kernels do not check the shape and would read out of bounds.
        expected = (rois.shape[0], maps[0].shape[1], *self.output_size)
        if grad_output.shape != expected:
            raise ValueError(f"grad_output must be {list(expected)}, like the output, got {list(grad_output.shape)}")
        scales = _scales(maps, image_shapes)
        return pyramid_ops.pyramid_rois_backward(grad_output, maps, rois, _checked_levels(levels, rois), scales)[:, 1:]

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(NO_TORCHSCRIPT)

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"canonical_scale={self.canonical_scale}, canonical_level={self.canonical_level}"
        )


@torch.fx.wrap
def _pool(
    x: Mapping[str, Tensor],
    boxes: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    levels: Tensor | None,
    featmap_names: Sequence[str],
    output_size: tuple[int, int],
    canonical_scale: int,
    canonical_level: int,
) -> Tensor:
    """`MultiScalePrRoIPool.forward` as a function, because torch.fx can wrap functions as one node, but not methods."""
    maps = _maps(x, featmap_names)
    for features in maps:
        check_features(features)
    rois = checked_rois(rois_of_images(boxes), maps[0].device)
    scales = _scales(maps, image_shapes)
    if levels is None:
        levels = _assign_levels(scales, boxes, canonical_scale, canonical_level)
    levels = _checked_levels(levels, rois)
    if pyramid_ops.is_exporting():
        return pyramid_ops.pyramid_pool(maps, rois, levels, *output_size, scales)
    if MultiScalePrRoIPool.in_fixed_shapes(rois.device):
        level_by_level = functools.partial(_pool_in_fixed_shapes, levels=levels, scales=scales, output_size=output_size)
        # Compilers and the transforms of torch.func need the operators.
        if torch.compiler.is_compiling() or transforms_are_active() or not pyramid.fits_one_launch(maps, rois):
            return level_by_level(maps, rois)
        return pyramid.pool_pyramid(extension.kernels("cuda"), level_by_level, maps, rois, levels, output_size, scales)
    outside = (levels < 0) | (levels >= len(maps))
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(f"levels[{row}] is {int(levels[row])}, but must be in [0, {len(maps)}) for {len(maps)} map(s)")
    pooled, order = [], []
    for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        members = (levels == level).nonzero().squeeze(1)
        pooled.append(prroi_pool2d(features, rois[members], *output_size, scale))
        order.append(members)
    # index_select has a faster gradient than indexing.
    return torch.cat(pooled).index_select(0, torch.cat(order).argsort())


def _pool_in_fixed_shapes(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: tuple[int, int],
) -> Tensor:
    """Return the same result as `_pool`, without tensors whose sizes depend on values.

    Such sizes would require synchronisation with the GPU, and prevent compilation as one graph and capture in a CUDA
    graph. Instead, each level pools all boxes, after the boxes of other levels are replaced with empty ones, which pool
    to 0. The results of the levels are then summed.
    """
    pooled: Tensor | None = None
    for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        of_level = rois.masked_fill((levels != level)[:, None], 0)
        added = prroi_pool2d(features, of_level, *output_size, scale)
        pooled = added if pooled is None else pooled + added
    assert pooled is not None, "a pyramid has at least one level"
    return pooled


@torch.no_grad()
def _assign_levels(
    scales: Sequence[float], boxes: Sequence[Tensor], canonical_scale: int, canonical_level: int
) -> Tensor:
    # The area of a large box would overflow in float16.
    x1, y1, x2, y2 = torch.cat([in_full_precision(b) for b in boxes]).unbind(1)
    side = ((x2 - x1) * (y2 - y1)).sqrt()
    # 1e-6 keeps a box of exactly the canonical size from falling to the finer level by rounding.
    level = (canonical_level + (side / canonical_scale).log2() + 1e-6).floor()
    # For a box without area this is -inf or NaN: no comparison below holds, so it stays on the finest level.
    assigned = torch.zeros_like(level, dtype=torch.int64)
    for index in range(1, len(scales)):
        if scales[index] < scales[index - 1]:  # of maps with equal strides only the first is used, as in torchvision
            assigned = assigned.masked_fill(level >= -math.log2(scales[index]), index)
    return assigned


def _checked_levels(levels: Tensor, rois: Tensor) -> Tensor:
    """Return the levels as int64. Raise TypeError or ValueError unless they are one integer per RoI."""
    if levels.shape != rois.shape[:1]:
        raise ValueError(f"levels must have shape [{len(rois)}], one level per box, got {list(levels.shape)}")
    if levels.device != rois.device:
        raise ValueError(f"levels are on {levels.device} but boxes are on {rois.device}; move one with .to(device)")
    if levels.is_floating_point() or levels.is_complex() or levels.dtype == torch.bool:
        raise TypeError(f"levels must be integers, got {levels.dtype}")
    return levels.long()


def _maps(x: Mapping[str, Tensor], featmap_names: Sequence[str]) -> list[Tensor]:
    maps = [x[name] for name in featmap_names if name in x]
    if not maps:
        raise KeyError(f"the pyramid has none of the maps in featmap_names, {list(featmap_names)}, only {list(x)}")
    return maps


def _scales(maps: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]) -> list[float]:
    """Return 1 / stride of each map: map size / image size, rounded to a power of two because of padding.

    torchvision uses the height alone. This function adds the width, because padding distorts the ratio of heights too
    much for a wide image that is only 43 pixels high.
    """
    height, width = (max(shape[side] for shape in image_shapes) for side in (0, 1))
    return [_nearest_power_of_two(features.shape[-2] + features.shape[-1], height + width) for features in maps]


def _nearest_power_of_two(map_sides: int, image_sides: int) -> float:
    """Return the power of two nearest to map_sides / image_sides.

    Computed in integers, because torch.compile in PyTorch 2.11 and older cannot take the logarithm of a dynamic size.
    """
    for exponent in range(24):
        if (256 * image_sides) ** 2 < 2 * (map_sides * 2**exponent) ** 2:
            return 256 / 2**exponent
    raise ValueError(
        f"cannot infer the stride of a map whose height + width is {map_sides} for images whose height + width is "
        f"{image_sides}; check image_shapes"
    )
