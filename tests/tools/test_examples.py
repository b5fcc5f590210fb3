"""examples/, each as its users run it, with one step of training."""

import json

import pytest
import torch

from examples import torchvision_detectors
from iounet.commands import refine


@pytest.mark.parametrize("detector", ["fasterrcnn", "maskrcnn", "retinanet", "fcos"])
def test_boxes_of_torchvisions_detectors_are_refined(detector, dataset, trained, call, tmp_path, capsys):
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
