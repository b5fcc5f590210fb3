"""Axis-aligned boxes as float tensors `(x1, y1, x2, y2)` in pixels, half-open: (0, 0, 4, 4) is 4 pixels wide.

This module adds what torchvision.ops does not provide.
"""

import torch
from torch import Tensor
from torchvision.ops import box_iou


def box_sizes(boxes: Tensor) -> Tensor:
    """Widths and heights of boxes.

    Args:
        boxes: Tensor [..., 4], xyxy.

    Returns:
        Tensor [..., 2], (width, height); negative where a box is reversed.
    """
    return boxes[..., 2:] - boxes[..., :2]


def elementwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of corresponding boxes; torchvision's `box_iou` computes all pairs instead.

    Differentiable with respect to both arguments. Leading dimensions are broadcast.

    Args:
        boxes1: Tensor [..., 4], xyxy.
        boxes2: Tensor [..., 4], xyxy in the frame of `boxes1`.

    Returns:
        Tensor [...], IoU in [0, 1]; 0 where the union has no area.
    """
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = box_sizes(boxes1).clamp(min=0).prod(-1) + box_sizes(boxes2).clamp(min=0).prod(-1) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def best_match(boxes: Tensor, labels: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Match each box to the ground-truth object of its class with the highest IoU, in one image.

    Args:
        boxes: float [N, 4], xyxy in pixels of the image. Several boxes may match one object.
        labels: int [N].
        gt_boxes: float [M, 4], xyxy in pixels of the same image; M may be 0.
        gt_labels: int [M].

    Returns:
        The pair (ious, objects). `ious` is float [N], the IoU with the matched object, 0 if the image has no object of
            the box's class. `objects` is int64 [N], the row of the matched object in `gt_boxes`, undefined where the
            IoU is 0.
    """
    if len(gt_boxes) == 0:
        return boxes.new_zeros(len(boxes)), labels.new_zeros(len(boxes), dtype=torch.int64)
    same_class = labels[:, None] == gt_labels[None, :]
    return tuple((box_iou(boxes, gt_boxes) * same_class).max(dim=1))


def best_iou(boxes: Tensor, labels: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> Tensor:
    """Highest IoU of each box with a ground-truth object of its class; the first result of `best_match`."""
    return best_match(boxes, labels, gt_boxes, gt_labels)[0]


def box_offsets(boxes: Tensor, reference: Tensor) -> Tensor:
    """Offsets of boxes relative to reference boxes, as in Fast R-CNN's box regression (Girshick, ICCV 2015).

    Args:
        boxes: Tensor [..., 4], xyxy with positive width and height.
        reference: Tensor [..., 4], xyxy with positive width and height, in the frame of `boxes`.

    Returns:
        Tensor [..., 4], (x, y, log width, log height): the difference of the centres divided by the reference's width
            and height, and the logarithms of the ratios of widths and heights.
    """
    moved = (boxes[..., :2] + boxes[..., 2:] - reference[..., :2] - reference[..., 2:]) / 2
    reference_sizes = box_sizes(reference)
    return torch.cat([moved / reference_sizes, (box_sizes(boxes) / reference_sizes).log()], -1)


def boxes_at(offsets: Tensor, reference: Tensor) -> Tensor:
    """Invert `box_offsets`: the boxes at the given offsets, Tensor [..., 4], xyxy in the frame of `reference`."""
    reference_sizes = box_sizes(reference)
    centers = (reference[..., :2] + reference[..., 2:]) / 2 + offsets[..., :2] * reference_sizes
    half_sizes = reference_sizes * offsets[..., 2:].exp() / 2
    return torch.cat([centers - half_sizes, centers + half_sizes], -1)
