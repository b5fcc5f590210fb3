"""Run the examples as users do, with one training step."""

import json
import re

import pytest
import torch

from examples import tighten_photos, torchvision_detectors
from iounet.commands import refine
from iounet.training.checkpoint import load_checkpoint


@pytest.mark.parametrize("detector", ["fasterrcnn", "maskrcnn", "retinanet", "fcos"])
def test_boxes_of_torchvision_detectors_are_refined(detector, dataset, trained, call, tmp_path, capsys):
    output = tmp_path / detector
    with torch.random.fork_rng(devices=[]):
        assert call(torchvision_detectors, detector, "--data", dataset, "--output", output, "--iterations", 1) is None
    found = json.loads((output / "detections.json").read_text())
    annotations = dataset / "annotations" / "test.json"
    message = call(
        refine, "--weights", trained / "model_final.pth", "--images", dataset / "test",
        "--detections", output / "detections.json", "--annotations", annotations, "--output", output / "refined",
    )  # fmt: skip
    assert message is None
    refined = json.loads((output / "refined" / "detections.json").read_text())
    assert [(entry["image_id"], entry["category_id"], entry["score"]) for entry in refined] == [
        (entry["image_id"], entry["category_id"], entry["score"]) for entry in found
    ]
    if found:  # some detectors find nothing after one step of training
        assert [entry["bbox"] for entry in refined] != [entry["bbox"] for entry in found]
    shown = capsys.readouterr().out
    assert "| before" in shown and "| refined" in shown


@pytest.mark.filterwarnings("error")
def test_loose_labels_of_photographs_tighten(call, tmp_path, monkeypatch, capsys):
    """The committed model tightens boxes on photographs that it was not trained on, as the README says."""
    monkeypatch.setattr(tighten_photos, "OUTPUT", tmp_path / "try")
    assert call(tighten_photos) is None
    *rows, mean = capsys.readouterr().out.split("predicted IoU\n")[-1].splitlines()
    assert len(rows) == 23 and mean.startswith("mean (")
    better, (before, after), (_, predicted) = (
        re.search(r"\((\d+) of 23", mean)[1],
        *re.findall(r"(0\.\d+) → (0\.\d+)", mean),
    )
    assert float(before) < 0.7 and float(after) >= 0.9 and int(better) >= 20
    assert abs(float(predicted) - float(after)) < 0.06
    assert {path.name for path in (tmp_path / "try").iterdir()} == {"boxes.csv", "boxes.json", "labels", "review.html"}


def test_the_committed_model_is_small_and_has_no_paths():
    path = tighten_photos.ROOT / "weights" / "cards.pth"
    assert path.stat().st_size < 6e6
    content = load_checkpoint(path)
    assert [category["name"] for category in content["categories"]] == ["ace", "jack", "king", "nine", "queen", "ten"]
    assert "efficientnet_lite0" in content["config"] and "/" not in content["config"].replace("runs/iounet", "")
