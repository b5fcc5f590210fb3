"""``Detections`` of Roboflow's supervision.

    detections = Detections.from_ultralytics(results)  # or from another library
    better = adapters.supervision.refine(refiner, image, detections)

The refiner's own detections become ``Detections`` in :func:`to_supervision`.
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
    """Refines the boxes of supervision's ``Detections``.

    Args:
        image: RGB, as :class:`iounet.IoURefiner` takes it.
        detections: in pixels of the image.
        class_names: of each ``class_id``. None: ``detections.data["class_name"]`` has the names, as it has of
            ultralytics, transformers and inference.
        nms, class_agnostic: see :mod:`iounet.refiner.adapters`.

    Returns:
        The same with another ``xyxy``, and with the predicted IoUs ``data["predicted_iou"]`` and, before refinement,
        ``data["predicted_iou_before"]``: NaN for boxes that are left as they are.

    Raises:
        DataError: there are no class names, or the refiner knows none of them.
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
    """The refiner's own detections for supervision's annotators, trackers and metrics; ``pip install supervision``.

    Args:
        detections: as of :meth:`iounet.IoURefiner.detect`, in pixels of the image.
        categories: of the refiner.

    Returns:
        ``class_id`` is the index among the categories, -1 for label 0; ``data["predicted_iou"]`` holds the predicted
        IoUs.
    """
    import supervision

    class_id = detections.labels.cpu().numpy() - 1
    names = np.array([*(category["name"] for category in categories), ""])  # the last of class_id -1: unknown
    return supervision.Detections(
        detections.boxes.cpu().numpy(),
        confidence=detections.scores.cpu().numpy(),
        class_id=class_id,
        data={"class_name": names[class_id], "predicted_iou": detections.ious.cpu().numpy()},
    )
