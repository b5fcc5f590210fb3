"""Precise RoI Pooling from a feature pyramid, called like torchvision's MultiScaleRoIAlign."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import extension
from .functional import prroi_pool2d, rois_of_images


class MultiScalePrRoIPool(nn.Module):
    """Pools each box from the level of a feature pyramid that fits its size.

    The level is chosen by equation 1 of Lin et al., "Feature Pyramid Networks for Object Detection", CVPR
    2017, and the stride of a level is the power of two next to image size / map size, both as in
    torchvision's MultiScaleRoIAlign, so that this module can replace `roi_heads.box_roi_pool` of its
    detectors. Unlike there, the boxes receive a gradient.

    Args:
        featmap_names: the maps of the pyramid to pool from, finest first.
        output_size: bins of a box: (height, width), or one number for both.
        canonical_scale: the side in pixels of a square box that is pooled from canonical_level (s0 of
            equation 1).
        canonical_level: k0 of equation 1; level k has the stride 2**k.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ):
        super().__init__()
        self.featmap_names = list(featmap_names)
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level

    def forward(
        self,
        x: dict[str, Tensor],
        boxes: Sequence[Tensor],
        image_shapes: Sequence[tuple[int, int]],
        levels: Tensor | None = None,
    ) -> Tensor:
        """Pools the boxes of a batch of images.

        Args:
            x: Tensor[N, C, H_l, W_l] for each name of the pyramid's maps; others are ignored.
            boxes: one Tensor[K_n, 4] per image, xyxy in pixels of that image as the network saw it.
            image_shapes: (height, width) of each image as the network saw it, before padding to a batch.
            levels: Tensor[K] of int64, what `assign_levels` returned; by default it is called with these
                boxes. Passed by a caller that moves boxes, so that each keeps the level it started from.

        Returns:
            Tensor[K, C, *output_size], in the order of the concatenated boxes; differentiable in x and in
            boxes.
        """
        maps = self._maps(x)
        rois = rois_of_images(boxes)
        if levels is None:
            levels = self.assign_levels(x, boxes, image_shapes)
        if levels.shape != rois.shape[:1]:
            raise ValueError(f"levels must be [{len(rois)}], one for each box, got {list(levels.shape)}")

        scales = _scales(maps, image_shapes)
        if self.in_fixed_shapes(rois.device):
            return self._pool_in_fixed_shapes(maps, rois, levels, scales)
        height, width = self.output_size
        pooled, order = [], []
        for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
            members = (levels == level).nonzero().squeeze(1)
            pooled.append(prroi_pool2d(features, rois[members], height, width, scale))
            order.append(members)
        # Not [...]: index_select's gradient is faster, and its result contiguous, as fully connected layers want it.
        return torch.cat(pooled).index_select(0, torch.cat(order).argsort())

    @staticmethod
    def in_fixed_shapes(device: torch.device) -> bool:
        """Whether no tensor's size depends on values in `forward`: on a GPU with kernels, and while compiling."""
        return torch.compiler.is_compiling() or (device.type == "cuda" and extension.kernels("cuda") is not None)

    def _pool_in_fixed_shapes(
        self, maps: Sequence[Tensor], rois: Tensor, levels: Tensor, scales: Sequence[float]
    ) -> Tensor:
        """The same without a tensor whose size depends on values.

        A GPU would be waited for to learn it, and code with it can neither be compiled whole nor captured in a
        CUDA graph. So each level pools all boxes, those of other levels as boxes without area, which give 0,
        and the levels are summed.
        """
        height, width = self.output_size
        pooled: Tensor | None = None
        for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
            of_level = rois.masked_fill((levels != level)[:, None], 0)
            added = prroi_pool2d(features, of_level, height, width, scale)
            pooled = added if pooled is None else pooled + added
        assert pooled is not None, "a pyramid has levels"
        return pooled

    @torch.no_grad()
    def assign_levels(
        self, x: dict[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """The pyramid level of each box: Tensor[K] of int64, an index into `featmap_names`. Arguments as in
        `forward`."""
        scales = _scales(self._maps(x), image_shapes)
        finest, coarsest = (int(-math.log2(scale)) for scale in (scales[0], scales[-1]))
        x1, y1, x2, y2 = torch.cat(list(boxes)).unbind(1)
        side = ((x2 - x1) * (y2 - y1)).sqrt()
        # 1e-6 keeps a box of exactly the canonical size from falling to the finer level by rounding.
        level = (self.canonical_level + (side / self.canonical_scale).log2() + 1e-6).floor()
        # A box without area has log2(0) or the root of a negative number: it goes to the finest level.
        return level.nan_to_num(nan=finest).clamp(finest, coarsest).long() - finest

    def _maps(self, x: dict[str, Tensor]) -> list[Tensor]:
        missing = [name for name in self.featmap_names if name not in x]
        if missing:
            raise KeyError(f"the pyramid has the maps {list(x)}, but not {missing} of featmap_names")
        return [x[name] for name in self.featmap_names]

    def extra_repr(self) -> str:
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"canonical_scale={self.canonical_scale}, canonical_level={self.canonical_level}"
        )


def _scales(maps: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]) -> list[float]:
    """1 / stride of each map. Padding blurs map size / image size, so it is rounded to a power of two."""
    height = max(shape[0] for shape in image_shapes)
    return [_nearest_power_of_two(features.shape[-2], height) for features in maps]


def _nearest_power_of_two(map_height: int, image_height: int) -> float:
    """To their ratio. In integers, as torch.compile up to PyTorch 2.11 knows no logarithm of a dynamic size."""
    for exponent in range(24):
        if (256 * image_height) ** 2 < 2 * (map_height * 2**exponent) ** 2:
            return 256 / 2**exponent
    raise ValueError(f"a map of height {map_height} is no level of a pyramid for images of height {image_height}")
