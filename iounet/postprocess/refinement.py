"""Optimization-based bounding box refinement (paper's Algorithm 2): gradient ascent on the predicted IoU."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..boxes import box_sizes


def refine_boxes(
    predict_iou: Callable[[Tensor], Tensor],
    boxes: Tensor,
    *,
    step_size: float = 0.5,
    num_steps: int = 5,
    early_stop: float = 1e-3,
    degeneration: float = -1e-2,
) -> tuple[Tensor, Tensor]:
    """Moves boxes to where their predicted IoU is higher, all of them at once.

    Each step moves a box by ``step_size`` times the gradient of its predicted IoU, scaled per axis by the box's own
    width and height, so that the step is about ``step_size`` pixels whatever the box's size. A box is finished when
    its predicted IoU changed by less than ``early_stop`` or fell by more than ``-degeneration``; it stays where that
    last step took it, as in the paper. A step that would leave a box without area, or not finite, is not taken and
    finishes it.

    Args:
        predict_iou: [N, 4] boxes → [N] predicted IoUs; differentiable; the IoU of a box depends on that box alone.
            It is called with all N boxes, in order, ``num_steps + 1`` times at most.
        boxes (Tensor[N, 4]): xyxy in the frame of ``predict_iou``, in pixels. Not modified.
        step_size: lambda of the paper.
        num_steps: T of the paper.
        early_stop: Omega_1 of the paper.
        degeneration: Omega_2 of the paper, at most 0.

    Returns:
        boxes (Tensor[N, 4]): refined, detached.
        ious (Tensor[N]): predicted IoUs of the boxes returned, detached.

    Raises:
        RuntimeError: called under ``torch.inference_mode()``, which allows no gradient; use ``torch.no_grad()``.
    """
    if num_steps > 0 and torch.is_inference_mode_enabled():
        raise RuntimeError("refinement needs gradients, which torch.inference_mode() forbids: use torch.no_grad()")
    boxes = boxes.detach().clone()
    active = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    ious, gradient = _iou_and_gradient(predict_iou, boxes, with_gradient=num_steps > 0)
    for step in range(1, num_steps + 1):
        moved = boxes + step_size * gradient * box_sizes(boxes).repeat(1, 2)
        active = active & torch.isfinite(moved).all(1) & (box_sizes(moved) > 0).all(1)
        if not active.any():
            break
        boxes = torch.where(active[:, None], moved, boxes)
        # The forward pass at the new boxes is also the next step's: T steps cost T + 1 of them and T backward passes.
        new_ious, gradient = _iou_and_gradient(predict_iou, boxes, with_gradient=step < num_steps)
        change = new_ious - ious
        ious = torch.where(active, new_ious, ious)
        active = active & (change.abs() >= early_stop) & (change >= degeneration)
    return boxes, ious


def _iou_and_gradient(
    predict_iou: Callable[[Tensor], Tensor], boxes: Tensor, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    if not with_gradient or not len(boxes):
        with torch.no_grad():
            return predict_iou(boxes), torch.zeros_like(boxes)
    with torch.enable_grad():
        boxes = boxes.detach().requires_grad_()
        ious = predict_iou(boxes)
        # Each IoU depends on its own box alone, so the gradient of the sum holds every box's own gradient.
        (gradient,) = torch.autograd.grad(ious.sum(), boxes)
    return ious.detach(), gradient
