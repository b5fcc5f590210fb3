"""``Detections`` of FiftyOne.

    for sample in dataset.iter_samples(autosave=True):
        sample["refined"] = adapters.fiftyone.refine(refiner, sample.filepath, sample["predictions"])

``label`` is the name of the class.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
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
    """Refines the boxes of FiftyOne's ``Detections``, whose labels are class names.

    Args:
        image: its file, read without EXIF rotation; or RGB, as :class:`iounet.IoURefiner` takes it.
        nms, class_agnostic: see :mod:`iounet.refiner.adapters`.

    Returns:
        A copy, with new ids, with other values of ``bounding_box``, and with the predicted IoUs in the attributes
        ``predicted_iou`` and, before refinement, ``predicted_iou_before``, which boxes that are left as they are lack.
        An instance mask, which FiftyOne stores relative to its box, is stretched with the box.

    Raises:
        DataError: the file cannot be read.
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
        if math.isnan(iou):  # left as it was
            continue
        detection.bounding_box = bounding_box
        detection.confidence = None if detection.confidence is None else score
        detection["predicted_iou"] = iou
        detection["predicted_iou_before"] = iou_before
    return better
