"""The exported detector against IoUNet."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from iounet import IoURefiner  # noqa: E402
from iounet.errors import CheckpointError, ConfigError  # noqa: E402
from iounet.export.detector import ExportableDetector  # noqa: E402
from iounet.export.onnx_file import export_detector_onnx  # noqa: E402
from iounet.onnx import OnnxRefiner  # noqa: E402

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")

CATEGORIES = [{"id": number, "name": name} for number, name in enumerate("abc", 1)]
IOU_GUIDED = {"TEST.NMS": "iou_guided"}
GREEDY = {"TEST.NMS": "greedy", "TEST.FINAL_SCORE": "class_times_iou", "TEST.REFINE_BEFORE_NMS": True}
BY_BOTH = {"TEST.NMS_RANKING": "score_times_iou", "TEST.REFINE.NUM_STEPS": 0, "TEST.DETECTIONS_PER_IMAGE": 5}


@pytest.fixture
def detector(build_tiny):
    """A function: settings → tiny detector that always detects objects, with distinct scores and predicted IoUs."""

    def build(settings):
        detector = build_tiny({"TEST.SCORE_THRESHOLD": 0.2} | settings)
        heads = detector.roi_heads.box_predictor.cls_score, detector.iou_head.predictor
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            for layer in (*heads, *detector.rpn.head.children()):
                last = layer[0][0] if isinstance(layer, torch.nn.Sequential) else layer
                last.weight.normal_(std=0.1)
        detector.rpn.nms_thresh = 0.1  # boxes of a level suppress each other
        return detector

    return build


def picture(height, width):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))


def assert_same(found, expected, at_least):
    boxes, labels, scores, ious = (torch.as_tensor(values) for values in found)
    assert len(labels) == len(expected) >= at_least
    torch.testing.assert_close(labels, expected.labels, rtol=0, atol=0)
    torch.testing.assert_close(boxes, expected.boxes, rtol=0, atol=0.05)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-3)
    torch.testing.assert_close(ious, expected.ious, rtol=0, atol=1e-3)


@pytest.mark.parametrize("settings", [IOU_GUIDED, GREEDY, BY_BOTH], ids=str)
@pytest.mark.parametrize("size", [(64, 64), (50, 90), (90, 40)])
def test_before_refinement(detector, settings, size):
    detector, image = detector(settings | {"TEST.REFINE.NUM_STEPS": 0}), picture(*size)
    (expected,) = detector([image])
    with torch.no_grad():
        batch, _ = detector.transform([image])
        resized_size = torch.tensor(batch.image_sizes[0], dtype=torch.float32)
        found = ExportableDetector(detector)(batch.tensors, torch.tensor(size, dtype=torch.float32), resized_size)
    assert_same(found, expected, at_least=5)


def test_soft_nms_is_rejected(build_tiny):
    with pytest.raises(ConfigError, match=r"TEST\.NMS: a detector with soft-NMS cannot be exported; .* greedy"):
        ExportableDetector(build_tiny({"TEST.NMS": "soft"}))


def run(path, image):
    return onnxruntime.InferenceSession(path).run(None, {"image": image[None].numpy()})


@pytest.mark.slow
def test_the_exported_file_agrees(detector, tmp_path):
    detector = detector(GREEDY)  # the test on photographs uses IoU-guided NMS
    export_detector_onnx(IoURefiner(detector, CATEGORIES), tmp_path / "detector.onnx")
    for size in [(64, 64), (50, 90), (120, 70)]:
        image = picture(*size)
        (expected,) = detector([image])
        assert_same(run(tmp_path / "detector.onnx", image), expected, at_least=2)


@pytest.mark.slow
def test_the_exported_file_agrees_on_photographs(tmp_path):
    path = tmp_path / "detector.onnx"
    refiner = IoURefiner.from_checkpoint(ROOT / "weights" / "cards.pth")
    export_detector_onnx(refiner, path)
    for name in ("cam_image45.jpg", "img_2580.jpg"):  # 960 × 540 and 378 × 504 pixels
        with Image.open(ROOT / "examples" / "photos" / name) as photograph:
            image = torch.from_numpy(np.array(photograph.convert("RGB"))).permute(2, 0, 1) / 255
        (expected,) = refiner.detector([image])
        assert_same(run(path, image), expected, at_least=10)
    nothing = run(path, torch.zeros(3, 200, 300))
    assert [values.shape for values in nothing] == [(0, 4), (0,), (0,), (0,)]

    domains = {(entry.domain, entry.version) for entry in onnx.load(path).opset_import}
    assert domains == {("", 18)}
    with pytest.raises(CheckpointError, match="an exported detector takes no boxes"):
        OnnxRefiner(path)
