"""What badly placed boxes cost: TIDE's localisation error, and how well a confidence tells precision times IoU."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..detections import Detections

# Below this IoU a box shows background: TIDE's background threshold.
BACKGROUND_IOU = 0.1


class Matched(NamedTuple):
    """Of each detection the object it is matched with, int64 [N], -1 for none, and the IoU with it, [N]."""

    objects: Tensor
    ious: Tensor


def match_greedily(detections: Detections, objects: Tensor, labels: Tensor, iou_threshold: float) -> Matched:
    """COCO's matching in one image: by falling score, each detection takes the free object it overlaps most.

    Args:
        objects (Tensor[M, 4]), labels (Tensor[M]): ground truth, in the frame of the detections.
        iou_threshold: an object is only taken at this IoU or above.
    """
    ious = box_iou(detections.boxes, objects) * (detections.labels[:, None] == labels)
    matched = torch.full((len(detections),), -1)
    taken = torch.zeros(len(objects), dtype=torch.bool)
    matched_ious = torch.zeros(len(detections))
    for row in detections.scores.argsort(descending=True, stable=True).tolist() if len(objects) else ():
        free = ious[row].masked_fill(taken, -1)
        best = int(free.argmax())
        if free[best] >= iou_threshold:
            matched[row], matched_ious[row], taken[best] = best, free[best], True
    return Matched(matched, matched_ious)


def without_localization_errors(
    detections: Detections, objects: Tensor, labels: Tensor, iou_threshold: float
) -> Detections:
    """The detections of one image with TIDE's localisation errors mended (Bolya et al., ECCV 2020, section 2.3).

    A detection without a match whose best IoU with an object of its class lies in [0.1, iou_threshold) is one. The one
    of highest score of an object that no other detection found is moved onto it; the others, which would be
    duplicates then, are removed.

    Args: as :func:`match_greedily`.
    """
    if not len(objects) or not len(detections):
        return detections
    found, _ = match_greedily(detections, objects, labels, iou_threshold)
    ious = box_iou(detections.boxes, objects) * (detections.labels[:, None] == labels)
    best_ious, best = ious.max(1)
    errors = (found < 0) & (best_ious >= BACKGROUND_IOU) & (best_ious < iou_threshold)
    free = set(range(len(objects))) - set(found.tolist())
    boxes, keep = detections.boxes.clone(), ~errors
    for row in detections.scores.argsort(descending=True, stable=True).tolist():
        if errors[row] and int(best[row]) in free:
            boxes[row], keep[row] = objects[best[row]], True
            free.remove(int(best[row]))
    return replace(detections, boxes=boxes)[keep]


def laece(confidences: Tensor, labels: Tensor, matched_ious: Tensor, *, num_groups: int = 25) -> float:
    """Localisation-aware expected calibration error: how far a confidence is from precision times IoU, in [0, 1].

    Oksuz et al., "Towards Building Self-Aware Object Detectors via Reliable Uncertainty Quantification and
    Calibration", CVPR 2023 (arXiv 2307.00934), equation 4: for each class the mean, over its detections in groups of
    equal range of the confidence, of the distance between the group's mean confidence and the mean of the IoU of true
    positives (0 for false ones); the mean over the classes.

    Args:
        confidences (Tensor[N]): of all detections of a data set, in [0, 1].
        labels (Tensor[N]): their classes.
        matched_ious (Tensor[N]): IoU with the object matched, 0 for none.
    """
    errors = []
    for label in labels.unique():
        confidence, iou = confidences[labels == label].double(), matched_ious[labels == label].double()
        group = (confidence * num_groups).long().clamp(0, num_groups - 1)
        gaps = torch.zeros(num_groups, dtype=torch.float64).index_add(0, group, confidence - iou)
        errors.append(gaps.abs().sum().item() / len(confidence))
    return sum(errors) / len(errors) if errors else float("nan")
