"""Optimization-based bounding box refinement (paper's Algorithm 2): gradient ascent on the predicted IoU.

Everything about refinement is in this file: its options, its loop, and why a box stopped. The detector supplies the
function that is climbed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..boxes import box_sizes
from ..errors import check_choice, check_range


@dataclass(frozen=True)
class RefinementOptions:
    """How boxes are refined; the defaults are the paper's.

    In a configuration each field is the key of its name in TEST.REFINE.

    Attributes:
        num_steps: T of the paper; 0: boxes are not refined.
        step_size: lambda of the paper.
        early_stop: Omega_1 of the paper: a box whose predicted IoU changes by less is finished.
        degeneration: Omega_2 of the paper, at most 0: a box whose predicted IoU falls further is finished.
        coordinates: "pixels": a step moves an edge by about ``step_size`` pixels, whatever the size of the box. Or
            "relative": ascent in coordinates measured in the box's own width and height, where a step of one length
            moves a large box by more pixels than a small one. Divide ``step_size`` by about the side of the
            boxes in pixels.
        step_policy: "every": every step is taken, as in the paper. "best": every step is taken, and the box of highest
            predicted IoU on the way is returned. "backtracking": a step that lowers the predicted IoU is taken back and
            tried again at half the length, so that ``degeneration`` plays no part.

    Raises:
        OptionError: a number out of range; unknown ``coordinates`` or ``step_policy``.
    """

    num_steps: int = 5
    step_size: float = 0.5
    early_stop: float = 1e-3
    degeneration: float = -1e-2
    coordinates: str = "pixels"
    step_policy: str = "every"

    def __post_init__(self) -> None:
        check_range("num_steps", self.num_steps, 0)
        check_range("step_size", self.step_size, 0)
        check_range("early_stop", self.early_stop, 0)
        check_range("degeneration", self.degeneration, -math.inf, 0)
        check_choice("coordinates", self.coordinates, ("pixels", "relative"))
        check_choice("step_policy", self.step_policy, ("every", "best", "backtracking"))


class Stop(IntEnum):
    """Why a box is moved no further."""

    STEPS = 0  # all steps were taken
    CONVERGED = 1  # its predicted IoU changed by less than early_stop
    FELL = 2  # its predicted IoU fell by more than -degeneration
    COLLAPSED = 3  # the next step would have left it without area, or not finite
    LEFT_IMAGE = 4  # it was moved off its image, and is returned where it was before refinement
    UNPLACED = 5  # it had no area inside its image to begin with, so nothing can be predicted for it


class Refined(NamedTuple):
    """Boxes [N, 4], their predicted IoUs [N], and the :class:`Stop` of each, int64 [N]."""

    boxes: Tensor
    ious: Tensor
    stops: Tensor


PredictIoU = Callable[[Tensor], Tensor]


def refine_boxes(predict_iou: PredictIoU, boxes: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Moves boxes to where their predicted IoU is higher, all of them at once.

    Each step moves a box by ``step_size`` times the gradient of its predicted IoU, scaled per axis by the box's own
    width and height. A box is finished when its predicted IoU changed by less than ``early_stop`` or fell by more than
    ``-degeneration``; it stays where that last step took it, as in the paper. A step that would leave a box without
    area, or not finite, is not taken and finishes it.

    Args:
        predict_iou: [N, 4] boxes → [N] predicted IoUs; differentiable; the IoU of a box depends on that box alone.
            It is called with all N boxes, in order, at most ``num_steps + 1`` times. On a GPU nothing waits for it
            in between, unless ``predict_iou`` does.
        boxes (Tensor[N, 4]): xyxy in the frame of ``predict_iou``, in pixels. Not modified.
        options: fields of :class:`RefinementOptions`, such as ``step_size=0.5``.

    Returns:
        boxes (Tensor[N, 4]): refined, detached.
        ious (Tensor[N]): predicted IoUs of the boxes returned, detached.

    Raises:
        RuntimeError: called under ``torch.inference_mode()``, which forbids gradients; use ``torch.no_grad()``.
        TypeError: an unknown option.
        OptionError: an option out of range.
    """
    *_, refined = refinement_path(predict_iou, boxes, RefinementOptions(**options))
    return refined.boxes, refined.ious


def refinement_path(
    predict_iou: PredictIoU, boxes: Tensor, options: RefinementOptions, *, image_ends: Tensor | None = None
) -> Iterator[Refined]:
    """The boxes after 0, 1, ..., ``options.num_steps`` steps of :func:`refine_boxes`.

    Args:
        predict_iou, boxes, options: as in :func:`refine_boxes`.
        image_ends (Tensor[N, 4]): (width, height, width, height) of the image that each box lies in, in the frame of
            the boxes. ``predict_iou`` is then given boxes clipped to their images, and the boxes yielded are clipped,
            too; one that left its image lies where it was before. None: no images.
    """
    if options.num_steps > 0 and torch.is_inference_mode_enabled():
        raise RuntimeError("refinement needs gradients, which torch.inference_mode() forbids: use torch.no_grad()")
    start = boxes.detach()
    if image_ends is None:
        yield from _ascent(predict_iou, start, options)
        return
    zero = torch.zeros_like(image_ends)
    ious_before: Tensor | None = None
    for moved, ious, stops in _ascent(lambda boxes: predict_iou(boxes.clamp(zero, image_ends)), start, options):
        ious_before = ious if ious_before is None else ious_before
        clipped = moved.clamp(zero, image_ends)
        inside = (box_sizes(clipped) > 0).all(1)
        yield Refined(
            torch.where(inside[:, None], clipped, start),
            torch.where(inside, ious, ious_before),
            stops.masked_fill(~inside, int(Stop.LEFT_IMAGE)),
        )


def _ascent(predict_iou: PredictIoU, boxes: Tensor, options: RefinementOptions) -> Iterator[Refined]:
    """Algorithm 2."""
    boxes = boxes.clone()
    stops = torch.full((len(boxes),), int(Stop.STEPS), device=boxes.device)
    step_sizes = boxes.new_full((len(boxes), 1), options.step_size)
    ious, gradient = _iou_and_gradient(predict_iou, boxes, with_gradient=options.num_steps > 0)
    best_boxes, best_ious = boxes, ious
    yield Refined(boxes, ious, stops)
    for step in range(1, options.num_steps + 1):
        scale = box_sizes(boxes).repeat(1, 2)
        moved = boxes + step_sizes * gradient * (scale if options.coordinates == "pixels" else scale.square())
        stops = _stopped(stops, ~(torch.isfinite(moved).all(1) & (box_sizes(moved) > 0).all(1)), Stop.COLLAPSED)
        active = stops == Stop.STEPS
        # Asking would synchronise with a GPU; with the paper's thresholds nearly every step finds an active box.
        if boxes.is_cuda or active.any():
            moved = torch.where(active[:, None], moved, boxes)
            # This forward pass is also the next step's: T steps cost T + 1 forward and T backward passes.
            new_ious, new_gradient = _iou_and_gradient(predict_iou, moved, with_gradient=step < options.num_steps)
            change = new_ious - ious
            if options.step_policy == "backtracking":
                taken = active & (change > 0)
                step_sizes = torch.where((active & ~taken)[:, None], step_sizes / 2, step_sizes)
                stops = _stopped(stops, taken & (change < options.early_stop), Stop.CONVERGED)
            else:
                taken = active
                stops = _stopped(stops, ~(change.abs() >= options.early_stop), Stop.CONVERGED)  # NaN stops, too
                stops = _stopped(stops, change < options.degeneration, Stop.FELL)
            boxes = torch.where(taken[:, None], moved, boxes)
            gradient = torch.where(taken[:, None], new_gradient, gradient)
            ious = torch.where(taken, new_ious, ious)
            better = ious > best_ious
            best_boxes = torch.where(better[:, None], boxes, best_boxes)
            best_ious = torch.where(better, ious, best_ious)
        if options.step_policy == "best":
            yield Refined(best_boxes, best_ious, stops)
        else:
            yield Refined(boxes, ious, stops)


def _stopped(stops: Tensor, where: Tensor, reason: Stop) -> Tensor:
    """The first reason stands."""
    return stops.masked_fill(where & (stops == Stop.STEPS), int(reason))


def _iou_and_gradient(predict_iou: PredictIoU, boxes: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
    if not with_gradient or not len(boxes):
        with torch.no_grad():
            return predict_iou(boxes), torch.zeros_like(boxes)
    with torch.enable_grad():
        boxes = boxes.detach().requires_grad_()
        ious = predict_iou(boxes)
        # Each IoU depends on its own box alone, so the gradient of the sum holds every box's own gradient.
        (gradient,) = torch.autograd.grad(ious.sum(), boxes)
    return ious.detach(), gradient
