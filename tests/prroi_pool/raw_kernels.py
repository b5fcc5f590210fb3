"""Calls kernels directly: for RoIs that the operator refuses, and for kernels that are not registered."""

from collections.abc import Callable

import torch
from torch import Tensor

from prroi_pool.cuda_kernels import CudaKernels


class _OneMap:
    """Adapts `CudaKernels`, which pool from several maps, to the signatures of csrc/prroi_pool.h."""

    def __init__(self, kernels):
        self._kernels = kernels

    def forward(self, features, rois, height, width, spatial_scale) -> Tensor:
        return self._kernels.forward([features], rois, None, height, width, [spatial_scale])

    def features_backward(self, grad_output, rois, shape, channels_last, spatial_scale) -> Tensor:
        return self._kernels.features_backward(grad_output, rois, None, [shape], [channels_last], [spatial_scale])[0]

    def rois_backward(self, grad_output, features, rois, spatial_scale) -> Tensor:
        return self._kernels.rois_backward(grad_output, [features], rois, None, [spatial_scale])


def pool_with(kernels) -> Callable[..., Tensor]:
    """Return `prroi_pool2d` computed by `CudaKernels` or by an object with the functions of csrc/prroi_pool.h."""
    if isinstance(kernels, CudaKernels):
        kernels = _OneMap(kernels)

    def pool(features: Tensor, rois: Tensor, height: int, width: int, spatial_scale: float) -> Tensor:
        return _Pool.apply(kernels, features, rois, height, width, spatial_scale)

    return pool


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, features, rois, height, width, spatial_scale):
        ctx.kernels, ctx.spatial_scale = kernels, spatial_scale
        ctx.channels_last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
        ctx.save_for_backward(features, rois)
        return kernels.forward(features, rois, height, width, spatial_scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        features, rois = ctx.saved_tensors
        grad_features = ctx.kernels.features_backward(grad, rois, features.shape, ctx.channels_last, ctx.spatial_scale)
        grad_rois = ctx.kernels.rois_backward(grad, features, rois, ctx.spatial_scale)
        return None, grad_features, grad_rois, None, None, None
