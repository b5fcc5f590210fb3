"""Optimization-based bounding box refinement: gradient ascent on the predicted IoU or on an energy.

This is Algorithm 2 of the paper: its options, its loop and its stopping rules. `iounet.stops` lists the reasons to
stop. The detector supplies the objective, the function to maximise.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..boxes import box_sizes, boxes_at
from ..errors import check_choice, check_range
from ..stops import Stop


@dataclass(frozen=True)
class RefinementOptions:
    """Options of refinement. The defaults are the paper's.

    In a configuration, each field is the key of the same name under TEST.REFINE.

    Attributes:
        num_steps: maximum number of steps, the paper's T. 0 disables refinement.
        step_size: factor of the gradient in a step, the paper's lambda.
        early_stop: a box stops when its predicted IoU changes by less than this value, the paper's Omega_1.
        degeneration: a box stops when its predicted IoU falls by more than ``-degeneration``; the paper's Omega_2. At
            most 0.
        coordinates: coordinates in which steps follow the gradient.

            - "pixels": a step moves an edge by about ``step_size`` pixels, whatever the size of the box.
            - "relative": coordinates are divided by the box's width and height, so that a step moves a large box by
              more pixels than a small one. As a first guess for ``step_size``, divide its value for "pixels" by the
              typical side of a box in pixels.
            - "center_size": (x / width, y / height) of the centre and (log width, log height), the coordinates in which
              energy heads are trained (arXiv 1909.12297). ``step_size`` applies to the centre.

        step_policy: which steps are accepted.

            - "every": every step, as in the paper.
            - "best": every step, but the box with the highest predicted IoU on the path is returned.
            - "backtracking": a step that does not raise the predicted IoU is undone and repeated at half the length;
              ``degeneration`` has no effect.

        size_step_size: like ``step_size``, but for log width and log height; used only with "center_size".
        objective: function that a detector maximises: "iou", its predicted IoU, as in the paper, or "energy", the
            output of its `EnergyHead`. With "energy", ``early_stop``, ``degeneration`` and ``step_policy`` compare
            energies instead of predicted IoUs. `refine_boxes` ignores this option and maximises the function that it is
            given.

    Raises:
        OptionError: a number is out of range, or ``coordinates``, ``step_policy`` or ``objective`` is unknown.
    """

    num_steps: int = 5
    step_size: float = 0.5
    early_stop: float = 1e-3
    degeneration: float = -1e-2
    coordinates: str = "pixels"
    step_policy: str = "every"
    size_step_size: float = 0.5
    objective: str = "iou"

    def __post_init__(self) -> None:
        check_range("num_steps", self.num_steps, 0)
        check_range("step_size", self.step_size, 0)
        check_range("size_step_size", self.size_step_size, 0)
        check_range("early_stop", self.early_stop, 0)
        check_range("degeneration", self.degeneration, -math.inf, 0)
        check_choice("objective", self.objective, ("iou", "energy"))
        check_choice("coordinates", self.coordinates, ("pixels", "relative", "center_size"))
        check_choice("step_policy", self.step_policy, ("every", "best", "backtracking"))


class Refined(NamedTuple):
    """Refined boxes.

    Attributes:
        boxes (Tensor[N, 4]): xyxy in the frame of the given boxes.
        values (Tensor[N]): objective at these boxes.
        stops (Tensor[N]): int64, the `Stop` of each box.
    """

    boxes: Tensor
    values: Tensor
    stops: Tensor


# Boxes [N, 4] → values [N]; each value depends only on the box in its row.
Objective = Callable[[Tensor], Tensor]
# Boxes [N, 4] → values [N] and their gradient [N, 4].
ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]


def refine_boxes(predict_iou: Objective, boxes: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Refine boxes by gradient ascent on their predicted IoUs (Algorithm 2 of the paper), all boxes in parallel.

    With the default options, each step moves a box by ``step_size`` times the gradient of its predicted IoU, scaled per
    axis by the box's width and height. A box stops when its predicted IoU changes by less than ``early_stop`` or falls
    by more than ``-degeneration``; as in the paper, it keeps the position that this last step reached. A step that
    would make a box empty or not finite is skipped, and the box stops.

    Args:
        predict_iou: differentiable function from boxes [N, 4] to predicted IoUs [N]. Each IoU may depend only on the
            box in its row. The function is called with all N boxes, in the same order, at most ``num_steps + 1`` times.
            On a GPU, no step synchronises with the GPU unless ``predict_iou`` does.
        boxes (Tensor[N, 4]): xyxy in pixels, in the frame of ``predict_iou``. Not modified.
        options: fields of `RefinementOptions`, such as ``step_size=0.5``.

    Returns:
        boxes (Tensor[N, 4]): refined boxes, detached.
        ious (Tensor[N]): predicted IoUs of the refined boxes, detached.

    Raises:
        RuntimeError: ``torch.inference_mode()`` is active, which forbids gradients; use ``torch.no_grad()``.
        TypeError: an option is unknown.
        OptionError: an option is out of range.
    """
    *_, refined = refinement_path(predict_iou, boxes, RefinementOptions(**options))
    return refined.boxes, refined.values


def refinement_path(
    objective: Objective, boxes: Tensor, options: RefinementOptions, *, image_ends: Tensor | None = None
) -> Iterator[Refined]:
    """Yield the boxes after 0, 1, ..., ``options.num_steps`` steps of `refine_boxes`.

    Args:
        objective: function to maximise, like ``predict_iou`` in `refine_boxes`.
        boxes (Tensor[N, 4]): xyxy in pixels. Not modified.
        options: options of refinement.
        image_ends (Tensor[N, 4]): (width, height, width, height) of the image of each box, in the frame of the boxes.
            Boxes are clipped to their images before ``objective`` is called and before they are yielded; a box that has
            moved off its image is yielded at its start position. None disables clipping.

    Yields:
        The boxes, their values and their stops so far.

    Raises:
        RuntimeError: ``torch.inference_mode()`` is active, which forbids gradients; use ``torch.no_grad()``.
    """
    if options.num_steps > 0 and torch.is_inference_mode_enabled():
        raise RuntimeError("refinement needs gradients, which torch.inference_mode() forbids: use torch.no_grad()")
    start = boxes.detach()
    if image_ends is None:
        for ascent in _path(objective, start, options):
            yield ascent.refined(options)
        return
    zero = torch.zeros_like(image_ends)
    values_before: Tensor | None = None
    for ascent in _path(lambda boxes: objective(boxes.clamp(zero, image_ends)), start, options):
        refined = ascent.refined(options)
        values_before = refined.values if values_before is None else values_before
        yield _inside(refined, start, values_before, image_ends)


def refine_in_loop(
    value_and_gradient: ValueAndGradient, boxes: Tensor, options: RefinementOptions, *, image_ends: Tensor
) -> tuple[Tensor, Refined]:
    """Run all steps of `refinement_path` in ``torch.while_loop``, for torch.export, which cannot trace autograd.

    Args:
        value_and_gradient: function from boxes [N, 4], clipped to their images, to the objective [N] and its gradient
            [N, 4].
        boxes (Tensor[N, 4]): as in `refinement_path`.
        options: as in `refinement_path`.
        image_ends (Tensor[N, 4]): as in `refinement_path`.

    Returns:
        values (Tensor[N]): objective before the first step.
        refined: the boxes after the last step.
    """
    zero = torch.zeros_like(image_ends)

    def in_image(boxes: Tensor) -> tuple[Tensor, Tensor]:
        values, gradient = value_and_gradient(boxes.clamp(zero, image_ends))
        # The gradient of clamp in autograd: half where an edge lies on the image's border, 0 beyond the border.
        passed = (boxes > zero).to(boxes) + (boxes >= zero).to(boxes)
        passed = passed * ((boxes < image_ends).to(boxes) + (boxes <= image_ends).to(boxes))
        return values, gradient * passed / 4

    def is_active(step: Tensor, *state: Tensor) -> Tensor:
        return (step < options.num_steps) & (_Ascent(*state).stops == int(Stop.STEPS)).any()

    def take_step(step: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        # while_loop rejects a tensor that is passed twice as input, and an input that is returned as output.
        return step + 1, *(tensor.clone() for tensor in _stepped(_Ascent(*state), in_image, options))

    start = _Ascent.at(boxes, *in_image(boxes))
    state = [tensor.clone() for tensor in start]
    first_step = torch.zeros((), dtype=torch.int64, device=boxes.device)
    _, *end = torch.while_loop(is_active, take_step, (first_step, *state))
    return start.values, _inside(_Ascent(*end).refined(options), boxes, start.values, image_ends)


def _inside(refined: Refined, start: Tensor, values_at_start: Tensor, image_ends: Tensor) -> Refined:
    """Clip refined boxes to their images, and reset boxes that moved off their images to their start position."""
    clipped = refined.boxes.clamp(torch.zeros_like(image_ends), image_ends)
    inside = (box_sizes(clipped) > 0).all(1)
    return Refined(
        torch.where(inside[:, None], clipped, start),
        torch.where(inside, refined.values, values_at_start),
        refined.stops.masked_fill(~inside, int(Stop.LEFT_IMAGE)),
    )


class _Ascent(NamedTuple):
    """State between two steps of Algorithm 2.

    ``lengths`` (Tensor[N, 1]) are factors of the step sizes. ``best_boxes`` have the highest values so far.
    """

    boxes: Tensor
    values: Tensor
    gradient: Tensor
    lengths: Tensor
    stops: Tensor
    best_boxes: Tensor
    best_values: Tensor

    @classmethod
    def at(cls, boxes: Tensor, values: Tensor, gradient: Tensor) -> "_Ascent":
        stops = torch.full_like(values, int(Stop.STEPS), dtype=torch.int64)
        return cls(boxes, values, gradient, torch.ones_like(boxes[:, :1]), stops, boxes, values)

    def refined(self, options: RefinementOptions) -> Refined:
        if options.step_policy == "best":
            return Refined(self.best_boxes, self.best_values, self.stops)
        return Refined(self.boxes, self.values, self.stops)


def _path(objective: Objective, boxes: Tensor, options: RefinementOptions) -> Iterator[_Ascent]:
    """Yield the state before the first step and after each step of Algorithm 2."""
    boxes = boxes.clone()
    state = _Ascent.at(boxes, *_value_and_gradient(objective, boxes, with_gradient=options.num_steps > 0))
    yield state
    for step in range(1, options.num_steps + 1):
        # On a GPU the check would synchronise; with the paper's thresholds nearly every step has an active box.
        if boxes.is_cuda or (state.stops == Stop.STEPS).any():
            # The next step reuses this forward pass, so T steps cost T + 1 forward and T backward passes.
            evaluate = partial(_value_and_gradient, objective, with_gradient=step < options.num_steps)
            state = _stepped(state, evaluate, options)
        yield state


def _stepped(state: _Ascent, value_and_gradient: ValueAndGradient, options: RefinementOptions) -> _Ascent:
    """Take one step with all active boxes."""
    boxes, values, gradient, lengths, stops, best_boxes, best_values = state
    moved = _moved(boxes, gradient, lengths, options)
    stops = _stopped(stops, ~(torch.isfinite(moved).all(1) & (box_sizes(moved) > 0).all(1)), Stop.COLLAPSED)
    active = stops == int(Stop.STEPS)
    moved = torch.where(active[:, None], moved, boxes)
    new_values, new_gradient = value_and_gradient(moved)
    change = new_values - values
    if options.step_policy == "backtracking":
        taken = active & (change > 0)
        lengths = torch.where((active & ~taken)[:, None], lengths / 2, lengths)
        stops = _stopped(stops, taken & (change < options.early_stop), Stop.CONVERGED)
    else:
        taken = active
        stops = _stopped(stops, ~(change.abs() >= options.early_stop), Stop.CONVERGED)  # also true for NaN
        stops = _stopped(stops, change < options.degeneration, Stop.FELL)
    boxes = torch.where(taken[:, None], moved, boxes)
    gradient = torch.where(taken[:, None], new_gradient, gradient)
    values = torch.where(taken, new_values, values)
    better = values > best_values
    best_boxes = torch.where(better[:, None], boxes, best_boxes)
    best_values = torch.where(better, values, best_values)
    return _Ascent(boxes, values, gradient, lengths, stops, best_boxes, best_values)


def _moved(boxes: Tensor, gradient: Tensor, lengths: Tensor, options: RefinementOptions) -> Tensor:
    """Return the boxes after a step of ``lengths`` (Tensor[N, 1]) times the step sizes of the options."""
    sizes = box_sizes(boxes)
    if options.coordinates == "center_size":
        of_center = (gradient[:, :2] + gradient[:, 2:]) * sizes
        of_log_size = (gradient[:, 2:] - gradient[:, :2]) * sizes / 2
        return boxes_at(
            lengths * torch.cat([options.step_size * of_center, options.size_step_size * of_log_size], 1), boxes
        )
    scale = sizes.repeat(1, 2)
    return boxes + lengths * options.step_size * gradient * (
        scale if options.coordinates == "pixels" else scale.square()
    )


def _stopped(stops: Tensor, where: Tensor, reason: Stop) -> Tensor:
    """Record ``reason`` for the active boxes in ``where``; boxes that have already stopped keep their first reason."""
    return stops.masked_fill(where & (stops == int(Stop.STEPS)), int(reason))


def _value_and_gradient(objective: Objective, boxes: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
    if not with_gradient or not len(boxes):
        with torch.no_grad():
            return objective(boxes), torch.zeros_like(boxes)
    with torch.enable_grad():
        boxes = boxes.detach().requires_grad_()
        values = objective(boxes)
        # Each value depends only on its own box, so the gradient of the sum contains the gradient of each box.
        (gradient,) = torch.autograd.grad(values.sum(), boxes)
    return values.detach(), gradient
