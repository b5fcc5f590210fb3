"""Train with configs/coco_*.yaml on a folder laid out like COCO 2017, with fewer and smaller images."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50, resnet101
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from iounet.commands import train
from iounet.config import load_config
from iounet.data.synthetic import make_synthetic

ROOT = Path(__file__).parents[2]
# Ids of the 80 categories in instances_*2017.json; ten numbers are unused.
COCO_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
RECIPES = sorted(path.name for path in (ROOT / "configs").glob("coco_*.yaml"))


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    """A folder with the files in datasets/coco/ and weights/ that the configs refer to."""
    folder = tmp_path_factory.mktemp("coco_folder")
    source = make_synthetic(folder / "source", num_train=4, num_val=2, num_test=1, image_size=(96, 128), seed=0)
    coco = folder / "datasets" / "coco"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(source / split, coco / f"{split}2017")
        content = json.loads((source / "annotations" / f"{split}.json").read_text())
        used = [category["id"] for category in content["categories"]]
        # The synthetic categories get COCO's last ids.
        new_ids = dict(zip(used, COCO_IDS[-len(used) :], strict=True))
        for annotation in content["annotations"]:
            annotation["category_id"] = new_ids[annotation["category_id"]]
        content["categories"] = [{"id": id_, "name": f"class {id_}", "supercategory": "thing"} for id_ in COCO_IDS]
        (coco / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    weights = folder / "weights"
    weights.mkdir()
    torch.manual_seed(0)
    # Frozen batch norms do not adapt to random weights; without zero_init_residual, the activations would overflow.
    torch.save(resnet50(zero_init_residual=True).state_dict(), weights / "resnet50-0676ba61.pth")
    torch.save(resnet101(zero_init_residual=True).state_dict(), weights / "resnet101-63fe2227.pth")
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save(detector.state_dict(), weights / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_trains_and_evaluates(recipe, coco_folder, call, read_metrics, monkeypatch):
    monkeypatch.chdir(coco_folder)
    smaller = {
        "INPUT.MIN_SIZE": 64,
        "SOLVER.GLOBAL_BATCH_SIZE": 2,
        "SOLVER.MAX_ITERATIONS": 2,
        "SOLVER.STEPS": "[1]",
        "SOLVER.LOG_PERIOD": 1,
        "DATA.NUM_WORKERS": 0,
    }
    overrides = [word for pair in smaller.items() for word in pair]
    assert call(train, "--config-file", ROOT / "configs" / recipe, *overrides) is None
    output = coco_folder / load_config(ROOT / "configs" / recipe).OUTPUT_DIR
    training, _ = read_metrics(output)
    assert [row["iteration"] for row in training] == [1, 2]
    assert set(json.loads((output / "evaluation.json").read_text())["table"]) >= {"greedy NMS", "IoU-guided NMS"}
    assert torch.load(output / "model_final.pth", weights_only=True)["model"]["iou_head.predictor.bias"].shape == (81,)
    shutil.rmtree(output)  # hundreds of MB
