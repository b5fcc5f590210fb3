"""A refiner whose steps can be told apart: the tiny detector, random, but opinionated and in a hurry."""

from dataclasses import replace

import pytest
import torch

from iounet import IoURefiner

CATEGORIES = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}]


@pytest.fixture(scope="session")
def refiner(build_tiny):
    detector = build_tiny()
    with torch.no_grad():
        detector.iou_head.predictor.weight.mul_(1000)
    options = replace(detector.postprocessing.refinement, num_steps=6, step_size=1.0, early_stop=0.0, degeneration=-1.0)
    detector.postprocessing = replace(detector.postprocessing, refinement=options)
    return IoURefiner(detector, CATEGORIES)
