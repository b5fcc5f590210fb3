"""``Results`` of ultralytics: YOLO, RT-DETR, YOLO-World.

    results = model("street.jpg")
    better = adapters.ultralytics.refine(refiner, results)

``Results`` have no place for predicted IoUs. To get them, make ``supervision.Detections.from_ultralytics(results)`` and
refine these with :mod:`iounet.refiner.adapters.supervision`.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar

import torch

from ...errors import DataError
from ..refiner import IoURefiner
from .by_name import ClassNames, Found, names_of, refine_by_name

if TYPE_CHECKING:
    from ultralytics.engine.results import Results

Given = TypeVar("Given", "Results", "list[Results]")


def refine(
    refiner: IoURefiner,
    results: Given,
    *,
    class_names: ClassNames | None = None,
    nms: str | None = None,
    class_agnostic: bool = False,
) -> Given:
    """Refines the boxes of an ultralytics ``Results``, or of each of a list, one image at a time.

    Args:
        results: as ``model(...)`` returns them. They hold their images.
        class_names: None: ``results.names``.
        nms, class_agnostic: see :mod:`iounet.refiner.adapters`.

    Returns:
        The same with other ``boxes``.

    Raises:
        DataError: the results have no boxes xyxy; the refiner knows none of the class names.
    """
    if isinstance(results, list):
        return [
            refine(refiner, of_image, class_names=class_names, nms=nms, class_agnostic=class_agnostic)
            for of_image in results
        ]
    boxes = results.boxes
    if boxes is None:
        raise DataError(f"{results.path}: the results have no boxes; oriented boxes and masks alone cannot be refined")
    names = names_of(
        boxes.cls.tolist(),
        results.names if class_names is None else class_names,
        refiner,
        class_agnostic=class_agnostic,
    )
    found = Found(results.orig_img[..., ::-1], boxes.xyxy, names, boxes.conf)  # orig_img is BGR
    (outcome,) = refine_by_name(refiner, [found], nms=nms, class_agnostic=class_agnostic)
    rows = outcome.rows if isinstance(boxes.data, torch.Tensor) else outcome.rows.numpy()
    data = boxes.data[rows]  # columns: xyxy, perhaps a track id, score, class
    data[:, :4] = outcome.boxes
    data[:, -2] = outcome.scores
    better = copy.copy(results)
    better.boxes = type(boxes)(data, boxes.orig_shape)
    for field in ("masks", "keypoints"):
        if getattr(results, field) is not None:
            setattr(better, field, getattr(results, field)[rows])
    return better
