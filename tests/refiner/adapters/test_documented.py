"""Runs the Python code of docs/guides/refine.md as it is printed, with random weights.

For detectron2 and FiftyOne, only the syntax of the code is checked: these libraries need a compiler, downloads and a
database.
"""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torchvision.models import WeightsEnum
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from iounet.training.checkpoint import save_checkpoint

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:OpenCV")]

HEADING = re.compile(r"^##+ (.*)\n", re.MULTILINE)
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECTIONS = HEADING.split((Path(__file__).parents[3] / "docs/guides/refine.md").read_text())
CODE_UNDER = {name: CODE.findall(text) for name, text in zip(SECTIONS[1::2], SECTIONS[2::2], strict=True)}
LABEL_OF = {"person": 1, "car": 2, "dog": 3}


@pytest.fixture
def run(checkpoint, pixels, tmp_path, monkeypatch):
    """A function: heading → variables after its code ran in a folder with an image and a refiner's weights."""
    Image.fromarray(pixels).save(tmp_path / "street.jpg")
    content = torch.load(checkpoint, weights_only=True)
    del content["format"]
    config = yaml.safe_load(content["config"])
    config["TEST"]["REFINE"] |= {"STEP_SIZE": 20.0, "EARLY_STOP": 0.0}  # large enough to move boxes by tenths of pixels
    content["config"] = yaml.safe_dump(config)
    content["categories"] = [{"id": label, "name": name} for name, label in LABEL_OF.items()]
    (tmp_path / "runs/mine").mkdir(parents=True)
    save_checkpoint(tmp_path / "runs/mine/model_final.pth", **content)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def run(heading):
        variables = {}
        for name in ("In Python", heading):
            (code,) = CODE_UNDER[name]
            exec(code, variables)
        return variables

    return run


@pytest.fixture
def yolo(ultralytics, monkeypatch):
    """YOLO with random weights: it calls every object a person and returns five per image, whatever their scores."""
    real = ultralytics.YOLO

    def untrained(weights):
        assert weights == "yolo11n.pt"
        model = real("yolo11n.yaml", verbose=False)
        model.model.names = dict.fromkeys(range(80), "person")
        return partial(model, conf=1e-9, max_det=5, imgsz=96, device="cpu", verbose=False)

    monkeypatch.setattr(ultralytics, "YOLO", untrained, raising=False)


def assert_refined(refiner, image, before, after, names):
    """Persons, cars and dogs lie where the refiner moves them; all other boxes are unchanged."""
    labels = torch.tensor([LABEL_OF.get(name, 0) for name in names])
    known = labels > 0
    assert known.any()
    refined = refiner.refine(image, before[known], labels[known])
    assert not torch.allclose(refined.boxes, before[known], rtol=0, atol=0.1)
    torch.testing.assert_close(after[known], refined.boxes, rtol=0, atol=1e-3)
    assert torch.equal(after[~known], before[~known])


def test_ultralytics(run, yolo, tmp_path):
    variables = run("ultralytics (YOLO)")
    (before,), (after,) = variables["results"], variables["better"]
    assert_refined(
        variables["refiner"], before.orig_img[..., ::-1], before.boxes.xyxy, after.boxes.xyxy, ["person"] * 5
    )
    assert (tmp_path / "refined.jpg").exists()


def test_supervision(run, yolo):
    pytest.importorskip("supervision", reason="supervision is not installed")
    variables = run("supervision")
    before, after = (torch.from_numpy(variables[name].xyxy) for name in ("detections", "better"))
    image = variables["results"].orig_img[..., ::-1]
    assert_refined(variables["refiner"], image, before, after, ["person"] * 5)
    assert len(variables["well_placed"]) == (variables["better"].data["predicted_iou"] > 0.7).sum()


def test_torchvision(run, monkeypatch):
    random = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    with torch.no_grad():
        random.roi_heads.box_predictor.cls_score.weight.zero_()
        random.roi_heads.box_predictor.cls_score.bias[1:3] = 9  # every object is a person and a bicycle
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: random.state_dict())
    variables = run("torchvision")
    names = variables["weights"].meta["categories"]
    (before,), (after,) = variables["detections"], variables["better"]
    found = [names[label] for label in before["labels"]]
    assert set(found) == {"person", "bicycle"}
    assert_refined(variables["refiner"], variables["image"], before["boxes"], after["boxes"], found)


def test_transformers(run, monkeypatch):
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = library.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        num_detection_tokens=6, id2label={0: "person", 1: "zebra"},
    )  # fmt: skip
    model = library.YolosForObjectDetection(config).eval()
    with torch.no_grad():
        model.class_labels_classifier.layers[-1].bias[0] += 9  # every object is a person
    processor = library.YolosImageProcessor(size={"height": 64, "width": 64})
    monkeypatch.setattr(library.AutoImageProcessor, "from_pretrained", lambda _: processor)
    monkeypatch.setattr(library.AutoModelForObjectDetection, "from_pretrained", lambda _: model)
    variables = run("transformers (DETR, RT-DETR, YOLOS)")
    (before,), (after,) = variables["detections"], variables["better"]
    assert_refined(variables["refiner"], variables["image"], before["boxes"], after["boxes"], ["person"] * 6)


def test_boxes_of_any_detector(run):
    variables = run("Boxes of any detector")
    better, kept, many = (variables[name] for name in ("better", "kept", "many"))
    assert better.boxes.shape == (2, 4)
    assert torch.equal(variables["confidence"], better.ious_before)
    assert torch.equal(kept.index.sort().values, kept.index.unique())
    assert len(many) == 2
    torch.testing.assert_close(many[1].boxes, better.boxes)


@pytest.mark.parametrize("heading", ["detectron2", "FiftyOne"])
def test_the_other_code_compiles(heading):
    (code,) = CODE_UNDER[heading]
    compile(code, heading, "exec")


def test_every_code_block_is_tested():
    tested = {"In Python", "ultralytics (YOLO)", "supervision", "torchvision", "transformers (DETR, RT-DETR, YOLOS)"}
    assert {name for name, code in CODE_UNDER.items() if code} == tested | {
        "detectron2",
        "FiftyOne",
        "Boxes of any detector",
    }
