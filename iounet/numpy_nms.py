"""Non-maximum suppression in NumPy, for refiners without torch: the three methods of `iounet.postprocess.nms`.

Every method works per class and follows its paper. Boxes are xyxy in any common frame.
"""

import numpy as np

from .nms_options import NMSOptions


def suppress(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, ious: np.ndarray, options: NMSOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Suppress duplicate boxes of one image and keep at most `options.max_detections`.

    Args:
        boxes: float [N, 4], xyxy.
        labels: int [N].
        scores: float [N], class scores.
        ious: float [N], predicted IoUs.
        options: Method and thresholds.

    Returns:
        The pair (keep, scores). `keep` is int64 [M], rows of the input by descending score. `scores` is [M], scores of
            the kept boxes; soft-NMS lowers them, IoU-guided NMS raises each to the highest score of its cluster.
    """
    if options.kind == "soft":
        keep, kept_scores = _soft_nms(boxes, labels, scores, options.soft_sigma)
    else:
        iou_guided_rank = ious if options.ranking == "iou" else scores * ious
        rank = iou_guided_rank if options.kind == "iou_guided" else scores
        keep, kept_scores = _ranked_nms(boxes, labels, scores, rank, options.threshold)
    return keep[: options.max_detections], kept_scores[: options.max_detections]


def _ranked_nms(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, rank: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """IoU-guided NMS (paper's Algorithm 1), which is greedy NMS if boxes are ranked by score.

    Repeatedly, the remaining box with the highest rank suppresses the boxes of its class whose IoU with it exceeds the
    threshold, and takes the highest score of this cluster.
    """
    keep, kept_scores = [], []
    for label in np.unique(labels):
        (left,) = np.nonzero(labels == label)
        left = left[np.argsort(-rank[left], kind="stable")]
        while len(left):
            best, others = left[0], left[1:]
            # Compare in float64, as torchvision does.
            overlap = _ious(boxes[best], boxes[others]).astype(np.float64) > threshold
            keep.append(best)
            kept_scores.append(scores[others[overlap]].max(initial=scores[best]))
            left = others[~overlap]
    kept = np.array(keep, np.int64)
    best_scores = np.array(kept_scores, scores.dtype)
    order = np.argsort(-best_scores, kind="stable")
    return kept[order], best_scores[order]


def _soft_nms(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, sigma: float, score_threshold: float = 0.001
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS with Gaussian penalty (Bodla et al., ICCV 2017, eq. 4); drop boxes that do not exceed the threshold."""
    current = scores.copy()
    left = np.arange(len(boxes))
    keep = []
    while len(left):
        best = left[current[left].argmax()]
        if current[best] <= score_threshold:
            break
        keep.append(best)
        left = left[left != best]
        others = left[labels[left] == labels[best]]
        current[others] *= np.exp(-np.square(_ious(boxes[best], boxes[others])) / sigma)
    kept = np.array(keep, np.int64)
    return kept, current[kept]


def _ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU [N] of a box [4] with boxes [N, 4]; 0 where neither has an area."""

    def areas(corners: np.ndarray) -> np.ndarray:
        return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])

    corners = np.concatenate([np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])], 1)
    sides = (corners[:, 2:] - corners[:, :2]).clip(0)
    intersection = sides[:, 0] * sides[:, 1]
    union = areas(box) + areas(boxes) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
