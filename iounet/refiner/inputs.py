"""Images and boxes as callers give them, checked and as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

AnyImage = Tensor | np.ndarray | Image.Image
AnyValues = Tensor | np.ndarray | Sequence[Any]


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
    image: AnyImage, boxes: AnyValues, labels: AnyValues | None, scores: AnyValues | None, class_names: list[str]
) -> Given:
    """An image and its boxes, as :class:`iounet.IoURefiner` takes them.

    Raises:
        TypeError, ValueError: they are of another kind or shape, not finite, or labels are out of range.
    """
    tensor = as_tensor(image)
    detections = _as_detections(boxes, labels, scores, class_names)
    height, width = tensor.shape[1:]
    clipped = replace(detections, boxes=clip_boxes_to_image(detections.boxes, (height, width)))
    return Given(tensor, (height, width), detections, clipped[(box_sizes(clipped.boxes) > 0).all(1)])


def _as_detections(
    boxes: AnyValues, labels: AnyValues | None, scores: AnyValues | None, class_names: list[str]
) -> RefinedDetections:
    boxes = torch.as_tensor(boxes).detach()
    boxes = boxes.clone() if boxes.dtype == torch.float64 else boxes.float().clone()
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
    count, device = len(boxes), boxes.device
    labels = torch.as_tensor(labels if labels is not None else [0] * count, device=device)
    if labels.is_floating_point() and len(labels):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    scores = boxes.new_ones(count) if scores is None else torch.as_tensor(scores, device=device).detach()
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
    if count and not 0 <= int(given.labels.min()) <= int(given.labels.max()) <= len(class_names):
        raise ValueError(
            f"labels must lie in 1..{len(class_names)}, which stand for the classes {class_names}, or be 0 for any "
            f"other class; got {int(given.labels.min())}..{int(given.labels.max())}"
        )
    return given


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
        raise TypeError(f"an image is a PIL image, a NumPy array or a tensor, not {type(image).__name__}")
    if tensor.dtype != torch.uint8:
        if not tensor.is_floating_point():
            raise ValueError(f"an image must be uint8, or floating point in [0, 1]; got {tensor.dtype}")
        if tensor.numel() and not 0 <= float(tensor.min()) <= float(tensor.max()) <= 1:
            raise ValueError(
                f"an image of floating point must lie in [0, 1], got {float(tensor.min()):g} to "
                f"{float(tensor.max()):g}: divide by 255, and leave normalising to the refiner"
            )
    return F.to_dtype(tensor, torch.float32, scale=True)
