"""A refiner with a tiny random detector, and the command with the detector of a finished run."""

import json
from dataclasses import replace

import pytest
import torch
from four_boxes import CATEGORIES

from iounet import IoURefiner
from iounet.commands import refine as command
from iounet.training.checkpoint import save_checkpoint


@pytest.fixture(scope="session")
def image():
    """An image of 80 x 50 pixels, float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 7, 10, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(50, 80), mode="nearest")[0]


@pytest.fixture(scope="session")
def checkpoint(build_tiny, tiny_cfg, tmp_path_factory):
    """A tiny detector whose class scores and predicted IoUs differ between boxes."""
    detector = build_tiny()
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.weight.mul_(20)
        detector.iou_head.predictor.weight.mul_(20)
    path = tmp_path_factory.mktemp("refiner") / "model_final.pth"
    save_checkpoint(path, model=detector.state_dict(), categories=CATEGORIES, config=tiny_cfg().dump())
    return path


@pytest.fixture
def refiner(checkpoint):
    return IoURefiner.from_checkpoint(checkpoint)


@pytest.fixture
def set_options(refiner):
    """A function that sets fields of the RefinementOptions of ``refiner``."""

    def set_options(**options):
        postprocessing = refiner.detector.postprocessing
        refiner.detector.postprocessing = replace(
            postprocessing, refinement=replace(postprocessing.refinement, **options)
        )

    return set_options


@pytest.fixture(scope="session")
def weights(trained):
    return trained / "model_final.pth"


@pytest.fixture
def write(tmp_path):
    """A function: content (JSON or text), name → path of a new file with this content."""

    def write(content, name="detections.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.fixture
def refine(call, weights, dataset, tmp_path):
    """A function that runs the command on detections of the validation images.

    It returns the command's exit message or, on success, the refined results.
    """

    def refine(detections, *more, images=None, output=tmp_path / "out"):
        message = call(
            command, "--weights", weights, "--images", images or dataset / "val", "--output", output,
            "--detections", detections, *more,
        )  # fmt: skip
        return message if message is not None else json.loads((output / "detections.json").read_text())

    return refine


@pytest.fixture
def detect(call, weights, tmp_path):
    """A function that runs the command on images only.

    It returns the command's exit message or, on success, the results of the refiner's own detector.
    """

    def detect(*images, output=tmp_path / "out", more=()):
        message = call(command, "--weights", weights, "--images", *images, "--output", output, *more)
        return message if message is not None else json.loads((output / "detections.json").read_text())

    return detect
