"""Non-maximum suppression in NumPy: the three of `iounet.postprocess.nms`, for refiners without torch.

All work per class, literally as their papers have it, on boxes xyxy in any one frame.
"""

import numpy as np

from .nms_options import NMSOptions


def suppress(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, ious: np.ndarray, options: NMSOptions
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of one image that NMS keeps, at most ``options.max_detections``.

    Args:
        boxes: float [N, 4], labels: int [N], scores: float [N], ious: float [N], predicted.

    Returns:
        keep: int64 [M], rows of the input by falling score.
        scores: [M], of the boxes kept; soft-NMS lowers them, IoU-guided NMS raises them to the best of the cluster's.
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
    """IoU-guided NMS (paper's Algorithm 1); greedy NMS, if the rank is the score: the best score is then the box's own.

    The box of highest rank suppresses the boxes of its class that overlap it by more than the threshold and takes the
    highest score among itself and them; then the next of those left.
    """
    keep, kept_scores = [], []
    for label in np.unique(labels):
        (left,) = np.nonzero(labels == label)
        left = left[np.argsort(-rank[left], kind="stable")]
        while len(left):
            best, others = left[0], left[1:]
            # In float64, as torchvision compares them.
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
    """Soft-NMS with the Gaussian penalty (Bodla et al., ICCV 2017, eq. 4); boxes of no more than the threshold go."""
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
    """IoU of a box [4] with each of boxes [N, 4]: [N]; 0 where neither has an area."""

    def areas(corners: np.ndarray) -> np.ndarray:
        return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])

    corners = np.concatenate([np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])], 1)
    sides = (corners[:, 2:] - corners[:, :2]).clip(0)
    intersection = sides[:, 0] * sides[:, 1]
    union = areas(box) + areas(boxes) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
