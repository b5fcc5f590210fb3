"""Axis-aligned boxes as float tensors ``(x1, y1, x2, y2)`` in pixels, half-open: (0, 0, 4, 4) is 4 pixels wide.

What torchvision.ops has (pairwise IoU, area, clipping) is used from there; this file holds what it lacks.
"""

import torch
from torch import Tensor
from torchvision.ops import box_iou


def box_sizes(boxes: Tensor) -> Tensor:
    """Widths and heights.

    Args:
        boxes (Tensor[..., 4]): xyxy.

    Returns:
        Tensor[..., 2]: (width, height), negative where a box is reversed.
    """
    return boxes[..., 2:] - boxes[..., :2]


def elementwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of each box of one tensor with its partner in the other (torchvision's ``box_iou`` is all pairs).

    Differentiable in both. Broadcasts over the leading dimensions.

    Args:
        boxes1 (Tensor[..., 4]), boxes2 (Tensor[..., 4]): xyxy, both in one frame.

    Returns:
        Tensor[...]: IoU in [0, 1]; 0 where the union has no area.
    """
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = box_sizes(boxes1).clamp(min=0).prod(-1) + box_sizes(boxes2).clamp(min=0).prod(-1) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def best_match(boxes: Tensor, labels: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The object of its class that each box overlaps most, in one image.

    Args:
        boxes: float [N, 4], xyxy in pixels of the same image as ``gt_boxes``. Several may share one object.
        labels: int [N].
        gt_boxes: float [M, 4], xyxy; M may be 0.
        gt_labels: int [M].

    Returns:
        ious: float [N], the IoU with it; 0 where the image holds no object of the box's class.
        objects: int64 [N], its row in ``gt_boxes``; of no meaning where the IoU is 0.
    """
    if len(gt_boxes) == 0:
        return boxes.new_zeros(len(boxes)), labels.new_zeros(len(boxes), dtype=torch.int64)
    same_class = labels[:, None] == gt_labels[None, :]
    return tuple((box_iou(boxes, gt_boxes) * same_class).max(dim=1))


def best_iou(boxes: Tensor, labels: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> Tensor:
    """IoU of each box with the object of its class that it overlaps most: the first of :func:`best_match`."""
    return best_match(boxes, labels, gt_boxes, gt_labels)[0]


def box_offsets(boxes: Tensor, reference: Tensor) -> Tensor:
    """Where boxes lie in relation to reference boxes, in units of these.

    Args:
        boxes (Tensor[..., 4]), reference (Tensor[..., 4]): xyxy with positive width and height, both in one frame.

    Returns:
        Tensor[..., 4]: (x, y, log width, log height): centre less centre, divided by the reference's width and height,
        and the logarithms of width and height divided by the reference's. The offsets of Fast R-CNN's box regression
        (Girshick, ICCV 2015).
    """
    moved = (boxes[..., :2] + boxes[..., 2:] - reference[..., :2] - reference[..., 2:]) / 2
    reference_sizes = box_sizes(reference)
    return torch.cat([moved / reference_sizes, (box_sizes(boxes) / reference_sizes).log()], -1)


def boxes_at(offsets: Tensor, reference: Tensor) -> Tensor:
    """The boxes of :func:`box_offsets`: Tensor[..., 4], xyxy in the frame of ``reference``."""
    reference_sizes = box_sizes(reference)
    centers = (reference[..., :2] + reference[..., 2:]) / 2 + offsets[..., :2] * reference_sizes
    half_sizes = reference_sizes * offsets[..., 2:].exp() / 2
    return torch.cat([centers - half_sizes, centers + half_sizes], -1)
