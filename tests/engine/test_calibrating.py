"""Calibration for labels, on boxes with known true and predicted IoUs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iounet.data import CocoDataset
from iounet.engine import Process, calibrate, calibrating
from iounet.jobs import EvaluationJob

SLOPE, OFFSET = 1.7, -0.6


@pytest.fixture
def job(build_tiny, dataset):
    images = CocoDataset(dataset / "annotations" / "val.json", dataset / "val")
    detector = build_tiny({"MODEL.IOU_HEAD.LOSS": "bce", "MODEL.NUM_CLASSES": len(images.categories)})
    return EvaluationJob(detector, images, 2, 0, Path("."), calibrated_for="labels")


def test_labels_are_measured_before_and_after_refinement(job, monkeypatch):
    num_steps = job.detector.postprocessing.refinement.num_steps

    def paths(detector, batches, jitter, *, num_steps, device):
        outputs = torch.linspace(-4, 4, 500).repeat(num_steps + 1, 1)
        true = (SLOPE * outputs + OFFSET).sigmoid()
        true[1:-1] = float("nan")  # intermediate boxes must not be used
        return true, outputs.sigmoid()

    monkeypatch.setattr(calibrating, "jittered_paths", paths)
    line = calibrate(job, Process(torch.device("cpu")))
    assert num_steps > 1 and "on the 1000 jittered and refined labels of" in line
    torch.testing.assert_close(job.detector.iou_head.calibration, torch.tensor([SLOPE, OFFSET]), rtol=1e-3, atol=1e-3)


def test_each_kind_of_box_has_its_own_calibration(job):
    process, head = Process(torch.device("cpu")), job.detector.iou_head
    line = calibrate(job, process)
    for_labels = head.calibration.clone()
    num_objects = sum(len(job.dataset.ground_truth(index)["boxes"]) for index in range(len(job.dataset)))
    assert f"on the {num_objects * 16} jittered" in line
    calibrate(job, process)
    assert torch.equal(head.calibration, for_labels)  # the same boxes every time
    assert "candidates of" in calibrate(replace(job, calibrated_for="candidates"), process)
    assert not torch.equal(head.calibration, for_labels)
