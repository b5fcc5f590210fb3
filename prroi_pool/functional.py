"""Precise RoI Pooling as a function: the contract and its checks."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from . import extension, ops

HALF_DTYPES = (torch.float16, torch.bfloat16)
# What the modules raise for torch.jit.script, which would otherwise fail on the first type that it does not know.
NO_TORCHSCRIPT = (
    "prroi_pool does not support torch.jit.script, which PyTorch deprecates; use torch.compile or torch.export"
)


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
        rois: Tensor[K, 5] of any floating dtype, whatever that of the features: (batch_index, x1, y1, x2, y2), a
            half-open box in pixels of the image that batch_index names. Or the boxes of each image, N
            Tensor[K_n, 4], which are pooled one image after the other. Computed in the dtype of the features;
            float16 and bfloat16, as autocast makes them, in float32. Half RoIs have lost precision already: float16
            rounds a coordinate of 1200 by up to half a pixel, bfloat16 by up to 4 pixels.
        pooled_height, pooled_width: the number of bins a RoI is divided into; a float such as 7.0 is accepted.
        spatial_scale: multiplies the four coordinates, e.g. 1/16 for features of stride 16.

    Returns:
        Tensor[K, C, pooled_height, pooled_width] of the features' dtype, contiguous. A RoI without area (reversed
        ones included) or with a non-finite coordinate pools to 0, with gradient 0.

    Gradients: of the features, in their memory format, and of x1, y1, x2, y2 (that of batch_index is 0). Of any
    order in reverse mode, though only the first is compiled; also by grad, vjp and jacrev of torch.func. Forward
    mode raises.

    Raises:
        TypeError: an argument's type or dtype does not fit.
        NotImplementedError: forward-mode differentiation.
        ValueError: a shape, a device, a number of bins, or (on the CPU only, where looking costs nothing) a
            batch index does not fit. On other devices a RoI of an image that does not exist pools to 0.
    """
    # Lets torch.fx trace a call, and subclasses of Tensor override it.
    if has_torch_function((features, rois)):
        arguments = (features, rois, pooled_height, pooled_width, spatial_scale)
        return handle_torch_function(prroi_pool2d, (features, rois), *arguments)
    pooled_height, pooled_width, spatial_scale = checked_bins(pooled_height, pooled_width, spatial_scale)
    check_features(features)
    if isinstance(rois, (list, tuple)) and all(isinstance(boxes, Tensor) for boxes in rois):
        if len(rois) != features.shape[0]:
            raise ValueError(f"rois are boxes of {len(rois)} images, but features of {features.shape[0]}")
        rois = rois_of_images(rois) if rois else torch.zeros(0, 5, device=features.device)
    rois = checked_rois(rois, features.device)
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in (features, rois)):
        raise NotImplementedError(
            "prroi_pool2d has no forward-mode derivative (jvp, jacfwd, hessian); use reverse mode: backward, "
            "autograd.grad, or grad, vjp and jacrev of torch.func"
        )
    if not torch.compiler.is_compiling():
        # The operator would do so, but from there a warning that they are missing does not point to the caller.
        extension.kernels(features.device.type)
    return ops.prroi_pool2d(features, rois, pooled_height, pooled_width, spatial_scale)


class PrRoIPool2DFunction:
    """The authors' name for :func:`prroi_pool2d`, which they call as `PrRoIPool2DFunction.apply`."""

    apply = staticmethod(prroi_pool2d)


def _import_prroi_pooling() -> ModuleType | None:
    """Build and load the kernels: for CUDA where PyTorch sees a GPU, else for the CPU.

    The authors' name, which guides to install projects with this operator call after the installation.

    Returns:
        The module of kernels. None where they cannot be built, which is reported with one warning: plain PyTorch
        then computes the same, slower.
    """
    return extension.kernels("cuda" if torch.cuda.is_available() else "cpu")


def rois_of_images(boxes: Sequence[Tensor]) -> Tensor:
    """Return the boxes of each image, Tensor[K_n, 4], as RoIs: Tensor[K, 5] of (index of the image, x1, y1, x2, y2).

    Raises:
        ValueError: boxes of another shape.
    """
    for n, b in enumerate(boxes):
        if b.dim() != 2 or b.shape[1] != 4:
            raise ValueError(f"the boxes of an image must be [K, 4], got {list(b.shape)} for image {n}")
    # Half dtypes do not represent every index of a large batch.
    boxes = [in_full_precision(b) for b in boxes]
    return torch.cat([torch.cat([b.new_full((b.shape[0], 1), n), b], dim=1) for n, b in enumerate(boxes)])


def in_full_precision(boxes: Tensor) -> Tensor:
    """Return boxes or RoIs of a half dtype as float32, differentiably, and others as they are."""
    return boxes.float() if boxes.dtype in HALF_DTYPES else boxes


def checked_bins(pooled_height: float, pooled_width: float, spatial_scale: float) -> tuple[int, int, float]:
    """Return the arguments as int, int and float.

    Raises:
        TypeError: a number of bins that is no whole number, or a scale that is no number.
        ValueError: a number of bins below 1, or a scale that is not positive and finite.
    """
    height, width = _whole(pooled_height), _whole(pooled_width)
    if height < 1 or width < 1:
        raise ValueError(f"a RoI needs at least one bin a side, got {height} x {width}")
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
    """Raise TypeError or ValueError if the features are no floating-point Tensor[N, C, H, W]."""
    if not isinstance(features, Tensor):
        raise TypeError(
            f"features must be a Tensor[N, C, H, W], got {type(features).__name__}; convert them with torch.as_tensor"
        )
    if features.dim() != 4:
        raise ValueError(f"features must be [N, C, H, W], got {list(features.shape)}; one image needs features[None]")
    if features.dtype not in (*HALF_DTYPES, torch.float32, torch.float64):
        raise TypeError(f"features must be floating point, got {features.dtype}; convert them with .float()")


def checked_rois(rois: Tensor | Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the RoIs in float32 or float64. Raise TypeError or ValueError if they are no RoIs on the device."""
    if not isinstance(rois, Tensor):
        raise TypeError(
            f"rois must be a Tensor[K, 5], or a list with a Tensor[K_n, 4] for each image, got {type(rois).__name__}; "
            "convert them with torch.as_tensor(rois, dtype=torch.float32, device=features.device)"
        )
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            f"rois must be [K, 5] with columns (batch_index, x1, y1, x2, y2), got {list(rois.shape)}; "
            "boxes [K, 4] need a column with the index of their image in front"
        )
    rois = in_full_precision(rois)
    if rois.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"rois must be floating point, got {rois.dtype}; convert them with .float()")
    if rois.device != device:
        raise ValueError(f"features are on {device} but rois on {rois.device}; move one with .to(device)")
    return rois
