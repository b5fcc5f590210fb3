import pytest
import torch
from PIL import Image

from iounet.data import CocoDataset
from iounet.evaluation.landscape import GRID, landscape, landscape_figure

pytestmark = pytest.mark.usefixtures("one_thread")


def test_planes_around_an_object(build_tiny, dataset, tmp_path):
    data = CocoDataset(dataset / "annotations" / "val.json", dataset / "val")
    image, target = data[0]
    settings = {"MODEL.NUM_CLASSES": 5, "MODEL.ENERGY_HEAD.LOSS": "nce", "TEST.REFINE.OBJECTIVE": "energy"}
    detector = build_tiny(settings)
    seen = landscape(detector, image, target["boxes"][0], int(target["labels"][0]))
    middle = GRID // 2
    assert seen.true[middle, middle].item() == pytest.approx(1)
    assert seen.true.argmax().item() == middle * GRID + middle
    # A box that is about twice as wide and not shifted has an IoU of about one half.
    assert seen.true[-1, middle].item() == pytest.approx(1 / torch.tensor(0.7).exp().item(), abs=1e-4)
    assert seen.energy.max() == 0 and seen.energy.shape == seen.predicted.shape == (GRID, GRID)
    assert ((seen.predicted >= -0.5) & (seen.predicted <= 1.5)).all()
    assert seen.path.shape == (21, 4)
    landscape_figure(seen, tmp_path / "landscape.png")
    with Image.open(tmp_path / "landscape.png") as picture:
        assert picture.size[0] == 1650
