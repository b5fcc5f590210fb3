"""Localisation errors, computed by hand and by TIDE's own code (tidecv 1.0.1)."""

import pytest
import torch

from iounet import Detections
from iounet.evaluation import CocoEvaluator
from iounet.evaluation.localization import laece, match_greedily, without_localization_errors
from iounet.evaluation.predictions import as_results

OBJECTS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
LABELS = torch.tensor([1, 2])


def detections(*rows):
    """Make detections from rows (x1, y1, x2, y2, label, score)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4].long(), table[:, 5], table[:, 5])


def test_matching_is_by_score_and_uses_each_object_once():
    found = detections((0, 0, 10, 9, 1, 0.5), (0, 0, 10, 8, 1, 0.9), (20, 0, 30, 10, 1, 0.8), (20, 0, 30, 4, 2, 0.7))
    objects, ious = match_greedily(found, OBJECTS, LABELS, 0.5)
    assert objects.tolist() == [-1, 0, -1, -1]  # object taken; matched; other class; IoU too low
    assert ious.tolist() == pytest.approx([0, 0.8, 0, 0])
    assert match_greedily(found, OBJECTS, LABELS, 0.4).objects.tolist() == [-1, 0, -1, 1]
    assert match_greedily(found, OBJECTS[:0], LABELS[:0], 0.5).objects.tolist() == [-1] * 4


def test_the_highest_scoring_error_of_a_free_object_is_moved_and_the_others_are_removed():
    found = detections(
        (0, 0, 10, 4, 1, 0.6),  # an error with a lower score than the next: removed
        (0, 0, 10, 3, 1, 0.9),  # the highest-scoring error of its object: moved onto it
        (20, 0, 30, 9, 2, 0.8),  # matched
        (20, 0, 30, 3, 2, 0.7),  # an error of a matched object: removed
        (0, 0, 10, 0.5, 1, 0.5),  # background
        (60, 0, 70, 10, 1, 0.4),  # background
    )
    mended = without_localization_errors(found, OBJECTS, LABELS, 0.5)
    assert mended.boxes.tolist() == [[0, 0, 10, 10], [20, 0, 30, 9], [0, 0, 10, 0.5], [60, 0, 70, 10]]
    assert mended.scores.tolist() == pytest.approx([0.9, 0.8, 0.5, 0.4])
    assert len(without_localization_errors(found, OBJECTS[:0], LABELS[:0], 0.5)) == 6
    assert len(without_localization_errors(found[:0], OBJECTS, LABELS, 0.5)) == 0


def test_the_cost_of_localization_errors_equals_tides():
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    images, annotations, found, mended = [], [], [], []
    for image_id in range(60):
        count = int(torch.randint(1, 5, (1,), generator=generator))
        corners = 60 * uniform(count, 2)
        objects = torch.cat([corners, corners + 15 + 30 * uniform(count, 2)], 1)
        labels = torch.randint(1, 4, (count,), generator=generator)
        of_object = torch.randint(0, count, (12,), generator=generator)
        boxes = objects[of_object] + 8 * torch.randn(12, 4, generator=generator)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 3)
        right = uniform(12) < 0.85
        predicted = torch.where(right, labels[of_object], torch.randint(1, 4, (12,), generator=generator))
        scores = uniform(12)
        of_image = Detections(boxes, predicted, scores, scores)
        found.append((image_id, of_image))
        mended.append((image_id, without_localization_errors(of_image, objects, labels, 0.5)))
        images.append({"id": image_id, "width": 200, "height": 200})
        for (x1, y1, x2, y2), label in zip(objects.tolist(), labels.tolist(), strict=True):
            annotations.append({"image_id": image_id, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    categories = [{"id": label, "name": str(label)} for label in (1, 2, 3)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    evaluator = CocoEvaluator(truth, by_size=False)
    before, after = (evaluator(as_results(which, [1, 2, 3]))["AP50"] for which in (found, mended))
    assert before == pytest.approx(17.770426, abs=1e-4)  # AP of tidecv
    assert after - before == pytest.approx(51.719095, abs=1e-4)  # tidecv's dAP of "Loc"


def test_laece_by_hand():
    # Class 1 has a group at 0.9 with a mean IoU of 0.4, and a correct group at 0.1. Class 2 is correct.
    confidences = torch.tensor([0.9, 0.9, 0.1, 0.7])
    labels = torch.tensor([1, 1, 1, 2])
    ious = torch.tensor([0.8, 0.0, 0.1, 0.7])
    assert laece(confidences, labels, ious) == pytest.approx(((2 * 0.5) / 3 + 0) / 2)


def test_laece_without_detections_is_nan():
    nothing = torch.zeros(0)
    assert laece(nothing, nothing, nothing) != laece(nothing, nothing, nothing)
