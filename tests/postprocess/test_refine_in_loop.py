"""Algorithm 2 in torch.while_loop, as in exported programs, against the loop in Python."""

import pytest
import torch
from torch import nn

from iounet.postprocess import RefinementOptions, Stop
from iounet.postprocess.refinement import refine_in_loop, refinement_path

ENDS = torch.tensor([80.0, 60.0, 80.0, 60.0]).double()
TARGET = torch.tensor([20.0, 15.0, 55.0, 40.0]).double()


def value(boxes):
    """Objective that is 1 at the target and falls with the distance of each edge from it."""
    return torch.exp(-((boxes - TARGET) / 25).square().sum(1))


def value_and_gradient(boxes):
    values = value(boxes)
    return values, -2 * (boxes - TARGET) / 25**2 * values[:, None]


class Refinement(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, boxes):
        ends = ENDS.expand_as(boxes)
        before, refined = refine_in_loop(value_and_gradient, boxes, self.options, image_ends=ends)
        return before, *refined


def some_boxes():
    near = TARGET + torch.tensor([[4.0, -3, 5, 2], [-9, 6, 8, -7], [0, 0, 0, 0], [15, 10, -15, -9]])
    # Some boxes lie at the border of the image, where a clipped edge passes half the gradient. Others lie far from the
    # target, where changes are smaller than early_stop.
    other = torch.tensor([[0.0, 0, 80, 60], [0, 10, 50, 60], [70, 50, 79, 59]]).double()
    return torch.cat([near, other])


GENTLE = {"pixels": 3.0, "relative": 0.1, "center_size": 0.3}


@pytest.mark.parametrize("step_policy", ["every", "best", "backtracking"])
@pytest.mark.parametrize("coordinates", ["pixels", "relative", "center_size"])
@pytest.mark.parametrize("length", [1, 8])  # factor of the step size; 8 is far too long
def test_takes_the_same_steps(step_policy, coordinates, length):
    step_size = GENTLE[coordinates] * length
    options = RefinementOptions(
        num_steps=6,
        step_size=step_size,
        size_step_size=step_size,
        coordinates=coordinates,
        step_policy=step_policy,
        early_stop=0.004,
    )
    boxes = some_boxes()
    count = torch.export.Dim("count")
    program = torch.export.export(Refinement(options), (boxes,), dynamic_shapes=({0: count},)).module()
    for given in (boxes, boxes[:1], boxes[:0]):
        first, *_, expected = refinement_path(value, given, options, image_ends=ENDS.expand_as(given))
        before, moved, values, stops = program(given)
        torch.testing.assert_close(before, first.values)
        torch.testing.assert_close(moved, expected.boxes)
        torch.testing.assert_close(values, expected.values)
        assert torch.equal(stops, expected.stops)
    *_, all_refined = refinement_path(value, boxes, options, image_ends=ENDS.expand_as(boxes))
    assert (all_refined.boxes != boxes).any() and (all_refined.stops == Stop.CONVERGED).any()


def test_without_a_step():
    options = RefinementOptions(num_steps=0)
    program = torch.export.export(Refinement(options), (some_boxes(),)).module()
    before, moved, values, stops = program(some_boxes())
    assert torch.equal(moved, some_boxes()) and torch.equal(before, values) and not stops.any()


def test_ends_when_all_boxes_have_stopped():
    options = RefinementOptions(num_steps=10**9, step_size=3.0, early_stop=0.01)
    program = torch.export.export(Refinement(options), (some_boxes(),)).module()
    *_, stops = program(some_boxes())
    assert (stops != Stop.STEPS).all()
