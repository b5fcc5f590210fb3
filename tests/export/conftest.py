"""Tiny refiners and their ONNX files, each exported once."""

import pytest
import torch

from iounet import IoURefiner

CATEGORIES = [{"id": id_, "name": name} for id_, name in enumerate(("cross", "star", "triangle"), start=1)]

ENERGY = {
    "MODEL.ENERGY_HEAD.LOSS": "nce",
    "MODEL.ENERGY_HEAD.HIDDEN_DIM": 32,
    "TEST.REFINE.OBJECTIVE": "energy",
    "TEST.REFINE.COORDINATES": "center_size",
    "TEST.REFINE.STEP_POLICY": "backtracking",
    "TEST.REFINE.NUM_STEPS": 6,
    "TEST.REFINE.STEP_SIZE": 0.03,
    "TEST.REFINE.SIZE_STEP_SIZE": 0.06,
    "TEST.REFINE.EARLY_STOP": 0.0,
}
SETTINGS = {
    "energy": ENERGY,
    "energy of all classes": ENERGY | {"MODEL.ENERGY_HEAD.CLASS_AGNOSTIC": True, "MODEL.IOU_HEAD.CLASS_AGNOSTIC": True},
    "iou as in the paper": {"MODEL.IOU_HEAD.LOSS": "bce", "TEST.REFINE.STEP_SIZE": 4.0},
}


@pytest.fixture(scope="session")
def make_refiner(build_tiny, tiny_cfg):
    """A function: key of SETTINGS → calibrated refiner whose predictions differ between boxes."""

    def make(name):
        detector = build_tiny(SETTINGS[name])
        heads = [head for head in (detector.iou_head, detector.energy_head) if head is not None]
        with torch.no_grad():
            for head in heads:
                head.predictor.weight.mul_(400)
            detector.iou_head.calibration.copy_(torch.tensor([0.8, 0.3]))
        return IoURefiner(detector, CATEGORIES, tiny_cfg(SETTINGS[name]).dump())

    return make


@pytest.fixture(scope="session")
def exported(make_refiner, tmp_path_factory):
    """A function: key of SETTINGS → refiner and path of its ONNX file."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from iounet.export.onnx_file import export_onnx

    files = {}

    def export(name):
        if name not in files:
            refiner = make_refiner(name)
            path = tmp_path_factory.mktemp("onnx") / "refiner.onnx"
            export_onnx(refiner, path)
            files[name] = refiner, path
        return files[name]

    return export
