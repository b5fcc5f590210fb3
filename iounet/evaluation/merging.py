"""Box voting and weighted boxes fusion, which average the boxes of a cluster, for comparison."""

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..detections import Detections

# sigma_t in the weights of KL-Loss (arXiv 1809.08545, section 3.4), as its authors set it.
SIGMA_T = 0.02


def box_voting(
    kept: Detections, candidates: Detections, weights: Tensor, *, iou_threshold: float = 0.5, sigma: float | None = None
) -> Detections:
    """Replace each box that NMS kept with the weighted mean of the candidates of its class that overlap it.

    Box voting (Gidaris and Komodakis, ICCV 2015) uses class scores as weights. KL-Loss (He et al., CVPR 2019, section
    3.4) uses the inverse of the predicted variance, multiplied by exp(-(1 - IoU)^2 / sigma).

    Args:
        kept: Detections of one image after NMS.
        candidates: Detections of the image before NMS.
        weights: float [N], non-negative weights of the candidates.
        iou_threshold: Candidates with a lower IoU have no weight.
        sigma: Sigma of KL-Loss's factor. None omits the factor.
    """
    if not len(kept):
        return kept
    ious = box_iou(kept.boxes, candidates.boxes)
    votes = weights * ((ious >= iou_threshold) & (kept.labels[:, None] == candidates.labels))
    if sigma is not None:
        votes = votes * torch.exp(-(1 - ious).square() / sigma)
    total = votes.sum(1, keepdim=True)
    boxes = votes @ candidates.boxes / total.clamp(min=torch.finfo(votes.dtype).tiny)
    return replace(kept, boxes=torch.where(total > 0, boxes, kept.boxes))


def weighted_box_fusion(
    candidates: Detections, *, iou_threshold: float = 0.55, max_detections: int = 100
) -> Detections:
    """Fuse the candidates of one detector by weighted boxes fusion (Solovyev et al., Image and Vision Computing 2021).

    In descending order of score, each box joins the cluster of its class whose fused box has the highest IoU with it,
    if that IoU exceeds the threshold. Otherwise it starts a new cluster. A fused box is the mean of its cluster,
    weighted by score. Its score is the highest in the cluster: with a single detector, the mean score would penalise
    objects with many candidates.

    Args:
        candidates: Detections of one image before NMS.
        iou_threshold: A box joins a cluster only above this IoU.
        max_detections: Number of fused boxes to keep, those with the highest scores.
    """
    fused: list[Tensor] = []
    members: list[list[int]] = []
    for row in candidates.scores.argsort(descending=True, stable=True).tolist():
        same = [n for n, rows in enumerate(members) if candidates.labels[rows[0]] == candidates.labels[row]]
        if same:
            ious = box_iou(candidates.boxes[row, None], torch.stack([fused[n] for n in same]))[0]
            best = int(ious.argmax())
            if ious[best] > iou_threshold:
                cluster = same[best]
                members[cluster].append(row)
                scores = candidates.scores[members[cluster]]
                fused[cluster] = (scores[:, None] * candidates.boxes[members[cluster]]).sum(0) / scores.sum()
                continue
        members.append([row])
        fused.append(candidates.boxes[row])
    if not fused:
        return candidates
    first = candidates[torch.tensor([rows[0] for rows in members], device=candidates.boxes.device)]
    return replace(first, boxes=torch.stack(fused))[:max_detections]
