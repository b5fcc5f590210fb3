"""Objectives for refinement: of one box, with an analytic gradient, and of many boxes."""

import math

import torch
from torchvision.ops import box_iou


def iou(box, target):
    """Return the IoU of a box with its target and its gradient, the mean of both one-sided slopes where edges meet."""
    left, top, right, bottom = (
        max(box[0], target[0]),
        max(box[1], target[1]),
        min(box[2], target[2]),
        min(box[3], target[3]),
    )
    if right <= left or bottom <= top:
        return 0.0, [0.0] * 4
    intersection = (right - left) * (bottom - top)
    (width, height), (target_width, target_height) = ((b[2] - b[0], b[3] - b[1]) for b in (box, target))
    union = width * height + target_width * target_height - intersection
    # Only the inner one of two edges changes the overlap.
    inside = [1 if c > t else 0.5 if c == t else 0 for c, t in zip(box, target, strict=True)]
    inside = [*inside[:2], 1 - inside[2], 1 - inside[3]]
    gradient = []
    for axis, sign in enumerate((-1, -1, 1, 1)):
        area_slope = sign * (width if axis % 2 else height)
        overlap_slope = sign * inside[axis] * ((right - left) if axis % 2 else (bottom - top))
        gradient.append((overlap_slope * union - intersection * (area_slope - overlap_slope)) / union**2)
    return intersection / union, gradient


def bump(box, target):
    """Smooth function with a maximum of 1 at the target; unlike the IoU, its gradient is nowhere 0."""
    value = math.exp(-sum((c - t) ** 2 for c, t in zip(box, target, strict=True)) / 500)
    return value, [-value * (c - t) / 250 for c, t in zip(box, target, strict=True)]


def iou_of_rows(boxes, targets):
    return box_iou(boxes, targets).diagonal()


def bump_of_rows(boxes, targets):
    return torch.exp(-(boxes - targets).square().sum(1) / 500)


def case(seed, num_boxes=40):
    """Boxes and targets in float64: slightly off, far off, in place, or without overlap."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    corners = 20 + 60 * uniform(num_boxes, 2)
    targets = torch.cat([corners, corners + 8 + 50 * uniform(num_boxes, 2)], 1)
    boxes = targets + (2 * uniform(num_boxes, 4) - 1) * torch.linspace(0, 4, num_boxes, dtype=torch.float64)[:, None]
    boxes[-3:] += 500
    return boxes, targets


OBJECTIVES = {"iou": (iou, iou_of_rows), "bump": (bump, bump_of_rows)}
