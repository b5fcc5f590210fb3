"""Refinement of boxes that lie in images."""

import pytest
import torch
from objectives import bump_of_rows, case

from iounet.postprocess import RefinementOptions, Stop, refinement_path


class TestInImages:
    """Boxes are clipped to their images, and reset to their start if they leave."""

    ENDS = torch.tensor([[60.0, 40.0, 60.0, 40.0]], dtype=torch.float64)

    def path(self, box, predict_iou, **options):
        boxes = torch.tensor([box], dtype=torch.float64)
        return list(refinement_path(predict_iou, boxes, RefinementOptions(**options), image_ends=self.ENDS))

    def test_the_objective_is_evaluated_at_the_clipped_box(self):
        given = []

        def predict_iou(boxes):
            given.append(boxes.detach().clone())
            return boxes[:, 2] / 100  # moves boxes right

        path = self.path([10, 10, 59, 30], predict_iou, step_size=50.0, num_steps=2, degeneration=-1.0, early_stop=0)
        assert given[1].tolist() == [[10, 10, 60, 30]]  # moved by 50 * 0.01 * 49 pixels, beyond the border
        assert [refined.boxes[0, 2].item() for refined in path] == [59, 60, 60]
        assert [refined.values.item() for refined in path] == pytest.approx([0.59, 0.6, 0.6])

    def test_a_box_that_leaves_is_reset_to_its_start(self):
        def predict_iou(boxes):
            return -boxes.sum(1) / 100  # moves boxes up and left

        path = self.path([1, 1, 9, 9], predict_iou, step_size=200.0, num_steps=1)
        before, after = path
        assert torch.equal(after.boxes, before.boxes) and torch.equal(after.values, before.values)
        assert before.stops.tolist() == [Stop.STEPS] and after.stops.tolist() == [Stop.LEFT_IMAGE]

    def test_a_box_inside_its_image_moves_as_without_an_image(self):
        boxes, targets = case(seed=12)

        def predict_iou(moved):
            return bump_of_rows(moved, targets)

        ends = torch.full((len(boxes), 4), 1e4, dtype=torch.float64)
        options = RefinementOptions(step_size=2.0)
        for free, bounded in zip(
            refinement_path(predict_iou, boxes, options),
            refinement_path(predict_iou, boxes, options, image_ends=ends),
            strict=True,
        ):
            assert all(torch.equal(a, b) for a, b in zip(free, bounded, strict=True))
