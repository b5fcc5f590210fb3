"""iounet-train on a data.yaml of YOLO labels, without conversion."""

import json
import re

import pytest
import yaml

from iounet.commands import train
from iounet.training.checkpoint import load_checkpoint


@pytest.fixture
def data_yaml(dataset, tmp_path):
    """The synthetic set with YOLO labels; one line per training image is not a label."""
    root, names = tmp_path / "yolo", []
    for split in ("train", "val"):
        content = json.loads((dataset / "annotations" / f"{split}.json").read_text())
        names = [category["name"] for category in content["categories"]]
        indices = {category["id"]: index for index, category in enumerate(content["categories"])}
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "images" / split).symlink_to(dataset / split, target_is_directory=True)
        (root / "labels" / split).mkdir(parents=True)
        for image in content["images"]:
            lines = []
            for item in content["annotations"]:
                if item["image_id"] == image["id"]:
                    x, y, w, h = item["bbox"]
                    center = (x + w / 2) / image["width"], (y + h / 2) / image["height"]
                    numbers = *center, w / image["width"], h / image["height"]
                    lines.append(" ".join(map(str, (indices[item["category_id"]], *numbers))))
            name = image["file_name"].rpartition(".")[0]
            (root / "labels" / split / f"{name}.txt").write_text("\n".join(lines + ["0 1"] * (split == "train")))
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": names}))
    return root / "data.yaml"


@pytest.mark.slow
def test_a_data_yaml_is_enough(data_yaml, call, arguments, tmp_path, capsys):
    labels = {f"DATA.{split}_{what}": "" for split in ("TRAIN", "VAL") for what in ("ANNOTATIONS", "IMAGES")}
    labels |= {"DATA.TRAIN_ANNOTATIONS": data_yaml, "DATA.VAL_ANNOTATIONS": data_yaml}
    settings = labels | {"SOLVER.MAX_ITERATIONS": 2, "SOLVER.STEPS": "[]"}
    assert call(train, *arguments(tmp_path / "run", settings)) is None
    shown = capsys.readouterr().out
    name = re.escape(str(data_yaml))
    of_train = rf"{name} \(train\): 6 images, \d+ objects, 5 classes; 6 left out: line of the wrong length; "
    assert re.search(of_train, shown)
    assert f"`python -m iounet.data.convert {data_yaml} --split train` lists them" in shown
    checkpoint = load_checkpoint(tmp_path / "run" / "model_final.pth")
    assert [category["id"] for category in checkpoint["categories"]] == [1, 2, 3, 4, 5]
    assert re.search(rf"\n{name} \(val\): 5 images, \d+ objects, 5 classes\n", shown)

    weights = {"MODEL.WEIGHTS": tmp_path / "run" / "model_final.pth", "DATA.VAL_SPLIT": "train"}
    assert call(train, *arguments(tmp_path / "evaluated", settings | weights), "--eval-only") is None
    assert re.search(rf"\n{of_train}", capsys.readouterr().out)

    message = call(train, *arguments(tmp_path / "same", settings | {"DATA.VAL_SPLIT": "train"}))
    assert "training and validation would use the same images" in message
