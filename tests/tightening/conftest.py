"""Six labels on three small images, and a refiner with random weights that knows two of their three classes."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

from iounet import IoURefiner
from iounet.data.labels import LabeledBox, LabeledImage, LabelSet
from iounet.training.checkpoint import save_checkpoint

WIDTH, HEIGHT = 80, 50


@dataclass(frozen=True)
class MemoryLabels(LabelSet):
    """Labels in memory. Their copy is a JSON file of the moved boxes."""

    def write_copy(self, output, boxes):
        output.joinpath("boxes.json").write_text(json.dumps(boxes))
        return [output]


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Three PNG files of 80 x 50 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    paths = [folder / f"{name}.png" for name in ("one", "two", "three")]
    for path in paths:
        coarse = torch.rand(1, 3, 7, 10, generator=generator)
        image = torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="nearest")[0]
        to_pil_image(image).save(path)
    return paths


@pytest.fixture
def labels(photos):
    images = [LabeledImage(path.name, path, WIDTH, HEIGHT) for path in photos]
    boxes = [
        LabeledBox("first", 0, "cross", (8.0, 9.0, 40.0, 44.0)),
        LabeledBox("second", 2, "Star", (30.0, 10.0, 75.0, 48.0)),
        LabeledBox("third", 0, "star", (20.0, 20.0, 60.0, 30.0)),
        LabeledBox("stranger", 1, "moon", (2.0, 3.0, 22.0, 25.0)),
        LabeledBox("many", 1, "cross", (12.0, 13.0, 62.0, 45.0), crowd=True),
        LabeledBox("outline", 2, "cross", (2.0, 3.0, 22.0, 25.0), movable=False),
    ]
    return MemoryLabels(Path("/nowhere/labels"), ["cross", "star", "Star", "moon"], images, boxes, [])


@pytest.fixture(scope="session")
def checkpoint(build_tiny, tiny_cfg, tmp_path_factory):
    """A tiny detector of crosses, stars and triangles, whose predicted IoUs differ from box to box."""
    detector = build_tiny()
    with torch.no_grad():
        detector.iou_head.predictor.weight.mul_(20)
    path = tmp_path_factory.mktemp("refiner") / "model_final.pth"
    categories = [{"id": 3, "name": "cross"}, {"id": 7, "name": "star"}, {"id": 90, "name": "triangle"}]
    save_checkpoint(
        path, model=detector.state_dict(), categories=categories, config=tiny_cfg({"TEST.REFINE.STEP_SIZE": 20}).dump()
    )
    return path


@pytest.fixture
def refiner(checkpoint, one_thread):
    return IoURefiner.from_checkpoint(checkpoint)


@pytest.fixture
def with_damaged_image(labels, tmp_path):
    """The same labels with the first image truncated to half of its bytes."""
    damaged = tmp_path / "damaged.png"
    data = labels.images[0].path.read_bytes()
    damaged.write_bytes(data[: len(data) // 2])
    return replace(labels, images=[replace(labels.images[0], path=damaged), *labels.images[1:]])
