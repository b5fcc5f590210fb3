"""Precise RoI Pooling from a feature pyramid, called like torchvision's MultiScaleRoIAlign."""

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
    """Pools each box from the level of a feature pyramid that fits its size.

    The level is chosen by equation 1 of Lin et al., "Feature Pyramid Networks for Object Detection", CVPR
    2017, and the stride of a level is the power of two next to image size / map size, both as in
    torchvision's MultiScaleRoIAlign, so that this module can replace `roi_heads.box_roi_pool` of its
    detectors. Unlike there, the boxes receive a gradient. torch.fx traces a call as one node.

    Args:
        featmap_names: the maps of the pyramid to pool from, finest first. Names that a pyramid does not have are
            skipped.
        output_size: bins of a box: (height, width), or one number for both.
        sampling_ratio: ignored. torchvision's module has it in this place; exact integration needs no samples.
        canonical_scale: the side in pixels of a square box that is pooled from canonical_level (s0 of
            equation 1).
        canonical_level: k0 of equation 1; level k has the stride 2**k.
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
        """Pools the boxes of a batch of images.

        Args:
            x: Tensor[N, C, H_l, W_l] for each name of the pyramid's maps; others are ignored. With maps of several
                dtypes, as autocast may give, the output has the widest.
            boxes: one Tensor[K_n, 4] per image, xyxy in pixels of that image as the network saw it.
            image_shapes: (height, width) of each image as the network saw it, before padding to a batch.
            levels: Tensor[K] of an integer dtype, what `assign_levels` returned; by default it is called with these
                boxes. Passed by a caller that moves boxes, so that each keeps the level it started from.

        Returns:
            Tensor[K, C, *output_size], in the order of the concatenated boxes; differentiable in x and in
            boxes.

        Raises:
            KeyError: x has no map of featmap_names.
            TypeError: maps, boxes or levels of a dtype that does not fit.
            ValueError: a shape or a device does not fit, or (on the CPU only) a level does not exist. On CUDA, such a
                box pools to 0.
        """
        settings = self.featmap_names, self.output_size, self.canonical_scale, self.canonical_level
        return _pool(x, boxes, image_shapes, levels, *settings)

    @staticmethod
    def in_fixed_shapes(device: torch.device) -> bool:
        """Whether no tensor's size depends on values in `forward`: on a GPU with kernels, and while compiling."""
        return torch.compiler.is_compiling() or (device.type == "cuda" and extension.kernels("cuda") is not None)

    @torch.no_grad()
    def assign_levels(
        self, x: Mapping[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return the pyramid level of each box: Tensor[K] of int64, an index into those of `featmap_names` that x has.
        Arguments as in `forward`."""
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
        """Return the gradient of the boxes: Tensor[K, 4].

        For programs that go where autograd does not, by torch.export and torch.onnx.export.

        Args:
            grad_output: Tensor[K, C, *output_size], the gradient of what `forward` returns.
            x, boxes, image_shapes, levels: as in `forward`.

        Raises:
            ValueError: a shape or a device does not fit.
        """
        maps = _maps(x, self.featmap_names)
        rois = checked_rois(rois_of_images(boxes), maps[0].device)
        # The kernels do not look: they would read what is no gradient.
        expected = (rois.shape[0], maps[0].shape[1], *self.output_size)
        if grad_output.shape != expected:
            raise ValueError(f"grad_output must be {list(expected)}, as the output is, got {list(grad_output.shape)}")
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
    """`MultiScalePrRoIPool.forward` as a function, because torch.fx can make a function one node, but no method."""
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
        # Compilers, and the transforms of torch.func, take the operators.
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
    # Not [...]: the gradient of index_select is faster.
    return torch.cat(pooled).index_select(0, torch.cat(order).argsort())


def _pool_in_fixed_shapes(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: tuple[int, int],
) -> Tensor:
    """Return the same as `_pool` without a tensor whose size depends on values.

    A GPU would be waited for to learn it, and code with it can neither be compiled whole nor captured in a
    CUDA graph. So each level pools all boxes, those of other levels as boxes without area, which give 0,
    and the levels are summed.
    """
    pooled: Tensor | None = None
    for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        of_level = rois.masked_fill((levels != level)[:, None], 0)
        added = prroi_pool2d(features, of_level, *output_size, scale)
        pooled = added if pooled is None else pooled + added
    assert pooled is not None, "a pyramid has levels"
    return pooled


@torch.no_grad()
def _assign_levels(
    scales: Sequence[float], boxes: Sequence[Tensor], canonical_scale: int, canonical_level: int
) -> Tensor:
    # In a half dtype the area of a large box would overflow.
    x1, y1, x2, y2 = torch.cat([in_full_precision(b) for b in boxes]).unbind(1)
    side = ((x2 - x1) * (y2 - y1)).sqrt()
    # 1e-6 keeps a box of exactly the canonical size from falling to the finer level by rounding.
    level = (canonical_level + (side / canonical_scale).log2() + 1e-6).floor()
    # A box without area has log2(0) or the root of a negative number: no comparison holds, and it goes to the finest.
    assigned = torch.zeros_like(level, dtype=torch.int64)
    for index in range(1, len(scales)):
        if scales[index] < scales[index - 1]:  # of maps of one stride the first is used, as torchvision does
            assigned = assigned.masked_fill(level >= -math.log2(scales[index]), index)
    return assigned


def _checked_levels(levels: Tensor, rois: Tensor) -> Tensor:
    """Return the levels as int64."""
    if levels.shape != rois.shape[:1]:
        raise ValueError(f"levels must be [{len(rois)}], one for each box, got {list(levels.shape)}")
    if levels.device != rois.device:
        raise ValueError(f"levels are on {levels.device} but boxes on {rois.device}; move one with .to(device)")
    if levels.is_floating_point() or levels.is_complex() or levels.dtype == torch.bool:
        raise TypeError(f"levels must be integers, got {levels.dtype}")
    return levels.long()


def _maps(x: Mapping[str, Tensor], featmap_names: Sequence[str]) -> list[Tensor]:
    maps = [x[name] for name in featmap_names if name in x]
    if not maps:
        raise KeyError(f"the pyramid has the maps {list(x)}, but none of featmap_names, {list(featmap_names)}")
    return maps


def _scales(maps: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]) -> list[float]:
    """1 / stride of each map. Padding blurs map size / image size, so it is rounded to a power of two.

    torchvision goes by the height alone, which is blurred beyond recognition where an image is wide and 43 pixels high.
    """
    height, width = (max(shape[side] for shape in image_shapes) for side in (0, 1))
    return [_nearest_power_of_two(features.shape[-2] + features.shape[-1], height + width) for features in maps]


def _nearest_power_of_two(map_sides: int, image_sides: int) -> float:
    """To their ratio. In integers, as torch.compile up to PyTorch 2.11 knows no logarithm of a dynamic size."""
    for exponent in range(24):
        if (256 * image_sides) ** 2 < 2 * (map_sides * 2**exponent) ** 2:
            return 256 / 2**exponent
    raise ValueError(
        f"a map with sides of {map_sides} pixels together is no level of a pyramid for images with {image_sides}"
    )
