"""Images and boxes as callers give them, checked and as tensors."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as F

from ..boxes import box_sizes
from ..detections import RefinedDetections
from ..postprocess import Stop
from .matching import match_names

AnyImage = Tensor | np.ndarray | Image.Image
AnyValues = Tensor | np.ndarray | Sequence[Any]


class BoxWarning(UserWarning):
    """Boxes that look as if they were in another form than xyxy in pixels."""


@dataclass(frozen=True)
class Given:
    """An image and the boxes that a caller wants refined.

    Attributes:
        image (Tensor[3, H, W]): RGB, float32 in [0, 1].
        size: (H, W) in pixels.
        detections: the boxes as they were given, before anything was predicted for them.
        visible: those that have an area inside the image, clipped to it.
    """

    image: Tensor
    size: tuple[int, int]
    detections: RefinedDetections
    visible: RefinedDetections


def check_input(
    image: AnyImage, boxes: AnyValues, labels: AnyValues | None, scores: AnyValues | None, categories: list[dict]
) -> Given:
    """An image and its boxes, as :class:`iounet.IoURefiner` takes them; warns of boxes that look like another form.

    Raises:
        TypeError, ValueError: they are of another kind or shape, not finite, or labels are out of range or unknown.
    """
    tensor = as_tensor(image)
    detections = _as_detections(boxes, labels, scores, categories)
    height, width = tensor.shape[1:]
    _warn_of_other_forms(detections.boxes, max(height, width))
    clipped = replace(detections, boxes=clip_boxes_to_image(detections.boxes, (height, width)))
    return Given(tensor, (height, width), detections, clipped[(box_sizes(clipped.boxes) > 0).all(1)])


def _as_detections(
    boxes: AnyValues, labels: AnyValues | None, scores: AnyValues | None, categories: list[dict]
) -> RefinedDetections:
    boxes = _as_numbers("boxes", boxes, "[N, 4], xyxy in pixels; [] if there are none").detach()
    boxes = boxes.clone() if boxes.dtype == torch.float64 else boxes.float().clone()
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
    count, device = len(boxes), boxes.device
    labels = [0] * count if labels is None else _with_names_as_numbers(labels, categories)
    labels = _as_numbers("labels", labels, "[N], integers or class names", device)
    if labels.is_floating_point() and len(labels):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    scores = boxes.new_ones(count) if scores is None else _as_numbers("scores", scores, "[N]", device).detach()
    given = RefinedDetections(
        boxes,
        labels.long(),
        scores.to(boxes.dtype, copy=True),
        ious=boxes.new_zeros(count),
        ious_before=boxes.new_zeros(count),
        stops=torch.full((count,), int(Stop.UNPLACED), device=device),
        index=torch.arange(count, device=device),
    )
    if not torch.isfinite(boxes).all():
        row = int((~torch.isfinite(boxes)).any(1).nonzero()[0, 0])
        raise ValueError(f"box {row} is not finite: {boxes[row].tolist()}")
    if count and not 0 <= int(given.labels.min()) <= int(given.labels.max()) <= len(categories):
        raise ValueError(
            f"labels must lie in 1..{len(categories)}, which stand for the classes {_names(categories)}, or be 0 for "
            f"any other class; got {int(given.labels.min())}..{int(given.labels.max())}"
        )
    return given


def _as_numbers(name: str, values: Any, form: str, device: torch.device | None = None) -> Tensor:
    """Raises TypeError unless torch makes a tensor of ``values``; ``form`` says what they should be."""
    try:
        return torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError) as error:  # which one depends on what torch cannot read
        given = "None" if values is None else f"{type(values).__name__} ({error})"
        raise TypeError(f"{name} must be a tensor, an array or a list {form}; got {given}") from None


def _with_names_as_numbers(labels: AnyValues, categories: list[dict]) -> AnyValues:
    """The same labels, but class names as numbers; raises ValueError for an unknown name."""
    labels = labels.tolist() if isinstance(labels, np.ndarray) and labels.dtype.kind in "UO" else labels
    if not isinstance(labels, (list, tuple)) or not any(isinstance(label, str) for label in labels):
        return labels
    names = [label if isinstance(label, str) else "" for label in labels]
    by_name = match_names(names, categories)
    unknown = dict.fromkeys(name for name, found in zip(names, by_name, strict=True) if name and not found)
    if unknown:
        raise ValueError(
            f"labels names {', '.join(map(repr, unknown))}, but the classes are {_names(categories)}; give 0 for a "
            "class that the refiner was not trained on"
        )
    return [found or label for label, found in zip(labels, by_name, strict=True)]


def _names(categories: list[dict]) -> list[str]:
    return [category["name"] for category in categories]


def _warn_of_other_forms(boxes: Tensor, longer_side: int) -> None:
    """Always in the same words, so that Python shows a warning once, not for each image."""
    sizes = box_sizes(boxes)
    if (sizes < 0).any():
        warnings.warn(
            "some boxes have x2 < x1 or y2 < y1 and stay as they are; if they are [x, y, width, height], convert them "
            'with torchvision.ops.box_convert(boxes, "xywh", "xyxy")',
            BoxWarning,
            stacklevel=2,
        )
    elif len(boxes) and longer_side > 2 and float(boxes.max()) <= 1.01 and float(sizes.min()) > 0:
        warnings.warn(
            "no box reaches beyond the first pixel: these look like fractions of the image size; multiply x by the "
            "width and y by the height in pixels",
            BoxWarning,
            stacklevel=2,
        )


def as_tensor(image: AnyImage) -> Tensor:
    """RGB [3, H, W], float32 in [0, 1]; see :class:`iounet.IoURefiner` for what is taken."""
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"the image has pixels of more than 8 bits (PIL mode {image.mode}); convert it to 8 bits")
        tensor = F.pil_to_tensor(image.convert("RGB"))
    elif isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an array must be an RGB image of shape [H, W, 3], got {list(image.shape)}")
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    elif isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"a tensor must be an RGB image of shape [3, H, W], got {list(image.shape)}")
        tensor = image.detach().as_subclass(Tensor)
    else:
        cure = "; open the file with PIL.Image.open" if isinstance(image, (str, Path)) else ""
        raise TypeError(f"an image is a PIL image, a NumPy array or a tensor, not {type(image).__name__}{cure}")
    if tensor.dtype != torch.uint8:
        if not tensor.is_floating_point():
            raise ValueError(f"an image must be uint8, or floating point in [0, 1]; got {tensor.dtype}")
        if tensor.numel() and not 0 <= float(tensor.min()) <= float(tensor.max()) <= 1:
            raise ValueError(
                f"an image of floating point must lie in [0, 1], got {float(tensor.min()):g} to "
                f"{float(tensor.max()):g}: divide by 255, and leave normalising to the refiner"
            )
    return F.to_dtype(tensor, torch.float32, scale=True)
