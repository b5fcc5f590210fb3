"""Precise RoI Pooling as a function: the contract, its checks, and the choice of the implementation."""

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import extension, reference


def prroi_pool2d(features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> Tensor:
    """Mean of the bilinearly interpolated features over each bin of each RoI, by exact integration.

    Source: Jiang et al., "Acquisition of Localization Confidence for Accurate Object Detection", ECCV 2018,
    equations 4 and 5.

    Args:
        features: Tensor[N, C, H, W], float32 or float64; float16 and bfloat16 are computed in float32. Any
            strides. Pixel (row j, column i) lies at the point (x, y) = (i, j) of the feature plane, and the
            plane is 0 one pixel beyond the map's outermost pixels.
        rois: Tensor[K, 5], float32 or float64 whatever the dtype of the features: (batch_index, x1, y1, x2,
            y2), a half-open box in pixels of the image that batch_index names. Computed in the dtype of the
            features.
        pooled_height, pooled_width: the number of bins a RoI is divided into.
        spatial_scale: multiplies the four coordinates, e.g. 1/16 for features of stride 16.

    Returns:
        Tensor[K, C, pooled_height, pooled_width] of the features' dtype, in the features' memory format. A
        RoI without area (reversed ones included) or with a non-finite coordinate pools to 0, with gradient 0.

    Gradients: of the features, and of x1, y1, x2, y2 (that of batch_index is 0). First order, reverse mode;
    asking for a second derivative or for forward mode raises. `reference.prroi_pool2d` has derivatives of any
    order.

    Raises:
        TypeError: an argument's dtype does not fit.
        ValueError: a shape, a device, a number of bins, or (on the CPU only, where looking costs nothing) a
            batch index does not fit. On other devices a RoI of an image that does not exist pools to 0.
    """
    _check(features, rois, pooled_height, pooled_width, spatial_scale)
    dtype = features.dtype
    if dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    rois = rois.to(features.dtype)

    kernels = extension.kernels(features.device.type)
    if kernels is None:
        pooled = reference.prroi_pool2d(features, rois, pooled_height, pooled_width, spatial_scale)
    else:
        pooled = _PrRoIPool2D.apply(kernels, features, rois, pooled_height, pooled_width, spatial_scale)
    return pooled.to(dtype)


class _PrRoIPool2D(torch.autograd.Function):
    """The compiled kernels with their gradients."""

    @staticmethod
    def forward(
        ctx,
        kernels: ModuleType,
        features: Tensor,
        rois: Tensor,
        pooled_height: int,
        pooled_width: int,
        spatial_scale: float,
    ) -> Tensor:
        ctx.kernels = kernels
        ctx.spatial_scale = spatial_scale
        # Only the gradient of the RoIs needs the values of the features; that of the features needs their
        # layout.
        ctx.features_shape = features.shape
        ctx.channels_last = features.is_contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(features if ctx.needs_input_grad[2] else None, rois)
        return kernels.forward(features, rois, pooled_height, pooled_width, spatial_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        features, rois = ctx.saved_tensors
        grad_features = grad_rois = None
        if ctx.needs_input_grad[1]:
            grad_features = ctx.kernels.features_backward(
                grad_output, rois, ctx.features_shape, ctx.channels_last, ctx.spatial_scale
            )
        if ctx.needs_input_grad[2]:
            grad_rois = ctx.kernels.rois_backward(grad_output, features, rois, ctx.spatial_scale)
        return None, grad_features, grad_rois, None, None, None


def _check(features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> None:
    if features.dim() != 4:
        raise ValueError(f"features must be [N, C, H, W], got {list(features.shape)}; one image needs features[None]")
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            f"rois must be [K, 5] with columns (batch_index, x1, y1, x2, y2), got {list(rois.shape)}; "
            "boxes [K, 4] need a column with the index of their image in front"
        )
    if features.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"features must be floating point, got {features.dtype}; convert them with .float()")
    if rois.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"rois must be float32 or float64, got {rois.dtype}; convert them with .float(), and "
            "do so before they are computed: float16 rounds a coordinate of 1200 by up to half a pixel"
        )
    if features.device != rois.device:
        raise ValueError(f"features are on {features.device} but rois on {rois.device}; move one with .to(device)")
    if pooled_height < 1 or pooled_width < 1:
        raise ValueError(f"a RoI needs at least one bin a side, got {pooled_height} × {pooled_width}")
    if not 0 < spatial_scale < float("inf"):
        raise ValueError(f"spatial_scale must be positive and finite (1 / stride of the features), got {spatial_scale}")
    if rois.device.type == "cpu" and len(rois):
        _check_batch_index(rois[:, 0].detach(), len(features))


def _check_batch_index(batch_index: Tensor, num_images: int) -> None:
    wrong = ~((batch_index >= 0) & (batch_index < num_images) & (batch_index == batch_index.floor()))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"rois[{row}, 0], the batch index, is {batch_index[row].item():g}, but must be an integer in "
            f"[0, {num_images}) for features of {num_images} image(s); are the columns "
            "(batch_index, x1, y1, x2, y2)?"
        )
