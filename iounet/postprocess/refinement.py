"""Optimization-based bounding box refinement (paper's Algorithm 2): gradient ascent on the predicted IoU."""

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import box_sizes


class Stop(IntEnum):
    """Why a box is moved no further."""

    STEPS = 0  # it was not stopped: all steps were taken
    CONVERGED = 1  # its predicted IoU changed by less than early_stop
    FELL = 2  # its predicted IoU fell by more than -degeneration
    COLLAPSED = 3  # the next step would have left it without area, or not finite
    LEFT_IMAGE = 4  # it was moved off its image, and lies where it lay before refinement
    UNPLACED = 5  # it had no area inside its image to begin with, so that nothing can be predicted for it


class Refined(NamedTuple):
    """Boxes [N, 4], their predicted IoUs [N], and :class:`Stop` of each, int64 [N]."""

    boxes: Tensor
    ious: Tensor
    stops: Tensor


def refine_boxes(
    predict_iou: Callable[[Tensor], Tensor],
    boxes: Tensor,
    *,
    step_size: float = 0.5,
    num_steps: int = 5,
    early_stop: float = 1e-3,
    degeneration: float = -1e-2,
    coordinates: str = "pixels",
    accept: str = "every",
) -> tuple[Tensor, Tensor]:
    """Moves boxes to where their predicted IoU is higher, all of them at once.

    Each step moves a box by ``step_size`` times the gradient of its predicted IoU, scaled per axis by the box's own
    width and height, so that the step is about ``step_size`` pixels whatever the box's size. A box is finished when
    its predicted IoU changed by less than ``early_stop`` or fell by more than ``-degeneration``; it stays where that
    last step took it, as in the paper. A step that would leave a box without area, or not finite, is not taken and
    finishes it.

    Args:
        predict_iou: [N, 4] boxes → [N] predicted IoUs; differentiable; the IoU of a box depends on that box alone.
            It is called with all N boxes, in order, ``num_steps + 1`` times at most. On a GPU nothing waits for it
            in between, unless ``predict_iou`` does.
        boxes (Tensor[N, 4]): xyxy in the frame of ``predict_iou``, in pixels. Not modified.
        step_size: lambda of the paper.
        num_steps: T of the paper.
        early_stop: Omega_1 of the paper.
        degeneration: Omega_2 of the paper, at most 0.
        coordinates: "pixels", or "relative": ascent in coordinates measured in the box's own width and height, where a
            step of one length moves a large box by more pixels than a small one. The right ``step_size`` is then
            smaller, about by the size of the boxes.
        accept: "every" step, as in the paper; "best": so, too, but of the boxes on the way the one of the highest
            predicted IoU is returned; "rising": a step that lowers the predicted IoU is taken back and tried again half
            as long, so that ``degeneration`` plays no part.

    Returns:
        boxes (Tensor[N, 4]): refined, detached.
        ious (Tensor[N]): predicted IoUs of the boxes returned, detached.

    Raises:
        RuntimeError: called under ``torch.inference_mode()``, which allows no gradient; use ``torch.no_grad()``.
        ValueError: unknown ``coordinates`` or ``accept``.
    """
    *_, refined = refinement_path(
        predict_iou,
        boxes,
        step_size=step_size,
        num_steps=num_steps,
        early_stop=early_stop,
        degeneration=degeneration,
        coordinates=coordinates,
        accept=accept,
    )
    return refined.boxes, refined.ious


def refinement_path(
    predict_iou: Callable[[Tensor], Tensor],
    boxes: Tensor,
    *,
    step_size: float,
    num_steps: int,
    early_stop: float,
    degeneration: float,
    coordinates: str,
    accept: str,
) -> Iterator[Refined]:
    """What `refine_boxes`, whose arguments these are, gives after 0, 1, ..., ``num_steps`` steps, and what stopped."""
    if coordinates not in ("pixels", "relative"):
        raise ValueError(f"unknown coordinates '{coordinates}': TEST.REFINE.COORDINATES is pixels or relative")
    if accept not in ("every", "best", "rising"):
        raise ValueError(f"unknown acceptance '{accept}': TEST.REFINE.ACCEPT is one of every, best, rising")
    if num_steps > 0 and torch.is_inference_mode_enabled():
        raise RuntimeError("refinement needs gradients, which torch.inference_mode() forbids: use torch.no_grad()")
    boxes = boxes.detach().clone()
    stops = torch.full((len(boxes),), Stop.STEPS, device=boxes.device)
    step_sizes = boxes.new_full((len(boxes), 1), step_size)
    ious, gradient = _iou_and_gradient(predict_iou, boxes, with_gradient=num_steps > 0)
    best_boxes, best_ious = boxes, ious
    yield Refined(boxes, ious, stops)
    for step in range(1, num_steps + 1):
        scale = box_sizes(boxes).repeat(1, 2)
        moved = boxes + step_sizes * gradient * (scale if coordinates == "pixels" else scale.square())
        stops = _stopped(stops, ~(torch.isfinite(moved).all(1) & (box_sizes(moved) > 0).all(1)), Stop.COLLAPSED)
        active = stops == Stop.STEPS
        # Looking makes a GPU wait; with the paper's thresholds nearly all steps find a box that is not finished.
        if boxes.is_cuda or active.any():
            moved = torch.where(active[:, None], moved, boxes)
            # The forward pass there is also the next step's: T steps cost T + 1 of them and T backward passes.
            new_ious, new_gradient = _iou_and_gradient(predict_iou, moved, with_gradient=step < num_steps)
            change = new_ious - ious
            if accept == "rising":
                taken = active & (change > 0)
                step_sizes = torch.where((active & ~taken)[:, None], step_sizes / 2, step_sizes)
                stops = _stopped(stops, taken & (change < early_stop), Stop.CONVERGED)
            else:
                taken = active
                stops = _stopped(stops, ~(change.abs() >= early_stop), Stop.CONVERGED)  # NaN, too, stops
                stops = _stopped(stops, change < degeneration, Stop.FELL)
            boxes = torch.where(taken[:, None], moved, boxes)
            gradient = torch.where(taken[:, None], new_gradient, gradient)
            ious = torch.where(taken, new_ious, ious)
            better = ious > best_ious
            best_boxes = torch.where(better[:, None], boxes, best_boxes)
            best_ious = torch.where(better, ious, best_ious)
        yield Refined(best_boxes, best_ious, stops) if accept == "best" else Refined(boxes, ious, stops)


def _stopped(stops: Tensor, where: Tensor, reason: Stop) -> Tensor:
    """The first reason stands."""
    return stops.masked_fill(where & (stops == Stop.STEPS), int(reason))


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
