"""``Detections`` of FiftyOne.

    for sample in dataset.iter_samples(autosave=True):
        sample["refined"] = adapters.fiftyone.refine(refiner, sample.filepath, sample["predictions"])

The attribute ``label`` is the class name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample
from torchvision.ops import box_convert

from ...data import read_image
from ..inputs import AnyImage, as_tensor
from ..refiner import IoURefiner
from .by_name import Found, refine_by_name

if TYPE_CHECKING:
    import fiftyone


def refine(
    refiner: IoURefiner,
    image: AnyImage | str | Path,
    detections: fiftyone.Detections,
    *,
    nms: str | None = None,
    class_agnostic: bool = False,
) -> fiftyone.Detections:
    """Refine the boxes of FiftyOne's ``Detections``, whose labels are class names.

    Args:
        refiner: the refiner.
        image: image file, which is read without EXIF rotation, or an RGB image, as `iounet.IoURefiner` describes.
        detections: detections in the image.
        nms: as in `iounet.refiner.adapters`.
        class_agnostic: as in `iounet.refiner.adapters`.

    Returns:
        A copy with new ids, refined ``bounding_box`` and the predicted IoUs in the attributes ``predicted_iou`` (after
            refinement) and ``predicted_iou_before``. Boxes of unknown classes have neither. Instance masks, which
            FiftyOne stores relative to their boxes, are resampled so that they stay in place in the image. Masks in
            files (``mask_path``) are stretched with their boxes.

    Raises:
        DataError: the image file cannot be read.
    """
    pixels = as_tensor(read_image(image) if isinstance(image, str | Path) else image)
    height, width = pixels.shape[1:]
    size = torch.tensor([width, height] * 2, dtype=torch.float64)
    relative = torch.tensor(
        [detection.bounding_box for detection in detections.detections], dtype=torch.float64
    ).reshape(-1, 4)
    scores = torch.tensor(
        [1.0 if detection.confidence is None else detection.confidence for detection in detections.detections]
    )
    names = [detection.label or "" for detection in detections.detections]
    found = Found(pixels, box_convert(relative, "xywh", "xyxy") * size, names, scores)
    (outcome,) = refine_by_name(refiner, [found], nms=nms, class_agnostic=class_agnostic)

    better = detections.copy()
    copies = better.detections
    better.detections = [copies[row] for row in outcome.rows.tolist()]
    bounding_boxes = box_convert(outcome.boxes / size, "xyxy", "xywh")
    columns = (column.tolist() for column in (bounding_boxes, outcome.scores, outcome.ious, outcome.ious_before))
    for detection, bounding_box, score, iou, iou_before in zip(better.detections, *columns, strict=True):
        if math.isnan(iou):  # not refined
            continue
        if detection.mask is not None and min(detection.bounding_box[2:]) > 0:
            detection.mask = mask_in_place(detection.mask, detection.bounding_box, bounding_box)
        detection.bounding_box = bounding_box
        detection.confidence = None if detection.confidence is None else score
        detection["predicted_iou"] = iou
        detection["predicted_iou_before"] = iou_before
    return better


def mask_in_place(mask: np.ndarray, before: list[float], after: list[float]) -> np.ndarray:
    """Resample a mask [h, w] from the box ``before`` to the box ``after``, so that the mask stays in place.

    Outside ``before``, the result is 0. Boxes are ``[x, y, width, height]`` with a positive area.
    """
    x, y, width, height = before
    new_x, new_y, new_width, new_height = after
    # Affine map from the new box to the old box, both in coordinates from -1 to 1.
    to_before = [
        [new_width / width, 0, (2 * (new_x - x) + new_width - width) / width],
        [0, new_height / height, (2 * (new_y - y) + new_height - height) / height],
    ]
    grid = affine_grid(torch.tensor([to_before], dtype=torch.float64), [1, 1, *mask.shape], align_corners=False)
    pixels = torch.from_numpy(mask)[None, None].double()
    return grid_sample(pixels, grid, mode="nearest", align_corners=False)[0, 0].numpy().astype(mask.dtype)
