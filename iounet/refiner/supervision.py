"""Roboflow's supervision.Detections to boxes for IoURefiner and back; ``pip install supervision``.

refined = refiner.refine(image, *from_supervision(detections, refiner.categories))
detections = to_supervision(refined, refiner.categories, given=detections)
"""

from typing import cast

import numpy as np
import supervision

from ..detections import Detections, RefinedDetections
from .matching import match_names


def from_supervision(
    detections: supervision.Detections, categories: list[dict]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The boxes, labels and scores that :meth:`iounet.IoURefiner.refine` takes.

    Args:
        detections: with ``data["class_name"]``, as from ultralytics or transformers, matched by name; else with
            ``class_id``, taken for the index among the categories. A class that is not among them gets label 0,
            so that it is refined without regard to its class.
        categories: of the refiner.

    Returns:
        boxes float32 [N, 4], xyxy in pixels of the image; labels int64 [N]; scores float32 [N], 1 without confidence.
    """
    count = len(detections)
    if "class_name" in detections.data:
        labels = np.array(match_names(map(str, detections.data["class_name"]), categories), dtype=np.int64)
    elif detections.class_id is not None:
        labels = np.asarray(detections.class_id, dtype=np.int64) + 1
        labels[(labels < 1) | (labels > len(categories))] = 0
    else:
        labels = np.zeros(count, dtype=np.int64)
    scores = np.ones(count) if detections.confidence is None else detections.confidence
    return np.asarray(detections.xyxy, dtype=np.float32).reshape(-1, 4), labels, np.asarray(scores, dtype=np.float32)


def to_supervision(
    detections: Detections, categories: list[dict], *, given: supervision.Detections | None = None
) -> supervision.Detections:
    """Detections for supervision's annotators, trackers and metrics.

    Args:
        detections: boxes in pixels of the image.
        categories: of the refiner.
        given: what was refined: its classes, masks, tracker ids and data stay, for the boxes that are left after NMS.

    Returns:
        ``data["predicted_iou"]`` holds the predicted IoUs; refined, ``data["predicted_iou_before"]`` those before.
    """
    xyxy, confidence = detections.boxes.cpu().numpy(), detections.scores.cpu().numpy()
    if given is None:
        class_id = detections.labels.cpu().numpy() - 1
        names = np.array([*(category["name"] for category in categories), ""])  # the last of class_id -1: unknown
        result = supervision.Detections(
            xyxy, confidence=confidence, class_id=class_id, data={"class_name": names[class_id]}
        )
    else:
        rows = detections.index.cpu().numpy() if isinstance(detections, RefinedDetections) else slice(None)
        result = cast(supervision.Detections, given[rows])
        result.xyxy, result.confidence = xyxy, confidence
    result.data["predicted_iou"] = detections.ious.cpu().numpy()
    if isinstance(detections, RefinedDetections):
        result.data["predicted_iou_before"] = detections.ious_before.cpu().numpy()
    return result
