"""Precise RoI Pooling as a module."""

from typing import NoReturn

from torch import Tensor, nn

from .functional import NO_TORCHSCRIPT, checked_bins, prroi_pool2d


class PrRoIPool2D(nn.Module):
    """Pools each RoI to a grid of `pooled_height` × `pooled_width` bins.

    `forward(features, rois)` calls `prroi_pool2d`, which documents shapes, gradients and errors.

    Args:
        pooled_height: number of bins along y.
        pooled_width: number of bins along x.
        spatial_scale: factor from image to feature coordinates, e.g. 1/16 for features of stride 16.
    """

    def __init__(self, pooled_height: int, pooled_width: int, spatial_scale: float):
        super().__init__()
        self.pooled_height, self.pooled_width, self.spatial_scale = checked_bins(
            pooled_height, pooled_width, spatial_scale
        )

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        return prroi_pool2d(features, rois, self.pooled_height, self.pooled_width, self.spatial_scale)

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(NO_TORCHSCRIPT)

    def extra_repr(self) -> str:
        return (
            f"pooled_height={self.pooled_height}, pooled_width={self.pooled_width}, spatial_scale={self.spatial_scale}"
        )
