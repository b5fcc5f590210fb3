"""Refinement against the paper's Algorithm 2, transcribed as a slow loop over boxes with analytic gradients."""

import itertools
import math
from functools import partial

import pytest
import torch
from objectives import OBJECTIVES, bump_of_rows, case, iou_of_rows

from iounet.errors import OptionError
from iounet.postprocess import RefinementOptions, refine_boxes, refinement_path


def algorithm_2(iou_and_gradient, box, *, step_size=0.5, num_steps=5, early_stop=1e-3, degeneration=-1e-2):
    """The paper's Algorithm 2 for one box (a list): (box, predicted IoU, reason to stop)."""
    before, gradient = iou_and_gradient(box)
    for _ in range(num_steps):
        width, height = box[2] - box[0], box[3] - box[1]
        moved = [c + step_size * g * s for c, g, s in zip(box, gradient, (width, height, width, height), strict=True)]
        if moved[2] <= moved[0] or moved[3] <= moved[1]:
            return box, before, "without area"
        box = moved
        after, gradient = iou_and_gradient(box)
        if abs(before - after) < early_stop:
            return box, after, "stopped early"
        if after - before < degeneration:
            return box, after, "degenerated"
        before = after
    return box, before, "all steps"


SETTINGS = [
    {},
    {"step_size": 2.0},
    {"step_size": 20.0, "num_steps": 8},
    {"step_size": 60.0},
    {"step_size": 2000.0},
    {"step_size": 20.0, "degeneration": -0.5},
    {"step_size": 2.0, "early_stop": 0.05},
    {"step_size": 2.0, "early_stop": 0.0, "num_steps": 12},
    {"num_steps": 1},
    {"num_steps": 0},
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_agrees_with_algorithm_2(objective, settings):
    of_one, of_rows = OBJECTIVES[objective]
    boxes, targets = case(seed=0)
    refined, ious = refine_boxes(lambda moved: of_rows(moved, targets), boxes, **settings)
    for row, (box, target) in enumerate(zip(boxes.tolist(), targets.tolist(), strict=True)):
        expected, expected_iou, _ = algorithm_2(partial(of_one, target=target), box, **settings)
        assert refined[row].tolist() == pytest.approx(expected, abs=1e-8), row
        assert ious[row].item() == pytest.approx(expected_iou, abs=1e-8), row


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_analytic_gradients_are_correct(objective):
    of_one, _ = OBJECTIVES[objective]
    boxes, targets = case(seed=11)
    for box, target in list(zip(boxes.tolist(), targets.tolist(), strict=True))[1:]:
        _, gradient = of_one(box, target)
        for axis in range(4):
            ahead, behind = list(box), list(box)
            ahead[axis] += 1e-6
            behind[axis] -= 1e-6
            slope = (of_one(ahead, target)[0] - of_one(behind, target)[0]) / 2e-6
            assert gradient[axis] == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_the_cases_above_stop_for_every_reason():
    endings = set()
    boxes, targets = case(seed=0)
    for (of_one, _), settings in itertools.product(OBJECTIVES.values(), SETTINGS):
        for box, target in zip(boxes.tolist(), targets.tolist(), strict=True):
            endings.add(algorithm_2(partial(of_one, target=target), box, **settings)[2])
    assert endings == {"without area", "stopped early", "degenerated", "all steps"}


def test_a_step_is_about_lambda_pixels_whatever_the_size_of_the_box():
    # For a box slightly too far left, dIoU/dx1 tends to 1/w; times w, times lambda = 0.5, this is half a pixel.
    for width in (50.0, 5000.0):
        target = torch.tensor([[0.0, 0.0, width, width]], dtype=torch.float64)
        box = target - torch.tensor([[0.01 * width, 0.0, 0.0, 0.0]], dtype=torch.float64)
        refined, _ = refine_boxes(lambda moved, target=target: iou_of_rows(moved, target), box, num_steps=1)
        assert (refined - box)[0, 0].item() == pytest.approx(0.5, rel=0.03)


def test_the_iou_rises():
    boxes, targets = case(seed=1, num_boxes=200)
    refined, ious = refine_boxes(lambda moved: iou_of_rows(moved, targets), boxes)
    before, after = iou_of_rows(boxes, targets), iou_of_rows(refined, targets)
    # A step is about half a pixel, so an edge closer to its target may overshoot.
    off = (before > 0) & ((boxes - targets).abs() > 0.75).all(1)
    assert off.sum() > 30
    assert (after > before)[off].all()
    assert after[before > 0].mean() > before[before > 0].mean() + 0.03
    torch.testing.assert_close(ious, after)
    assert (refined[before == 0] == boxes[before == 0]).all()  # no gradient, no step


def test_the_ious_are_those_of_the_boxes_returned():
    for settings in SETTINGS:
        boxes, targets = case(seed=2)
        refined, ious = refine_boxes(lambda moved, targets=targets: bump_of_rows(moved, targets), boxes, **settings)
        torch.testing.assert_close(ious, bump_of_rows(refined, targets), rtol=0, atol=0)


class Counted(torch.autograd.Function):
    """The identity; counts backward passes."""

    backward_passes = 0

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        Counted.backward_passes += 1
        return gradient


@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_t_steps_cost_t_plus_1_forward_and_t_backward_passes_of_all_boxes(num_steps):
    boxes, targets = case(seed=3)
    calls = []
    Counted.backward_passes = 0

    def predict_iou(moved):
        calls.append(moved.detach().clone())
        return Counted.apply(iou_of_rows(moved, targets))

    refined, _ = refine_boxes(predict_iou, boxes, num_steps=num_steps)
    assert len(calls) == num_steps + 1
    assert Counted.backward_passes == num_steps
    assert all(call.shape == boxes.shape for call in calls)
    assert torch.equal(calls[0], boxes)
    assert torch.equal(calls[-1], refined)
    # The order of boxes is kept: each box stays near its start.
    assert all((iou_of_rows(call, boxes)[:-3] > 0.5).all() for call in calls)


def test_nothing_is_computed_after_the_last_box_has_stopped():
    boxes, targets = case(seed=4)
    calls = []

    def predict_iou(moved):
        calls.append(moved)
        return iou_of_rows(moved, targets)

    refine_boxes(predict_iou, boxes, early_stop=10.0)  # every box stops at its first step
    assert len(calls) == 2


def test_a_stopped_box_no_longer_moves():
    targets = torch.tensor([[20.0, 20.0, 60.0, 60.0]] * 2, dtype=torch.float64)
    boxes = targets + torch.tensor([[0.01] * 4, [12.0] * 4], dtype=torch.float64)  # the first overshoots
    calls = []

    def predict_iou(moved):
        calls.append(moved.detach().clone())
        return iou_of_rows(moved, targets)

    refine_boxes(predict_iou, boxes, num_steps=4)
    assert len(calls) == 5
    assert not torch.equal(calls[1][0], calls[0][0])
    assert all(torch.equal(call[0], calls[1][0]) for call in calls[2:])
    assert all(not torch.equal(call[1], last[1]) for call, last in zip(calls[1:], calls, strict=False))


def test_lambda_zero_changes_nothing():
    boxes, targets = case(seed=5)
    refined, ious = refine_boxes(lambda moved: iou_of_rows(moved, targets), boxes, step_size=0.0)
    assert torch.equal(refined, boxes)
    assert torch.equal(ious, iou_of_rows(boxes, targets))


@pytest.mark.parametrize("num_steps", [0, 5])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_input_is_not_modified_and_the_output_is_detached(num_steps, requires_grad):
    boxes, targets = case(seed=6)
    boxes.requires_grad_(requires_grad)
    copy = boxes.detach().clone()
    refined, ious = refine_boxes(lambda moved: iou_of_rows(moved, targets), boxes, num_steps=num_steps)
    assert torch.equal(boxes, copy)
    assert boxes.grad is None and boxes.requires_grad == requires_grad
    assert refined.data_ptr() != boxes.data_ptr()
    assert not refined.requires_grad and not ious.requires_grad


def test_parameters_of_the_objective_get_no_gradient():
    boxes, targets = case(seed=6)
    targets.requires_grad_()
    _, ious = refine_boxes(lambda moved: iou_of_rows(moved, targets), boxes)
    assert targets.grad is None
    assert not ious.requires_grad


def test_no_boxes():
    refined, ious = refine_boxes(lambda moved: moved.sum(1), torch.zeros(0, 4))
    assert refined.shape == (0, 4)
    assert ious.shape == (0,)


def test_a_nan_gradient_does_not_move_its_box():
    boxes, targets = case(seed=7)
    bad = torch.arange(len(boxes)) % 3 == 0
    rows = bad.nonzero()[:, 0]

    def predict_iou(moved):
        root = (0 * moved[rows].sum(1)).sqrt()  # 0, with a slope of infinity times 0
        return iou_of_rows(moved, targets).index_add(0, rows, root)

    refined, ious = refine_boxes(predict_iou, boxes)
    expected, expected_ious = refine_boxes(lambda moved: iou_of_rows(moved, targets), boxes)
    assert torch.isfinite(refined).all() and torch.isfinite(ious).all()
    assert torch.equal(refined[bad], boxes[bad])
    assert torch.equal(ious[bad], iou_of_rows(boxes, targets)[bad])
    assert torch.equal(refined[~bad], expected[~bad])
    assert torch.equal(ious[~bad], expected_ious[~bad])


def test_works_under_no_grad():
    boxes, targets = case(seed=8)
    expected = refine_boxes(lambda moved: iou_of_rows(moved, targets), boxes)
    with torch.no_grad():
        found = refine_boxes(lambda moved: iou_of_rows(moved, targets), boxes)
        assert not torch.is_grad_enabled()
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert not torch.equal(found[0], boxes)


def test_the_dtype_of_the_boxes_is_kept():
    boxes, targets = case(seed=9)
    refined, ious = refine_boxes(lambda moved: iou_of_rows(moved, targets.float()), boxes.float())
    assert refined.dtype == ious.dtype == torch.float32


def test_on_every_device(device):
    boxes, targets = case(seed=10)
    expected, expected_ious = refine_boxes(lambda moved: bump_of_rows(moved, targets), boxes, step_size=2.0)
    there = targets.to(device)
    refined, ious = refine_boxes(lambda moved: bump_of_rows(moved, there), boxes.to(device), step_size=2.0)
    assert refined.device.type == ious.device.type == device.type
    torch.testing.assert_close(refined.cpu(), expected)
    torch.testing.assert_close(ious.cpu(), expected_ious)


def test_relative_coordinates_follow_their_gradient():
    """u = x / w moves by lambda * dIoU/du, and dIoU/du = w * dIoU/dx."""
    boxes, targets = case(seed=7)
    boxes.requires_grad_()
    (gradient,) = torch.autograd.grad(iou_of_rows(boxes, targets).sum(), boxes)
    sizes = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2).detach()
    expected = sizes * (boxes.detach() / sizes + 0.01 * sizes * gradient)
    settings = {"num_steps": 1, "step_size": 0.01, "coordinates": "relative"}
    refined, _ = refine_boxes(lambda moved: iou_of_rows(moved, targets), boxes, **settings)
    torch.testing.assert_close(refined, expected)


def test_center_and_size_follow_their_gradient():
    """For each box u = (x / w, y / h, log w, log h), with the gradient by finite differences in u."""
    boxes, targets = case(seed=10)
    options = {"num_steps": 1, "step_size": 0.02, "size_step_size": 0.05, "coordinates": "center_size"}
    refined, _ = refine_boxes(lambda moved: bump_of_rows(moved, targets), boxes, **options, early_stop=0.0)
    of_one, _ = OBJECTIVES["bump"]
    for row, (box, target) in enumerate(zip(boxes.tolist(), targets.tolist(), strict=True)):
        width, height = box[2] - box[0], box[3] - box[1]
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)

        def at(u, width=width, height=height, center=center):
            x, y = center[0] + u[0] * width, center[1] + u[1] * height
            w, h = width * math.exp(u[2]), height * math.exp(u[3])
            return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]

        step = []
        for axis, length in enumerate((0.02, 0.02, 0.05, 0.05)):
            ahead, behind = [0.0] * 4, [0.0] * 4
            ahead[axis], behind[axis] = 1e-5, -1e-5
            slope = (of_one(at(ahead), target)[0] - of_one(at(behind), target)[0]) / 2e-5
            step.append(length * slope)
        assert refined[row].tolist() == pytest.approx(at(step), abs=1e-5), row


def test_the_best_box_on_the_path_is_returned():
    boxes, targets = case(seed=8)
    settings = {"step_size": 4.0, "num_steps": 6, "early_stop": 0.0, "degeneration": -1.0}

    def predict_iou(moved):
        return iou_of_rows(moved, targets)

    path = list(refinement_path(predict_iou, boxes, RefinementOptions(**settings)))
    assert len(path) == 7
    ious = torch.stack([iou for _, iou, _ in path])
    refined, best = refine_boxes(predict_iou, boxes, **settings, step_policy="best")
    assert torch.equal(best, ious.amax(0)) and (best > ious[-1]).any() and (best > ious[0]).any()
    torch.testing.assert_close(predict_iou(refined), best, rtol=0, atol=0)


def test_backtracking_undoes_and_halves_a_step_that_lowers_the_iou():
    def backtracking(of_one, box, target, *, step_size, num_steps, early_stop):
        """Refine one box in plain Python."""
        iou, gradient = of_one(box, target)
        for _ in range(num_steps):
            size = [box[2] - box[0], box[3] - box[1]] * 2
            moved = [x + step_size * g * s for x, g, s in zip(box, gradient, size, strict=True)]
            if moved[2] <= moved[0] or moved[3] <= moved[1]:
                break
            new_iou, new_gradient = of_one(moved, target)
            if new_iou > iou:
                small = new_iou - iou < early_stop
                box, iou, gradient = moved, new_iou, new_gradient
                if small:
                    break
            else:
                step_size /= 2
        return box, iou

    settings = {"step_size": 6.0, "num_steps": 8, "early_stop": 1e-3}
    for of_one, of_rows in OBJECTIVES.values():
        boxes, targets = case(seed=9)
        refined, ious = refine_boxes(
            lambda moved, of_rows=of_rows, targets=targets: of_rows(moved, targets),
            boxes,
            **settings,
            step_policy="backtracking",
        )
        assert (ious >= of_rows(boxes, targets)).all()
        for row, (box, target) in enumerate(zip(boxes.tolist(), targets.tolist(), strict=True)):
            expected, expected_iou = backtracking(of_one, box, target, **settings)
            assert refined[row].tolist() == pytest.approx(expected, abs=1e-8), row
            assert ious[row].item() == pytest.approx(expected_iou, abs=1e-8), row


@pytest.mark.parametrize(
    ("unknown", "message"),
    [
        ({"coordinates": "px"}, "coordinates must be one of pixels, relative, center_size; got 'px'"),
        ({"step_policy": "some"}, "step_policy must be one of every, best, backtracking; got 'some'"),
    ],
)
def test_errors_name_the_argument(unknown, message):
    """Callers in Python need not know the configuration's keys."""
    with pytest.raises(OptionError) as raised:
        refine_boxes(lambda moved: moved.sum(1), torch.zeros(1, 4), **unknown)
    assert str(raised.value) == message


def test_an_unknown_option():
    with pytest.raises(TypeError, match="'lamda'"):
        refine_boxes(lambda moved: moved.sum(1), torch.zeros(1, 4), lamda=0.5)
