"""An image, and the refiner's own results for the boxes of named_boxes.py."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from named_boxes import BOXES, KNOWN, LABELS_OF_KNOWN, SCORES
from PIL import Image


@pytest.fixture(scope="session")
def pixels(image):
    """The image as an array [50, 80, 3], RGB, uint8."""
    return (image * 255).byte().permute(1, 2, 0).numpy()


@pytest.fixture
def refiner(refiner):
    """The refiner with steps of a few tenths of a pixel."""
    options = refiner.detector.postprocessing
    refinement = replace(options.refinement, step_size=20.0, early_stop=0.0)
    refiner.detector.postprocessing = replace(options, refinement=refinement)
    return refiner


@pytest.fixture
def expected(refiner, pixels):
    """``boxes``, ``ious`` and ``ious_before`` of all four boxes: refined if their class is known, else unchanged."""
    refined = refiner.refine(pixels, BOXES[KNOWN], LABELS_OF_KNOWN, SCORES[KNOWN])
    assert ((refined.boxes - BOXES[KNOWN]).abs().amax(1) > 0.1).all()  # otherwise nothing is tested
    boxes, ious, ious_before = BOXES.clone(), torch.full((4,), torch.nan), torch.full((4,), torch.nan)
    boxes[KNOWN], ious[KNOWN], ious_before[KNOWN] = refined.boxes, refined.ious, refined.ious_before
    return SimpleNamespace(boxes=boxes, ious=ious, ious_before=ious_before)


@pytest.fixture
def without_classes(refiner, pixels):
    """All four boxes as IoURefiner refines them regardless of class."""
    return refiner.refine(pixels, BOXES, None, SCORES)


def assert_same(actual, expected):
    torch.testing.assert_close(torch.as_tensor(actual), expected, rtol=0, atol=1e-5, equal_nan=True)


@pytest.fixture
def same():
    """A function that asserts that an array or tensor equals a tensor; NaN equals NaN."""
    return assert_same


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory):
    """The package, isolated because it replaces torch.save and Image.open, sets print options and writes settings."""
    with pytest.MonkeyPatch.context() as patch, np.printoptions():
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        patch.setenv("YOLO_OFFLINE", "true")
        patch.setenv("YOLO_AUTOINSTALL", "false")
        for name in ("OMP_NUM_THREADS", "NUMEXPR_MAX_THREADS", "TF_CPP_MIN_LOG_LEVEL", "TORCH_CPP_LOG_LEVEL"):
            patch.setenv(name, "1")
        patch.setattr(torch, "save", torch.save)
        patch.setattr(Image, "open", Image.open)
        # Without libGL, OpenCV raises an ImportError.
        yield pytest.importorskip("ultralytics", reason="ultralytics is not installed", exc_type=ImportError)
        torch.set_printoptions(profile="default")
