"""Axis-aligned boxes as float tensors ``(x1, y1, x2, y2)`` in pixels, half-open: (0, 0, 4, 4) is 4 pixels wide.

What torchvision.ops has (pairwise IoU, area, clipping) is used from there; this file holds what it lacks.
"""

import torch
from torch import Tensor


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
