"""Other ways to better boxes, to compare with: the boxes of a cluster averaged."""

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..detections import Detections

# Of KL-Loss's weights (arXiv 1809.08545, section 3.4; its authors' value).
SIGMA_T = 0.02


def box_voting(
    kept: Detections, candidates: Detections, weights: Tensor, *, iou_threshold: float = 0.5, sigma: float | None = None
) -> Detections:
    """Each box that NMS kept becomes the weighted mean of the candidates of its class that overlap it.

    Box voting (Gidaris and Komodakis, ICCV 2015) has class scores as weights. KL-Loss (He et al., CVPR 2019, section
    3.4) multiplies the weights, there one over the predicted variance, by exp(-(1 - IoU)^2 / sigma).

    Args:
        kept: of one image.
        candidates: of the image, before NMS.
        weights (Tensor[N]): of the candidates; not negative.
        iou_threshold: candidates that overlap by less have no weight.
        sigma: of KL-Loss's factor; None: without it.
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
    """Weighted boxes fusion (Solovyev et al., Image and Vision Computing 2021) of one detector's candidates.

    By falling score, a box joins the cluster of its class whose fused box it overlaps most, by more than the threshold,
    or begins one. The fused box is the mean of its cluster weighted by score. Its score is the cluster's highest, as
    with one detector the mean would punish objects that are found often.

    Args:
        candidates: of one image, before NMS.
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
