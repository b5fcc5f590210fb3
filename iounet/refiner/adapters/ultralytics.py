"""``Results`` of ultralytics: YOLO, RT-DETR, YOLO-World.

    results = model("street.jpg")
    better = adapters.ultralytics.refine(refiner, results)

``Results`` have no field for predicted IoUs. To get predicted IoUs, refine
``supervision.Detections.from_ultralytics(results)`` with `iounet.refiner.adapters.supervision`.
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
    """Refine the boxes of ultralytics' ``Results``, or of a list of ``Results``, one image at a time.

    Args:
        refiner: the refiner.
        results: output of ``model(...)``, which contains the images.
        class_names: names of the classes; None uses ``results.names``.
        nms: as in `iounet.refiner.adapters`.
        class_agnostic: as in `iounet.refiner.adapters`.

    Returns:
        New ``Results`` with refined ``boxes``.

    Raises:
        DataError: the results have no axis-aligned boxes, or the refiner knows none of the class names.
    """
    if isinstance(results, list):
        return [
            refine(refiner, of_image, class_names=class_names, nms=nms, class_agnostic=class_agnostic)
            for of_image in results
        ]
    boxes = results.boxes
    if boxes is None:
        raise DataError(
            f"{results.path}: the results have no axis-aligned boxes; oriented boxes and masks cannot be refined"
        )
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
