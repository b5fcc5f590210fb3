"""Non-maximum suppression by class score, with soft scores, and by predicted IoU.

All three work per class and take and return plain tensors; boxes are xyxy in any one frame.
"""

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from ..detections import Detections
from ..nms_options import NMSOptions

# On a GPU, more boxes than this are suppressed class by class: the matrix of their IoUs would need gigabytes.
MAX_BOXES_AT_ONCE = 4096

AnyDetections = TypeVar("AnyDetections", bound=Detections)


def suppress(candidates: AnyDetections, options: NMSOptions) -> AnyDetections:
    """The candidates of one image that NMS keeps, at most ``options.max_detections``, by falling score."""
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
    """Classic NMS: a box is removed if one of its class with a higher score overlaps it by more than the threshold.

    Args:
        boxes (Tensor[N, 4]), scores (Tensor[N]), labels (Tensor[N]).
        iou_threshold: two boxes overlap if their IoU is above it.

    Returns:
        keep (Tensor[M]): indices into the input, by falling score.
        scores (Tensor[M]): of the boxes kept, as they were.
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
    """IoU-guided NMS (paper's Algorithm 1): ranked by predicted IoU, a box kept inherits its cluster's best score.

    The box of highest predicted IoU suppresses the boxes of its class that overlap it by more than the threshold
    and takes the highest class score among itself and them; then the next of those left.

    Args:
        boxes (Tensor[N, 4]), scores (Tensor[N]), ious (Tensor[N]), labels (Tensor[N]).
        iou_threshold: Omega_nms of the paper; two boxes overlap if their IoU is above it.

    Returns:
        keep (Tensor[M]): indices into the input, by falling (updated) score.
        scores (Tensor[M]): the highest class score of each kept box's cluster.
    """
    kept, kept_scores = [], []
    for index, grouped in _groups(boxes, labels):
        keep = nms(grouped, ious[index].to(grouped.dtype), iou_threshold)  # by falling predicted IoU
        iou = box_iou(grouped[keep], grouped)
        kept.append(index[keep])
        kept_scores.append(cluster_scores(iou, keep, scores[index], iou_threshold))
    if not kept:
        return labels.new_zeros(0), scores.new_zeros(0)
    keep, inherited = torch.cat(kept), torch.cat(kept_scores)
    order = torch.argsort(inherited, descending=True, stable=True)
    return keep[order], inherited[order]


def cluster_scores(iou: Tensor, keep: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The highest class score among each box that NMS kept and those that it suppressed.

    Args:
        iou (Tensor[M, N]): of the boxes kept with all boxes; negative for boxes of different classes.
        keep (Tensor[M]): indices of the boxes kept, those of one class by falling rank.
        scores (Tensor[N]): of all boxes.

    Returns:
        Tensor[M].
    """
    # Each box belongs to the first kept box that overlaps it: once suppressed it is no longer in B for the next.
    # The largest IoU counts in any case: nms may round an IoU at the threshold to its other side.
    overlaps = (iou > iou_threshold) | (iou == iou.amax(0))
    # Not len(scores), which torch.export cannot trace.
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
    """Soft-NMS with the Gaussian penalty (Bodla et al., ICCV 2017, eq. 4): overlap lowers a score, it never removes.

    Repeatedly takes the box of highest current score and multiplies the scores of the others of its class by
    exp(-IoU^2 / sigma).

    Args:
        boxes (Tensor[N, 4]), scores (Tensor[N]), labels (Tensor[N]).
        sigma: of the penalty; its authors' 0.5.
        score_threshold: boxes whose score falls to or below it are dropped; its authors' 0.001.
        max_detections: stop after so many. Scores come out in falling order, so these are the best ones.

    Returns:
        keep (Tensor[M]): indices into the input, by falling (decayed) score.
        scores (Tensor[M]): decayed scores.
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
        iou = box_iou(boxes[best, None], boxes)[0].nan_to_num()  # of two boxes without area: NaN
        current *= torch.where(labels == labels[best], torch.exp(-iou.square() / sigma), 1.0)
        current[best] = -torch.inf  # taken
    if not keep:
        return labels.new_zeros(0), scores.new_zeros(0)
    return torch.stack(keep), torch.stack(kept_scores)


def _groups(boxes: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows and boxes of groups in which boxes of different classes do not overlap."""
    if boxes.is_cuda and 0 < len(boxes) <= MAX_BOXES_AT_ONCE:
        return _one_group(boxes, labels)
    return [(index, boxes[index]) for label in labels.unique() for index in torch.where(labels == label)]


def _one_group(boxes: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """All boxes, each class shifted to a region of its own.

    A loop over 80 classes would launch too many small kernels and wait for the GPU in each. The shift is done in
    float64; in float32 it would round IoUs to the other side of the threshold.
    """
    boxes = boxes.double()
    shift = labels[:, None] * (boxes.amax() - boxes.amin() + 1)
    return [(torch.arange(len(boxes), device=boxes.device), boxes + shift)]
