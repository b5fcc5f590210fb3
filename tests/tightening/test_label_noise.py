"""Labels moved at random, found and restored."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from iounet.boxes import elementwise_iou
from iounet.data.labels import LabeledBox
from iounet.detections import Detections
from iounet.tightening import Thresholds, label_noise
from iounet.tightening.label_noise import add_noise, cleanlab_scores, first_images, measure, noise_table, roc_area
from tools import heads_by_images
from tools import label_noise as tool


class TestNoise:
    @pytest.fixture
    def many(self, labels):
        boxes = [LabeledBox(str(number), 0, "cross", (20.0, 10.0, 60.0, 30.0)) for number in range(2000)]
        return replace(labels, boxes=boxes)

    def test_half_of_the_labels_move_by_uniform_amounts(self, many):
        noisy, moved = add_noise(many, 0.1, seed=0)
        assert sum(moved) == pytest.approx(1000, abs=100)
        boxes = np.array([label.box for label in noisy.boxes])
        moved = np.array(moved)
        assert (boxes[~moved] == many.boxes[0].box).all()
        shifts = (boxes[moved] - many.boxes[0].box) / [40, 20, 40, 20]
        assert abs(shifts).max() <= 0.1 and abs(shifts.mean(0)).max() < 0.01
        assert shifts.std(0) == pytest.approx([0.1 / 3**0.5] * 4, rel=0.05)

    def test_which_labels_move_depends_on_the_seed_and_not_on_the_amount(self, many):
        first = add_noise(many, 0.05, seed=0)[1]
        assert first == add_noise(many, 0.2, seed=0)[1]
        assert first != add_noise(many, 0.05, seed=1)[1]

    def test_boxes_stay_in_the_image(self, labels):
        whole = replace(labels, boxes=[LabeledBox(str(n), 0, "cross", (0.0, 0.0, 80.0, 50.0)) for n in range(50)])
        boxes = np.array([label.box for label in add_noise(whole, 0.4, seed=0)[0].boxes])
        assert (boxes >= 0).all() and (boxes <= [80, 50, 80, 50]).all() and (boxes[:, 2:] > boxes[:, :2]).all()


class TestRocArea:
    @pytest.mark.parametrize(
        ("scores", "positive", "area"),
        [
            ([4, 3, 2, 1], [True, True, False, False], 1.0),
            ([4, 3, 2, 1], [False, False, True, True], 0.0),
            ([4, 3, 2, 1], [True, False, True, False], 0.75),
            ([1, 1, 1, 1], [True, False, True, False], 0.5),
            ([2, 1, 1, 0], [True, True, False, False], 0.875),
        ],
    )
    def test_by_counting_pairs(self, scores, positive, area):
        assert roc_area(scores, positive) == area

    def test_equals_sklearn(self):
        metrics = pytest.importorskip("sklearn.metrics")
        generator = np.random.default_rng(0)
        scores, positive = generator.integers(0, 20, 200), generator.random(200) < 0.3
        assert roc_area(scores, positive) == pytest.approx(metrics.roc_auc_score(positive, scores))

    def test_nan_without_negatives(self):
        assert np.isnan(roc_area([1, 2], [True, True]))


class PerfectRefiner:
    """Knows the boxes of the fixture `labels` and proposes the one with the highest IoU."""

    categories = [{"id": 1, "name": "cross"}, {"id": 2, "name": "star"}]

    def __init__(self, labels):
        self.truth = torch.tensor([label.box for label in labels.boxes[:3]], dtype=torch.float64)

    def detect(self, image):
        nothing = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0))
        return nothing, nothing

    def refine_batch(self, images, boxes, labels):
        refined = []
        for of_image in boxes:
            ious = elementwise_iou(of_image[:, None], self.truth)
            best, nearest = ious.max(1)
            detections = Detections(
                self.truth[nearest], torch.ones(len(best), dtype=torch.int64), best, torch.ones(len(best))
            )
            refined.append(Refined(detections, best))
        return refined


class Refined:
    def __init__(self, detections, ious_before):
        self.boxes, self.ious, self.ious_before = detections.boxes, detections.ious, ious_before


def test_a_perfect_refiner_restores_all_labels(labels, monkeypatch):
    monkeypatch.setattr(label_noise, "find_spec", lambda name: None)  # as if cleanlab were not installed
    labels = replace(labels, boxes=labels.boxes[:3])
    moved = add_noise(labels, 0.2, seed=6)[1]
    assert any(moved) and not all(moved)
    results = measure(PerfectRefiner(labels), labels, [0.2], thresholds=Thresholds(0, 1), seed=6)["20%"]
    assert results["moved"]["iou_after"] == pytest.approx(1, abs=2e-3)  # proposals are rounded
    assert results["moved"]["iou_before"] < 0.95 and results["moved"]["share_improved"] == 1
    assert results["not_moved"] == {
        "num_labels": moved.count(False), "iou_before": 1, "iou_after": 1, "share_improved": 0, "share_worsened": 0,
    }  # fmt: skip
    assert results["auroc"] == {"1 − predicted IoU": 1, "gain": 1, "move": 1}


def test_rejected_proposals_leave_the_labels_moved(labels, monkeypatch):
    monkeypatch.setattr(label_noise, "find_spec", lambda name: None)  # as if cleanlab were not installed
    results = measure(PerfectRefiner(labels), labels, [0.2], thresholds=Thresholds(1, 1), seed=6)["20%"]
    assert results["moved"]["iou_after"] == results["moved"]["iou_before"]


def test_the_table(labels, monkeypatch):
    monkeypatch.setattr(label_noise, "find_spec", lambda name: None)  # as if cleanlab were not installed
    table = noise_table(measure(PerfectRefiner(labels), labels, [0.1, 0.2], thresholds=Thresholds(), seed=6))
    assert "| ±10% |" in table and "| ±20% |" in table and "AUROC move" in table


def test_first_images(labels):
    kept = first_images(labels, 1)
    assert [image.key for image in kept.images] == ["one.png"] and [label.key for label in kept.boxes] == [
        "first",
        "third",
    ]


class TestCleanlab:
    @pytest.fixture(autouse=True)
    def _needs_it(self):
        pytest.importorskip("cleanlab")

    def test_a_displaced_label_scores_lower(self, labels):
        """Exact labels in images 0 and 2 and a displaced one in image 0, each with a confident detection."""
        truth = torch.tensor([[8.0, 9.0, 40.0, 44.0], [50.0, 10.0, 75.0, 48.0]])
        found = Detections(truth, torch.tensor([1, 2]), torch.tensor([0.9, 0.9]), torch.ones(2))
        boxes = [
            LabeledBox("exact", 2, "cross", (8.0, 9.0, 40.0, 44.0)),
            LabeledBox("displaced", 0, "Star", (55.0, 14.0, 75.0, 48.0)),
            LabeledBox("exact too", 0, "cross", (8.0, 9.0, 40.0, 44.0)),
        ]
        exact, displaced, exact_too = cleanlab_scores(boxes, [found, found, found], PerfectRefiner(labels))
        assert displaced < 0.9 < exact == pytest.approx(exact_too)


def test_the_tool_writes_both_files(call, trained, dataset, tmp_path):
    source = dataset / "annotations" / "val.json"
    words = ["--images", dataset / "val", "--weights", trained / "model_final.pth", "--output", tmp_path / "out"]
    assert call(tool, source, *words, "--noise", "0.1", "--seeds", "3", "4", "--max-images", "3") is None
    content = json.loads((tmp_path / "out" / "label_noise.json").read_text())
    assert content["num_images"] == 3 and list(content["mean"]) == ["10%"]
    means = [of_seed["10%"]["moved"]["iou_before"] for of_seed in content["of_seeds"]]
    assert len(set(means)) == 2 and all(0.6 < mean < 1 for mean in means)
    assert content["mean"]["10%"]["moved"]["iou_before"] == pytest.approx(sum(means) / 2)
    assert "| ±10% |" in (tmp_path / "out" / "label_noise.md").read_text()
    assert "no such file" in call(tool, tmp_path / "none.json", *words)


def test_the_tool_trains_heads_on_growing_numbers_of_images(call, trained, dataset, tmp_path, capsys):
    sets = [dataset / "annotations" / f"{split}.json" for split in ("train", "val")]
    for split in ("train", "val"):  # both splits in one folder, under new names
        for image in (dataset / split).iterdir():
            (tmp_path / "images").mkdir(exist_ok=True)
            (tmp_path / "images" / f"{split}_{image.name}").write_bytes(image.read_bytes())
    written = []
    for path, split in zip(sets, ("train", "val"), strict=True):
        content = json.loads(path.read_text())
        for image in content["images"]:
            image["file_name"] = f"{split}_{image['file_name']}"
        written.append(tmp_path / f"{split}.json")
        written[-1].write_text(json.dumps(content))
    words = ["--images", tmp_path / "images", "--weights", trained / "model_final.pth", "--output", tmp_path / "out"]
    options = ["--counts", "2", "4", "--iterations", "1", "--noise", "0.1", "--seeds", "0"]
    assert call(heads_by_images, *written, *words, *options) is None
    content = json.loads((tmp_path / "out" / "heads_by_images.json").read_text())
    assert list(content["images"]) == ["2", "4"]
    areas = [of_count["10%"]["auroc"] for of_count in content["images"].values()]
    assert set(areas[0]) == {"1 − predicted IoU", "gain", "move"} and areas[0] != areas[1]
    assert capsys.readouterr().out.count("| ±10% |") == 2
