"""``Detections`` of Roboflow's supervision.

    detections = supervision.Detections.from_ultralytics(results)  # or from another library
    better = adapters.supervision.refine(refiner, image, detections)

`to_supervision` converts the refiner's own detections.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...detections import Detections
from ..inputs import AnyImage
from ..refiner import IoURefiner
from .by_name import ClassNames, Found, names_of, refine_by_name

if TYPE_CHECKING:
    import supervision


def refine(
    refiner: IoURefiner,
    image: AnyImage,
    detections: supervision.Detections,
    *,
    class_names: ClassNames | None = None,
    nms: str | None = None,
    class_agnostic: bool = False,
) -> supervision.Detections:
    """Refine the boxes of supervision's ``Detections``.

    Args:
        refiner: the refiner.
        image: RGB image, as `iounet.IoURefiner` describes.
        detections: detections in pixels of the image.
        class_names: name of each ``class_id``; None reads the names from ``detections.data["class_name"]``, which
            supervision fills for ultralytics, transformers and inference.
        nms: as in `iounet.refiner.adapters`.
        class_agnostic: as in `iounet.refiner.adapters`.

    Returns:
        New ``Detections`` with refined ``xyxy`` and the predicted IoUs ``data["predicted_iou"]`` (after refinement) and
            ``data["predicted_iou_before"]``, which are NaN for boxes of unknown classes.

    Raises:
        DataError: class names are missing or unknown to the refiner.
    """
    names = _names(detections, class_names, refiner, class_agnostic)
    found = Found(image, detections.xyxy, names, detections.confidence)
    (outcome,) = refine_by_name(refiner, [found], nms=nms, class_agnostic=class_agnostic)
    left = detections[outcome.rows.numpy()]
    dtype = detections.xyxy.dtype if np.issubdtype(detections.xyxy.dtype, np.floating) else np.float32
    scores = outcome.scores.numpy()
    return replace(
        left,
        xyxy=outcome.boxes.numpy().astype(dtype),
        confidence=None if detections.confidence is None else scores.astype(detections.confidence.dtype),
        data=left.data | {"predicted_iou": outcome.ious.numpy(), "predicted_iou_before": outcome.ious_before.numpy()},
    )


def _names(
    detections: supervision.Detections, class_names: ClassNames | None, refiner: IoURefiner, class_agnostic: bool
) -> list[str]:
    if class_names is None and "class_name" in detections.data:
        return [str(name) for name in detections.data["class_name"]]
    classes = [-1] * len(detections) if detections.class_id is None else detections.class_id.tolist()
    return names_of(classes, class_names, refiner, class_agnostic=class_agnostic)


def to_supervision(detections: Detections, categories: list[dict]) -> supervision.Detections:
    """Convert the refiner's own detections for supervision's annotators, trackers and metrics.

    Needs ``pip install supervision``.

    Args:
        detections: detections returned by `iounet.IoURefiner.detect`, in pixels of the image.
        categories: the refiner's categories.

    Returns:
        ``Detections`` whose ``class_id`` is the index in ``categories``, or -1 for label 0. ``data["predicted_iou"]``
            contains the predicted IoUs.
    """
    import supervision

    class_id = detections.labels.cpu().numpy() - 1
    names = np.array([*(category["name"] for category in categories), ""])  # class_id -1 (unknown) picks the last name
    return supervision.Detections(
        detections.boxes.cpu().numpy(),
        confidence=detections.scores.cpu().numpy(),
        class_id=class_id,
        data={"class_name": names[class_id], "predicted_iou": detections.ious.cpu().numpy()},
    )
