"""Loading weights into a detector, and the messages about weights that do not fit."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from iounet.errors import ConfigError
from iounet.training.checkpoint import (
    CheckpointError,
    load_detector_weights,
    load_initial_weights,
    save_checkpoint,
    select_categories,
)

CATEGORIES = [{"id": id_, "name": name} for id_, name in ((1, "a"), (2, "b"), (3, "c"))]


class Detector(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        self.iou_head = nn.Linear(width, 2)


class TestLoadingIntoADetector:
    def load(self, weights, *, need_iou_head=True):
        torch.manual_seed(0)
        detector = Detector()
        before = {key: value.clone() for key, value in detector.state_dict().items()}
        try:
            load_detector_weights(detector, weights, "other.pth", need_iou_head=need_iou_head)
        except CheckpointError:
            assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
            raise
        return detector, before

    def test_all_weights_arrive(self):
        torch.manual_seed(1)
        weights = Detector().state_dict()
        detector, _ = self.load(weights)
        assert all(torch.equal(value, weights[key]) for key, value in detector.state_dict().items())

    def test_another_width_names_parameters_and_shapes(self):
        with pytest.raises(CheckpointError) as caught:
            self.load(Detector(width=5).state_dict())
        message = str(caught.value)
        assert message.startswith("the weights of other.pth do not fit the architecture of the configuration: param")
        assert "of the wrong shape (backbone.0.weight is [5, 3, 1, 1], expected [4, 3, 1, 1]," in message
        assert "missing" not in message and "unexpected" not in message

    def test_missing_parameters_are_named(self):
        weights = Detector().state_dict()
        del weights["backbone.0.bias"], weights["iou_head.weight"]
        with pytest.raises(CheckpointError, match=r"2 missing \(backbone\.0\.bias, iou_head\.weight\)"):
            self.load(weights)

    def test_left_over_parameters_are_named(self):
        weights = Detector().state_dict() | {"mask_head.weight": torch.zeros(1)}
        with pytest.raises(CheckpointError, match=r"1 unexpected \(mask_head\.weight\)"):
            self.load(weights)

    def test_a_plain_detector_may_lack_only_the_iou_head(self):
        torch.manual_seed(2)
        weights = {key: value for key, value in Detector().state_dict().items() if not key.startswith("iou_head.")}
        with pytest.raises(CheckpointError, match="2 missing"):
            self.load(weights)
        detector, before = self.load(weights, need_iou_head=False)
        assert torch.equal(detector.backbone[0].weight, weights["backbone.0.weight"])
        assert torch.equal(detector.iou_head.weight, before["iou_head.weight"])
        del weights["backbone.0.bias"]
        with pytest.raises(CheckpointError, match=r"1 missing \(backbone\.0\.bias\)"):
            self.load(weights, need_iou_head=False)

    def test_the_counters_of_ordinary_batch_norm_may_be_left_over(self):
        weights = Detector().state_dict() | {"backbone.9.num_batches_tracked": torch.tensor(3)}
        self.load(weights)


class TestSelectCategories:
    """torchvision's COCO detectors have 91 outputs for the category ids 0 to 90, of which COCO uses 80."""

    # COCO's instances files leave ten of the ids between 1 and 90 unused.
    COCO_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})

    @pytest.fixture(scope="class")
    @classmethod
    def weights(cls):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
        return detector.state_dict()

    def test_each_row_is_selected(self, weights):
        assert len(self.COCO_IDS) == 80
        prefix = "roi_heads.box_predictor."
        before = {key: value.clone() for key, value in weights.items()}
        selected = select_categories(weights, self.COCO_IDS)
        assert selected[f"{prefix}cls_score.weight"].shape == (81, 1024)
        assert selected[f"{prefix}cls_score.bias"].shape == (81,)
        assert selected[f"{prefix}bbox_pred.weight"].shape == (81 * 4, 1024)
        assert selected[f"{prefix}bbox_pred.bias"].shape == (81 * 4,)
        for label, category_id in enumerate([0, *self.COCO_IDS]):
            for parameter in ("weight", "bias"):
                scores, offsets = f"{prefix}cls_score.{parameter}", f"{prefix}bbox_pred.{parameter}"
                assert torch.equal(selected[scores][label], before[scores][category_id])
                assert torch.equal(
                    selected[offsets][4 * label : 4 * label + 4], before[offsets][4 * category_id : 4 * category_id + 4]
                )
        others = [key for key in weights if not key.startswith(prefix)]
        assert all(selected[key] is weights[key] for key in others)
        assert set(selected) == set(weights)
        assert all(torch.equal(value, before[key]) for key, value in weights.items())  # the input is unchanged

    def test_weights_with_one_output_per_label_are_returned_unchanged(self, weights):
        assert select_categories(weights, list(range(1, 91))) is weights


class TestInitialWeights:
    @pytest.fixture
    def detector(self, build_tiny):
        return build_tiny({"MODEL.STANDALONE": True})

    def test_a_checkpoint_of_this_project(self, detector, build_tiny, tmp_path):
        torch.manual_seed(1)
        other = build_tiny().state_dict()
        other = {key: value + 1 for key, value in other.items()}
        save_checkpoint(tmp_path / "model.pth", model=other, categories=CATEGORIES, config="")
        load_initial_weights(detector, str(tmp_path / "model.pth"), CATEGORIES)
        loaded = detector.state_dict()
        assert loaded.pop("iou_head.calibration").tolist() == [0, 0]  # reset, because training changes the weights
        assert all(torch.equal(value, other[key]) for key, value in loaded.items())

    def test_an_older_checkpoint_without_calibration(self, detector, tmp_path):
        weights = {key: value for key, value in detector.state_dict().items() if key != "iou_head.calibration"}
        load_detector_weights(detector, weights, "old.pth", need_iou_head=True)
        assert detector.iou_head.calibration.tolist() == [0, 0]

    def test_of_other_classes(self, detector, build_tiny, tmp_path):
        others = [category | {"name": "other"} for category in CATEGORIES]
        save_checkpoint(tmp_path / "model.pth", model=detector.state_dict(), categories=others, config="")
        with pytest.raises(
            ConfigError, match=r"MODEL\.STANDALONE needs .* the classes of .*model\.pth differ"
        ) as raised:
            load_initial_weights(detector, str(tmp_path / "model.pth"), CATEGORIES)
        first = CATEGORIES[0]
        assert f"(id {first['id']}: 'other' and {first['name']!r}; " in str(raised.value)
        load_initial_weights(build_tiny(), str(tmp_path / "model.pth"), CATEGORIES)  # allowed as initial weights

    def test_a_plain_faster_rcnn_leaves_the_iou_head_unchanged(self, detector, tmp_path):
        before = {key: value.clone() for key, value in detector.state_dict().items()}
        plain = {key: value + 1 for key, value in before.items() if not key.startswith("iou_head.")}
        torch.save(plain, tmp_path / "plain.pth")
        load_initial_weights(detector, str(tmp_path / "plain.pth"), CATEGORIES)
        for key, value in detector.state_dict().items():
            assert torch.equal(value, plain[key] if key in plain else before[key]), key

    def test_the_outputs_of_the_categories_are_selected_from_torchvisions(self, detector, tmp_path):
        plain = {key: value for key, value in detector.state_dict().items() if not key.startswith("iou_head.")}
        key = "roi_heads.box_predictor.cls_score.bias"
        for name in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"):
            value = plain[f"roi_heads.box_predictor.{name}"]
            rows = 91 * len(value) // 4
            numbers = torch.arange(rows * value[0].numel()).float()
            plain[f"roi_heads.box_predictor.{name}"] = numbers.view(rows, *value.shape[1:])
        torch.save(plain, tmp_path / "coco.pth")
        load_initial_weights(detector, str(tmp_path / "coco.pth"), [{"id": n, "name": str(n)} for n in (7, 50, 90)])
        assert detector.state_dict()[key].tolist() == [0, 7, 50, 90]

    def test_none(self, detector, build_tiny):
        with pytest.raises(ConfigError, match=r"MODEL\.STANDALONE trains the IoU head of a finished detector"):
            load_initial_weights(detector, "", CATEGORIES)
        load_initial_weights(build_tiny(), "", CATEGORIES)
