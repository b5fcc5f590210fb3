"""Precise RoI Pooling as a function: the contract, its checks, and the choice of the implementation."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import extension, ops, reference


def prroi_pool2d(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> Tensor:
    """Mean of the bilinearly interpolated features over each bin of each RoI, by exact integration.

    Source: Jiang et al., "Acquisition of Localization Confidence for Accurate Object Detection", ECCV 2018,
    equations 4 and 5.

    Args:
        features: Tensor[N, C, H, W], float32 or float64; float16 and bfloat16 are computed in float32. Any
            strides. Pixel (row j, column i) lies at the point (x, y) = (i, j) of the feature plane, and the
            plane is 0 one pixel beyond the map's outermost pixels.
        rois: Tensor[K, 5], float32 or float64 whatever the dtype of the features: (batch_index, x1, y1, x2,
            y2), a half-open box in pixels of the image that batch_index names. Or the boxes of each image, N
            Tensor[K_n, 4], which are pooled one image after the other. Computed in the dtype of the features.
        pooled_height, pooled_width: the number of bins a RoI is divided into.
        spatial_scale: multiplies the four coordinates, e.g. 1/16 for features of stride 16.

    Returns:
        Tensor[K, C, pooled_height, pooled_width] of the features' dtype, in the features' memory format. A
        RoI without area (reversed ones included) or with a non-finite coordinate pools to 0, with gradient 0.

    Gradients: of the features, and of x1, y1, x2, y2 (that of batch_index is 0). Of any order in
    reverse mode, though only the first is compiled; forward mode raises.

    Raises:
        TypeError: an argument's dtype does not fit.
        NotImplementedError: forward-mode differentiation.
        ValueError: a shape, a device, a number of bins, or (on the CPU only, where looking costs nothing) a
            batch index does not fit. On other devices a RoI of an image that does not exist pools to 0.
    """
    if not isinstance(rois, Tensor):
        if len(rois) != features.shape[0]:
            raise ValueError(f"rois are boxes of {len(rois)} images, but features of {features.shape[0]}")
        rois = rois_of_images(rois) if rois else torch.zeros(0, 5, device=features.device)
    _check(features, rois, pooled_height, pooled_width, spatial_scale)
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in (features, rois)):
        raise NotImplementedError(
            "prroi_pool2d has no forward-mode derivative; use reverse mode (backward, autograd.grad)"
        )
    # Compilers trace the operator, whose kernels are then looked for when the compiled code runs.
    if torch.compiler.is_compiling() or extension.kernels(features.device.type) is not None:
        return ops.prroi_pool2d(features, rois, pooled_height, pooled_width, spatial_scale)
    return _by_reference(features, rois, pooled_height, pooled_width, spatial_scale)


def _by_reference(
    features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> Tensor:
    """As the compiled operator does it: the same dtypes, the same error."""
    if rois.device.type == "cpu":
        batch_index, num_images = rois.detach()[:, 0], len(features)
        wrong = batch_index != batch_index.floor().clamp(0, num_images - 1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"rois[{row}, 0], the batch index, is {batch_index[row].item():g}, but must be an integer in "
                f"[0, {num_images}) for features of {num_images} image(s); are the columns "
                "(batch_index, x1, y1, x2, y2)?"
            )
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    pooled = reference.prroi_pool2d(features.to(dtype), rois.to(dtype), pooled_height, pooled_width, spatial_scale)
    return pooled.to(features.dtype)


def rois_of_images(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes of each image, Tensor[K_n, 4], as RoIs: Tensor[K, 5] of (index of the image, x1, y1, x2, y2).

    Raises:
        ValueError: boxes of another shape.
    """
    for n, b in enumerate(boxes):
        if b.dim() != 2 or b.shape[1] != 4:
            raise ValueError(f"the boxes of an image must be [K, 4], got {list(b.shape)} for image {n}")
    return torch.cat([torch.cat([b.new_full((len(b), 1), n), b], dim=1) for n, b in enumerate(boxes)])


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
        raise ValueError(f"a RoI needs at least one bin a side, got {pooled_height} x {pooled_width}")
    if not 0 < spatial_scale < float("inf"):
        raise ValueError(f"spatial_scale must be positive and finite (1 / stride of the features), got {spatial_scale}")
