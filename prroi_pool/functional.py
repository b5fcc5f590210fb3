"""Precise RoI Pooling as a function, with all checks of its arguments."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from . import extension, ops

HALF_DTYPES = (torch.float16, torch.bfloat16)
# The modules raise this for torch.jit.script, which would otherwise fail on the first type that it does not know.
NO_TORCHSCRIPT = (
    "prroi_pool does not support torch.jit.script, which PyTorch has deprecated; use torch.compile or torch.export"
)


def prroi_pool2d(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> Tensor:
    """Pool each bin of each RoI to the exact mean of the bilinearly interpolated features.

    The function is differentiable in `features` and in the coordinates of `rois`. The gradient of `features` has the
    memory format of `features`; the gradient of `batch_index` is 0. Reverse-mode derivatives of any order are
    available, also through `grad`, `vjp` and `jacrev` of `torch.func`. Compiled kernels compute the first derivatives;
    plain PyTorch computes the derivatives of the RoIs' gradient.

    Source: Jiang et al., "Acquisition of Localization Confidence for Accurate Object Detection", ECCV 2018,
    equations 4 and 5.

    Args:
        features: Tensor[N, C, H, W] of a floating-point dtype, with any strides. float16 and bfloat16 features are
            summed in float32. Row j, column i lies at the point (x, y) = (i, j) of the feature plane. Beyond the
            outermost pixels, interpolation falls to 0 within one pixel.
        rois: Tensor[K, 5] of (batch_index, x1, y1, x2, y2): half-open boxes in pixels of the image with this index.
            Alternatively a list of N tensors [K_n, 4], the boxes of each image, which are pooled in this order. The
            floating-point dtype may differ from that of the features. RoIs are converted to float64 for float64
            features and to float32 otherwise. Prefer float32 boxes: float16 rounds a coordinate of 1200 by up to half
            a pixel, and bfloat16 by up to 4 pixels.
        pooled_height: number of bins along y. A float such as 7.0 is accepted.
        pooled_width: number of bins along x.
        spatial_scale: factor from image to feature coordinates, e.g. 1/16 for features of stride 16.

    Returns:
        Contiguous Tensor[K, C, pooled_height, pooled_width] of the features' dtype. A RoI without area, a reversed RoI
            and a RoI with a non-finite coordinate pool to 0, with gradient 0.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device, number of bins or scale is invalid, or, on the CPU only, a batch index is out of
            range. On other devices, where this check would synchronise, such a RoI pools to 0.
        NotImplementedError: forward-mode differentiation is used.
    """
    # Lets torch.fx trace this function and Tensor subclasses override it.
    if has_torch_function((features, rois)):
        arguments = (features, rois, pooled_height, pooled_width, spatial_scale)
        return handle_torch_function(prroi_pool2d, (features, rois), *arguments)
    pooled_height, pooled_width, spatial_scale = checked_bins(pooled_height, pooled_width, spatial_scale)
    check_features(features)
    if isinstance(rois, (list, tuple)) and all(isinstance(boxes, Tensor) for boxes in rois):
        if len(rois) != features.shape[0]:
            raise ValueError(f"rois lists the boxes of {len(rois)} images, but features holds {features.shape[0]}")
        rois = rois_of_images(rois) if rois else torch.zeros(0, 5, device=features.device)
    rois = checked_rois(rois, features.device)
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in (features, rois)):
        raise NotImplementedError(
            "prroi_pool2d does not support forward-mode differentiation (jvp, jacfwd, hessian); use reverse mode: "
            "backward, autograd.grad, or grad, vjp and jacrev of torch.func"
        )
    if not torch.compiler.is_compiling():
        # The operator also loads the kernels, but a warning raised there would not point to the caller.
        extension.kernels(features.device.type)
    return ops.prroi_pool2d(features, rois, pooled_height, pooled_width, spatial_scale)


class PrRoIPool2DFunction:
    """Alias with the original authors' name: `PrRoIPool2DFunction.apply` is `prroi_pool2d`."""

    apply = staticmethod(prroi_pool2d)


def _import_prroi_pooling() -> ModuleType | None:
    """Build and load the kernels, for CUDA if PyTorch sees a GPU and for the CPU otherwise.

    The name is the original authors'. Installation guides of projects that embed the operator call it.

    Returns:
        The compiled kernels, or None if they cannot be built. A failed build warns once, and plain PyTorch then gives
        the same results more slowly.
    """
    return extension.kernels("cuda" if torch.cuda.is_available() else "cpu")


def rois_of_images(boxes: Sequence[Tensor]) -> Tensor:
    """Convert the boxes of each image, Tensor[K_n, 4], to RoIs, Tensor[K, 5] of (batch_index, x1, y1, x2, y2).

    Raises:
        ValueError: boxes have another shape.
    """
    for n, b in enumerate(boxes):
        if b.dim() != 2 or b.shape[1] != 4:
            raise ValueError(f"the boxes of image {n} must have shape [K, 4], got {list(b.shape)}")
    # Half dtypes cannot represent every index of a large batch.
    boxes = [in_full_precision(b) for b in boxes]
    return torch.cat([torch.cat([b.new_full((b.shape[0], 1), n), b], dim=1) for n, b in enumerate(boxes)])


def in_full_precision(boxes: Tensor) -> Tensor:
    """Convert boxes or RoIs from a half dtype to float32, differentiably. Return others unchanged."""
    return boxes.float() if boxes.dtype in HALF_DTYPES else boxes


def checked_bins(pooled_height: float, pooled_width: float, spatial_scale: float) -> tuple[int, int, float]:
    """Return the arguments as int, int and float.

    Raises:
        TypeError: a number of bins is not a whole number, or the scale is not a number.
        ValueError: a number of bins is below 1, or the scale is not positive and finite.
    """
    height, width = _whole(pooled_height), _whole(pooled_width)
    if height < 1 or width < 1:
        raise ValueError(f"pooled_height and pooled_width must be at least 1, got {height} and {width}")
    if not 0 < spatial_scale < float("inf"):
        raise ValueError(f"spatial_scale must be positive and finite (1 / stride of the features), got {spatial_scale}")
    return height, width, float(spatial_scale)


def _whole(number: float) -> int:
    if isinstance(number, (int, torch.SymInt)):
        return number
    try:
        whole = int(number)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != number:
        raise TypeError(f"pooled_height and pooled_width must be whole numbers, got {number!r}")
    return whole


def check_features(features: Tensor) -> None:
    """Raise TypeError or ValueError unless the features are a floating-point Tensor[N, C, H, W]."""
    if not isinstance(features, Tensor):
        raise TypeError(
            f"features must be a Tensor[N, C, H, W], got {type(features).__name__}; convert them with torch.as_tensor"
        )
    if features.dim() != 4:
        raise ValueError(f"features must be [N, C, H, W], got {list(features.shape)}; pass one image as features[None]")
    if features.dtype not in (*HALF_DTYPES, torch.float32, torch.float64):
        raise TypeError(f"features must be floating point, got {features.dtype}; convert them with .float()")


def checked_rois(rois: Tensor | Sequence[Tensor], device: torch.device) -> Tensor:
    """Return RoIs as float32 or float64. Raise TypeError or ValueError unless they are a Tensor[K, 5] on the device."""
    if not isinstance(rois, Tensor):
        raise TypeError(
            f"rois must be a Tensor[K, 5] or a list with one Tensor[K_n, 4] per image, got {type(rois).__name__}; "
            "convert them with torch.as_tensor(rois, dtype=torch.float32, device=features.device)"
        )
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            f"rois must be [K, 5] with columns (batch_index, x1, y1, x2, y2), got {list(rois.shape)}; "
            "for boxes [K, 4], prepend a column with the index of each box's image"
        )
    rois = in_full_precision(rois)
    if rois.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"rois must be floating point, got {rois.dtype}; convert them with .float()")
    if rois.device != device:
        raise ValueError(f"features are on {device} but rois are on {rois.device}; move one with .to(device)")
    return rois
