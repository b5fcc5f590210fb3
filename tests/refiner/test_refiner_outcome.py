"""The outcome of each box: predicted IoUs, stop and path."""

import pytest
import torch
from four_boxes import BOXES, LABELS, SCORES, hundred_boxes

from iounet.postprocess import Stop

pytestmark = pytest.mark.usefixtures("one_thread")


def test_ious_before_and_after_agree_with_the_boxes(refiner, image):
    refined = refiner.refine(image, BOXES, LABELS, SCORES)
    torch.testing.assert_close(refined.ious_before, refiner.score(image, BOXES, LABELS))
    torch.testing.assert_close(refined.ious, refiner.score(image, refined.boxes, LABELS), rtol=0, atol=1e-4)
    assert refined.index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        ({"early_stop": 0.0, "degeneration": -1.0, "step_size": 1e-3}, {Stop.STEPS}),
        ({"early_stop": 1.0}, {Stop.CONVERGED}),
        ({"early_stop": 0.0, "degeneration": 0.0, "step_size": 200.0, "num_steps": 20}, {Stop.STEPS, Stop.FELL}),
    ],
)
def test_the_reason_to_stop(refiner, set_options, image, options, stops):
    set_options(**options)
    assert set(refiner.refine(image, BOXES, LABELS, SCORES).stops.tolist()) == stops


def test_boxes_that_collapse_leave_or_lie_outside(refiner, set_options, image):
    set_options(step_size=1e6, early_stop=0.0, degeneration=-1.0)
    boxes = hundred_boxes()
    boxes[0] = torch.tensor([90.0, 10.0, 99.0, 20.0])
    refined = refiner.refine(image, boxes, torch.ones(100, dtype=torch.int64))
    assert refined.stops[0] == Stop.UNPLACED
    assert {Stop.COLLAPSED, Stop.LEFT_IMAGE} <= set(refined.stops.tolist())
    unmoved = (refined.boxes == boxes).all(1)
    assert unmoved[refined.stops == Stop.LEFT_IMAGE].all()
    sizes = refined.boxes[:, 2:] - refined.boxes[:, :2]
    assert (sizes > 0).all() and (refined.boxes[1:] >= 0).all() and (refined.boxes[1:, 2] <= 80).all()


def test_without_steps_boxes_are_bitwise_equal(refiner, set_options, image):
    set_options(step_size=0.0)
    odd = BOXES + torch.pi / 10
    assert torch.equal(refiner.refine(image, odd, LABELS, SCORES).boxes, odd)


def test_the_path_ends_at_the_refined_boxes(refiner, image):
    boxes = torch.cat([BOXES, torch.tensor([[90.0, 10.0, 99.0, 20.0]])])
    path = refiner.refinement_path(image, boxes, [2, 1, 3, 2, 1])
    assert path.shape == (6, 5, 4)
    torch.testing.assert_close(path[0], boxes)
    refined = refiner.refine(image, boxes, [2, 1, 3, 2, 1])
    torch.testing.assert_close(path[-1], refined.boxes)
    assert torch.equal(path[:, 4], boxes[4].expand(6, 4))
