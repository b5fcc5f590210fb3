"""Cost of badly placed boxes: TIDE's localisation error, and the localisation-aware calibration error (LaECE)."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..detections import Detections

# TIDE's background threshold: a box with a lower IoU counts as background.
BACKGROUND_IOU = 0.1


class Matched(NamedTuple):
    """Matches of N detections.

    Attributes:
        objects: int64 [N], index of the matched object, -1 without a match.
        ious: float [N], IoU with the matched object, 0 without a match.
    """

    objects: Tensor
    ious: Tensor


def match_greedily(detections: Detections, objects: Tensor, labels: Tensor, iou_threshold: float) -> Matched:
    """Match the detections of an image with its objects as COCO does.

    In descending order of score, each detection takes the unmatched object of its class with the highest IoU.

    Args:
        detections: Detections of one image.
        objects: float [M, 4], ground-truth boxes in the frame of the detections.
        labels: int64 [M], labels of the objects.
        iou_threshold: Minimum IoU of a match.
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
    """Correct TIDE's localisation errors in the detections of one image (Bolya et al., ECCV 2020, section 2.3).

    An unmatched detection is a localisation error if its best IoU with an object of its class lies in
    [0.1, iou_threshold). For each object that no detection matched, the error with the highest score is moved onto the
    object. The other errors are removed, because they would be duplicates.

    Args:
        detections: As in `match_greedily`.
        objects: As in `match_greedily`.
        labels: As in `match_greedily`.
        iou_threshold: As in `match_greedily`.
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
    """Return the localisation-aware expected calibration error (LaECE) in [0, 1].

    LaECE measures how far confidences are from precision times IoU. The detections of each class are grouped into equal
    ranges of confidence. The error of a class is the mean, over its detections, of the distance between the mean
    confidence and the mean IoU of their group, where false positives have an IoU of 0. LaECE is the mean over the
    classes.

    Source: Oksuz et al., "Towards Building Self-Aware Object Detectors via Reliable Uncertainty Quantification and
    Calibration", CVPR 2023 (arXiv 2307.00934), equation 4.

    Args:
        confidences: float [N], confidences in [0, 1] of all detections of a data set.
        labels: int64 [N], classes of the detections.
        matched_ious: float [N], IoU with the matched object, 0 without a match.
        num_groups: Number of ranges of confidence.
    """
    errors = []
    for label in labels.unique():
        confidence, iou = confidences[labels == label].double(), matched_ious[labels == label].double()
        group = (confidence * num_groups).long().clamp(0, num_groups - 1)
        gaps = torch.zeros(num_groups, dtype=torch.float64).index_add(0, group, confidence - iou)
        errors.append(gaps.abs().sum().item() / len(confidence))
    return sum(errors) / len(errors) if errors else float("nan")
