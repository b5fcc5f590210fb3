"""Non-maximum suppression (NMS): greedy, soft, and guided by predicted IoU.

The three NMS functions take plain tensors and treat each class separately. Boxes are xyxy in any common frame.
"""

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from ..detections import Detections
from ..nms_options import NMSOptions

# Above this number of boxes, NMS on a GPU runs class by class: the matrix of all IoUs could need gigabytes.
MAX_BOXES_AT_ONCE = 4096

AnyDetections = TypeVar("AnyDetections", bound=Detections)


def suppress(candidates: AnyDetections, options: NMSOptions) -> AnyDetections:
    """Return the candidates of one image that NMS keeps, sorted by descending score."""
    boxes, labels, scores, ious = candidates.boxes, candidates.labels, candidates.scores, candidates.ious
    if options.kind == "iou_guided":
        rank = ious if options.ranking == "iou" else scores * ious
        keep, kept_scores = iou_guided_nms(boxes, scores, rank, labels, options.threshold)
    elif options.kind == "soft":
        keep, kept_scores = soft_nms(
            boxes, scores, labels, sigma=options.soft_sigma, max_detections=options.max_detections
        )
    else:
        keep, kept_scores = greedy_nms(boxes, scores, labels, options.threshold)
    keep, kept_scores = keep[: options.max_detections], kept_scores[: options.max_detections]
    return replace(candidates[keep], scores=kept_scores)


def greedy_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Greedy NMS: remove each box that overlaps a kept box of its class with a higher score.

    Args:
        boxes (Tensor[N, 4]): xyxy in any frame.
        scores (Tensor[N]): class scores.
        labels (Tensor[N]): classes; boxes of different classes never suppress each other.
        iou_threshold: two boxes overlap if their IoU exceeds this value.

    Returns:
        keep (Tensor[M]): indices of the kept boxes in the input, sorted by descending score.
        scores (Tensor[M]): unchanged scores of the kept boxes.
    """
    kept = [
        index[nms(grouped, scores[index].to(grouped.dtype), iou_threshold)] for index, grouped in _groups(boxes, labels)
    ]
    keep = torch.cat(kept) if kept else labels.new_zeros(0)
    keep = keep[torch.argsort(scores[keep], descending=True, stable=True)]
    return keep, scores[keep]


def iou_guided_nms(
    boxes: Tensor, scores: Tensor, ious: Tensor, labels: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """IoU-guided NMS: rank boxes by predicted IoU and give each kept box the best score of its cluster.

    Repeatedly keeps the remaining box with the highest predicted IoU and suppresses the remaining boxes of its class
    that overlap it. The kept box and the boxes that it suppresses are a cluster; the kept box gets the highest class
    score of the cluster. Source: Algorithm 1 of the paper (Jiang et al., ECCV 2018).

    Args:
        boxes (Tensor[N, 4]): xyxy in any frame.
        scores (Tensor[N]): class scores.
        ious (Tensor[N]): predicted IoUs, or any other values to rank by.
        labels (Tensor[N]): classes; boxes of different classes never suppress each other.
        iou_threshold: two boxes overlap if their IoU exceeds this value, the paper's Omega_nms.

    Returns:
        keep (Tensor[M]): indices of the kept boxes in the input, sorted by descending updated score.
        scores (Tensor[M]): updated scores of the kept boxes.
    """
    kept, kept_scores = [], []
    for index, grouped in _groups(boxes, labels):
        keep = nms(grouped, ious[index].to(grouped.dtype), iou_threshold)
        iou = box_iou(grouped[keep], grouped)
        kept.append(index[keep])
        kept_scores.append(cluster_scores(iou, keep, scores[index], iou_threshold))
    if not kept:
        return labels.new_zeros(0), scores.new_zeros(0)
    keep, inherited = torch.cat(kept), torch.cat(kept_scores)
    order = torch.argsort(inherited, descending=True, stable=True)
    return keep[order], inherited[order]


def cluster_scores(iou: Tensor, keep: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the highest class score of each cluster. A cluster is a kept box and the boxes that it suppressed.

    Args:
        iou (Tensor[M, N]): IoU of each kept box with each box; negative for boxes of different classes.
        keep (Tensor[M]): indices of the kept boxes; within a class, in the order in which NMS kept them.
        scores (Tensor[N]): class scores of all boxes.
        iou_threshold: as in `iou_guided_nms`.

    Returns:
        Tensor[M]: scores of the clusters.
    """
    # Each box belongs to the first kept box that overlaps it: a suppressed box is no longer in the paper's set B.
    # For each box, the kept box with the largest IoU counts as overlapping even below the threshold, because nms may
    # round an IoU across the threshold.
    overlaps = (iou > iou_threshold) | (iou == iou.amax(0))
    # torch.export cannot trace len(scores).
    itself = keep[:, None] == torch.arange(scores.shape[0], device=keep.device)
    overlaps = itself | (overlaps & ~itself.any(0))
    first_overlap = overlaps & (overlaps.cumsum(0) == 1)
    return torch.where(first_overlap, scores, -torch.inf).amax(1)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    max_detections: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS with a Gaussian penalty: lower the scores of overlapping boxes instead of removing the boxes.

    Repeatedly takes the box with the highest current score and multiplies the scores of the remaining boxes of its
    class by exp(-IoU^2 / sigma). Source: equation 4 of Bodla et al., "Soft-NMS", ICCV 2017.

    Args:
        boxes (Tensor[N, 4]): xyxy in any frame.
        scores (Tensor[N]): class scores.
        labels (Tensor[N]): classes; boxes of different classes do not affect each other.
        sigma: width of the penalty; the authors use 0.5.
        score_threshold: boxes whose score falls to this value or below are dropped; the authors use 0.001.
        max_detections: number of boxes to keep, those with the highest decayed scores; None keeps all.

    Returns:
        keep (Tensor[M]): indices of the kept boxes in the input, sorted by descending decayed score.
        scores (Tensor[M]): decayed scores of the kept boxes.
    """
    current = scores.clone()
    keep: list[Tensor] = []
    kept_scores: list[Tensor] = []
    while len(keep) < (len(boxes) if max_detections is None else max_detections) and len(boxes):
        best = current.argmax()
        if current[best] <= score_threshold:
            break
        keep.append(best)
        kept_scores.append(current[best].clone())
        iou = box_iou(boxes[best, None], boxes)[0].nan_to_num()  # NaN for two boxes without area
        current *= torch.where(labels == labels[best], torch.exp(-iou.square() / sigma), 1.0)
        current[best] = -torch.inf
    if not keep:
        return labels.new_zeros(0), scores.new_zeros(0)
    return torch.stack(keep), torch.stack(kept_scores)


def _groups(boxes: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split boxes into groups (row indices, boxes). Boxes of different classes never overlap within a group."""
    if boxes.is_cuda and 0 < len(boxes) <= MAX_BOXES_AT_ONCE:
        return _one_group(boxes, labels)
    return [(index, boxes[index]) for label in labels.unique() for index in torch.where(labels == label)]


def _one_group(boxes: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return all boxes as one group, with each class shifted to a separate region.

    A loop over 80 classes would launch many small kernels and synchronise with the GPU for each class. The boxes are
    shifted in float64, because rounding in float32 could move IoUs across the threshold.
    """
    boxes = boxes.double()
    shift = labels[:, None] * (boxes.amax() - boxes.amin() + 1)
    return [(torch.arange(len(boxes), device=boxes.device), boxes + shift)]
