"""Optimization-based bounding box refinement (paper's Algorithm 2): gradient ascent on the predicted IoU, or an energy.

Everything about refinement is in this file: its options, its loop, and when a box stops (for which reasons:
`iounet.stops`). The detector supplies the function that is climbed.
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
    """How boxes are refined; the defaults are the paper's.

    In a configuration each field is the key of its name in TEST.REFINE.

    Attributes:
        num_steps: T of the paper; 0: boxes are not refined.
        step_size: lambda of the paper.
        early_stop: Omega_1 of the paper: a box whose predicted IoU changes by less is finished.
        degeneration: Omega_2 of the paper, at most 0: a box whose predicted IoU falls further is finished.
        coordinates: "pixels": a step moves an edge by about ``step_size`` pixels, whatever the size of the box.
            "relative": ascent in coordinates measured in the box's own width and height, where a step of one length
            moves a large box by more pixels than a small one. Divide ``step_size`` by about the side of the
            boxes in pixels. "center_size": ascent in (x / width, y / height) of the centre and (log width, log height),
            as energies are trained (arXiv 1909.12297); ``step_size`` is the centre's.
        step_policy: "every": every step is taken, as in the paper. "best": every step is taken, and the box of highest
            predicted IoU on the way is returned. "backtracking": a step that lowers the predicted IoU is taken back and
            tried again at half the length, so that ``degeneration`` plays no part.
        size_step_size: as ``step_size``, of width and height in "center_size".
        objective: what a detector climbs: "iou", its predicted IoU, as in the paper, or "energy", the output of its
            :class:`iounet.modeling.EnergyHead`. :func:`refine_boxes` climbs the function that it is given.

    Raises:
        OptionError: a number out of range; unknown ``coordinates`` or ``step_policy``.
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
    """Boxes [N, 4], the objective's values there [N], and the :class:`Stop` of each, int64 [N]."""

    boxes: Tensor
    values: Tensor
    stops: Tensor


# Boxes [N, 4] → values [N]; the value of a box depends on that box alone.
Objective = Callable[[Tensor], Tensor]
# Boxes [N, 4] → values [N] and their gradient [N, 4].
ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]


def refine_boxes(predict_iou: Objective, boxes: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
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
    return refined.boxes, refined.values


def refinement_path(
    objective: Objective, boxes: Tensor, options: RefinementOptions, *, image_ends: Tensor | None = None
) -> Iterator[Refined]:
    """The boxes after 0, 1, ..., ``options.num_steps`` steps of :func:`refine_boxes`.

    Args:
        objective: as ``predict_iou`` in :func:`refine_boxes`.
        boxes, options: as there.
        image_ends (Tensor[N, 4]): (width, height, width, height) of the image that each box lies in, in the frame of
            the boxes. ``objective`` is then given boxes clipped to their images, and the boxes yielded are clipped,
            too; one that left its image lies where it was before. None: no images.
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
    """The same after all steps, in ``torch.while_loop``: for torch.export, which cannot see autograd.

    Args:
        value_and_gradient: boxes [N, 4], inside their images → the objective [N] and its gradient [N, 4].
        boxes, options, image_ends: as in :func:`refinement_path`.

    Returns:
        values (Tensor[N]): the objective before the first step.
        refined: after the last.
    """
    zero = torch.zeros_like(image_ends)

    def in_image(boxes: Tensor) -> tuple[Tensor, Tensor]:
        values, gradient = value_and_gradient(boxes.clamp(zero, image_ends))
        # As autograd has it: half the gradient where an edge lies on the image's border, none beyond it.
        passed = (boxes > zero).to(boxes) + (boxes >= zero).to(boxes)
        passed = passed * ((boxes < image_ends).to(boxes) + (boxes <= image_ends).to(boxes))
        return values, gradient * passed / 4

    def goes_on(step: Tensor, *state: Tensor) -> Tensor:
        return (step < options.num_steps) & (_Ascent(*state).stops == int(Stop.STEPS)).any()

    def take_step(step: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        stepped = _stepped(_Ascent(*state), in_image, options)
        # A loop may not return a tensor that it was given; all but "backtracking" leave the lengths as they are.
        return step + 1, *(tensor.clone() for tensor in stepped)

    start = _Ascent.at(boxes, *in_image(boxes))
    # A loop may not be given one tensor twice.
    state = [tensor.clone() for tensor in start]
    first_step = torch.zeros((), dtype=torch.int64, device=boxes.device)
    _, *end = torch.while_loop(goes_on, take_step, (first_step, *state))
    return start.values, _inside(_Ascent(*end).refined(options), boxes, start.values, image_ends)


def _inside(refined: Refined, start: Tensor, values_at_start: Tensor, image_ends: Tensor) -> Refined:
    """Refined boxes clipped to their images; those that left them as they were at the start."""
    clipped = refined.boxes.clamp(torch.zeros_like(image_ends), image_ends)
    inside = (box_sizes(clipped) > 0).all(1)
    return Refined(
        torch.where(inside[:, None], clipped, start),
        torch.where(inside, refined.values, values_at_start),
        refined.stops.masked_fill(~inside, int(Stop.LEFT_IMAGE)),
    )


class _Ascent(NamedTuple):
    """Between two steps of Algorithm 2.

    ``lengths`` (Tensor[N, 1]) are factors of the step sizes; the best boxes are those of the highest value so far.
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
    """Algorithm 2."""
    boxes = boxes.clone()
    state = _Ascent.at(boxes, *_value_and_gradient(objective, boxes, with_gradient=options.num_steps > 0))
    yield state
    for step in range(1, options.num_steps + 1):
        # Asking would synchronise with a GPU; with the paper's thresholds nearly every step finds an active box.
        if boxes.is_cuda or (state.stops == Stop.STEPS).any():
            # This forward pass is also the next step's: T steps cost T + 1 forward and T backward passes.
            evaluate = partial(_value_and_gradient, objective, with_gradient=step < options.num_steps)
            state = _stepped(state, evaluate, options)
        yield state


def _stepped(state: _Ascent, value_and_gradient: ValueAndGradient, options: RefinementOptions) -> _Ascent:
    """One step of all boxes that are active."""
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
        stops = _stopped(stops, ~(change.abs() >= options.early_stop), Stop.CONVERGED)  # NaN stops, too
        stops = _stopped(stops, change < options.degeneration, Stop.FELL)
    boxes = torch.where(taken[:, None], moved, boxes)
    gradient = torch.where(taken[:, None], new_gradient, gradient)
    values = torch.where(taken, new_values, values)
    better = values > best_values
    best_boxes = torch.where(better[:, None], boxes, best_boxes)
    best_values = torch.where(better, values, best_values)
    return _Ascent(boxes, values, gradient, lengths, stops, best_boxes, best_values)


def _moved(boxes: Tensor, gradient: Tensor, lengths: Tensor, options: RefinementOptions) -> Tensor:
    """The boxes after a step of ``lengths`` (Tensor[N, 1]) times the step sizes of the options."""
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
    """The first reason stands."""
    return stops.masked_fill(where & (stops == int(Stop.STEPS)), int(reason))


def _value_and_gradient(objective: Objective, boxes: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
    if not with_gradient or not len(boxes):
        with torch.no_grad():
            return objective(boxes), torch.zeros_like(boxes)
    with torch.enable_grad():
        boxes = boxes.detach().requires_grad_()
        values = objective(boxes)
        # Each value depends on its own box alone, so the gradient of the sum holds every box's own gradient.
        (gradient,) = torch.autograd.grad(values.sum(), boxes)
    return values.detach(), gradient
