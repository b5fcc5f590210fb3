"""Check the images and boxes that callers pass, and convert them to tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as F

from .. import checks
from ..boxes import box_sizes
from ..detections import RefinedDetections
from ..stops import Stop

AnyImage = Tensor | np.ndarray | Image.Image
AnyValues = Tensor | np.ndarray | Sequence[Any]


@dataclass(frozen=True)
class Given:
    """An image and the boxes to refine in it.

    Attributes:
        image (Tensor[3, H, W]): RGB, float32 in [0, 1].
        size: (height, width) in pixels.
        detections: all boxes as given, without predictions.
        visible: the boxes with an area inside the image, clipped to the image.
    """

    image: Tensor
    size: tuple[int, int]
    detections: RefinedDetections
    visible: RefinedDetections


def check_input(
    image: AnyImage, boxes: AnyValues, labels: AnyValues | None, scores: AnyValues | None, categories: list[dict]
) -> Given:
    """Check and convert an image and its boxes, given as `iounet.IoURefiner` describes.

    Warns about boxes that seem to be in a format other than xyxy in pixels.

    Raises:
        TypeError: ``image`` is not an image, or another input cannot be converted to a tensor.
        ValueError: an input has the wrong shape or range, a box is not finite, or a label is unknown.
    """
    tensor = as_tensor(image)
    detections = _as_detections(boxes, labels, scores, categories)
    height, width = tensor.shape[1:]
    if len(detections):
        sizes = box_sizes(detections.boxes)
        checks.warn_of_other_forms(float(sizes.min()), float(detections.boxes.max()), (height, width))
    clipped = replace(detections, boxes=clip_boxes_to_image(detections.boxes, (height, width)))
    return Given(tensor, (height, width), detections, clipped[(box_sizes(clipped.boxes) > 0).all(1)])


def _as_detections(
    boxes: AnyValues, labels: AnyValues | None, scores: AnyValues | None, categories: list[dict]
) -> RefinedDetections:
    boxes = _as_numbers("boxes", boxes).detach()
    boxes = boxes.clone() if boxes.dtype == torch.float64 else boxes.float().clone()
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
    checks.check_shapes(boxes=boxes.shape)
    count, device = len(boxes), boxes.device
    labels = [0] * count if labels is None else checks.with_names_as_numbers(labels, categories)
    labels = _as_numbers("labels", labels, device)
    if labels.is_floating_point() and labels.numel():
        raise checks.not_integers(labels.dtype)
    scores = boxes.new_ones(count) if scores is None else _as_numbers("scores", scores, device).detach()
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
        raise checks.not_finite(row, boxes[row].tolist())
    if count:
        checks.check_label_range(int(given.labels.min()), int(given.labels.max()), categories)
    return given


def _as_numbers(name: str, values: Any, device: torch.device | None = None) -> Tensor:
    """Convert ``values`` to a tensor, or raise TypeError."""
    try:
        return torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises any of these, depending on the input
        raise checks.not_numbers(name, values, error) from None


def as_tensor(image: AnyImage) -> Tensor:
    """Convert an image, given as `iounet.IoURefiner` describes, to RGB [3, H, W], float32 in [0, 1]."""
    if isinstance(image, Image.Image):
        checks.check_mode(image.mode)
        tensor = F.pil_to_tensor(image.convert("RGB"))
    elif isinstance(image, np.ndarray):
        checks.check_array_shape(image.shape)
        checks.check_pixel_type(image.dtype, floating=image.dtype.kind == "f")
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    elif isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"a tensor must be an RGB image of shape [3, H, W], got {list(image.shape)}")
        checks.check_pixel_type(image.dtype, floating=image.is_floating_point())
        tensor = image.detach().as_subclass(Tensor)
    else:
        raise checks.not_an_image(image, "a PIL image, a NumPy array or a tensor")
    if tensor.is_floating_point() and tensor.numel():
        checks.check_pixel_range(float(tensor.min()), float(tensor.max()))
    return F.to_dtype(tensor, torch.float32, scale=True)
