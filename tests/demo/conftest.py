"""A refiner with random weights whose steps differ visibly, and photos of noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.fixture(scope="session")
def noise_photo():
    """A function from a seed to a grey image of noise, 64 pixels wide and 48 high."""

    def make(seed=0):
        return Image.fromarray(np.random.default_rng(seed).integers(256, size=(48, 64), dtype=np.uint8))

    return make
