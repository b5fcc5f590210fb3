"""Results of one pass over images, for detectors whose boxes and AP are known."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from iounet import Detections
from iounet.data import CocoDataset
from iounet.data.synthetic import make_synthetic
from iounet.detections import RefinedDetections
from iounet.engine import Process, evaluate
from iounet.evaluation import predict
from iounet.evaluation.predictions import (
    GREEDY,
    GUIDED,
    REFINED,
    RESCORED,
    SOFT,
    as_results,
    box_changes,
    joined,
    table_rows,
)
from iounet.jobs import EvaluationJob
from iounet.modeling import ImageFeatures
from iounet.postprocess import NMSOptions, Postprocessing, RefinementOptions


class Oracle(nn.Module):
    """A detector that finds the ground truth, or nothing."""

    def __init__(self, targets, finds):
        super().__init__()
        self.postprocessing, self.targets, self.finds = Postprocessing(), iter(targets), finds

    def extract(self, images):
        sizes = [tuple(image.shape[-2:]) for image in images]
        return ImageFeatures({}, ImageList(torch.zeros(0), sizes), sizes)

    def propose(self, features):
        return [next(self.targets) for _ in features.sizes]

    def detect(self, features, proposals):
        found = []
        for target in proposals:
            count = len(target["labels"]) if self.finds else 0
            found.append(
                Detections(target["boxes"][:count], target["labels"][:count], torch.ones(count), torch.ones(count))
            )
        return found

    def refine(self, features, detections, options):
        return [RefinedDetections.unmoved(of_image) for of_image in detections]


@pytest.mark.parametrize(("finds", "ap"), [(True, 100.0), (False, 0.0)])
def test_perfect_boxes_and_no_boxes(tmp_path, finds, ap):
    make_synthetic(tmp_path, num_train=1, num_val=5, num_test=1, image_size=(64, 64), seed=0)
    file = tmp_path / "annotations" / "val.json"
    content = json.loads(file.read_text())
    for new_id, annotation in enumerate(content["annotations"]):
        annotation["id"] = new_id  # the first id is 0, which pycocotools treats as no match
        annotation["category_id"] = 90 - 7 * annotation["category_id"]
    for category in content["categories"]:
        category["id"] = 90 - 7 * category["id"]
    file.write_text(json.dumps(content))
    dataset = CocoDataset(file, tmp_path / "val")
    oracle = Oracle([dataset[index][1] for index in range(len(dataset))], finds)
    job = EvaluationJob(oracle, dataset, batch_size=2, num_workers=0, output_dir=tmp_path / "report")
    evaluation = evaluate(job, Process(torch.device("cpu")))
    assert len(evaluation.results) == (len(content["annotations"]) if finds else 0)
    for row in evaluation.table.values():
        known = [value for value in row.values() if not math.isnan(value)]
        assert known == pytest.approx([ap] * len(known)) and len(known) >= 8


class Mover(Oracle):
    """A detector that finds the ground truth one pixel too far left. Refinement moves it to the right place."""

    OFFSET = torch.tensor([1.0, 0, 1, 0])

    def detect(self, features, proposals):
        return [
            replace(of_image, boxes=of_image.boxes - self.OFFSET) for of_image in super().detect(features, proposals)
        ]

    def refine(self, features, detections, options):
        unmoved = super().refine(features, detections, options)
        if not options.num_steps:
            return unmoved
        return [replace(of_image, boxes=of_image.boxes + self.OFFSET, ious=of_image.ious * 0.9) for of_image in unmoved]


class TestPredict:
    TARGETS = [
        {
            "boxes": torch.tensor([[4.0, 4, 24, 24], [30, 10, 50, 40]]),
            "labels": torch.tensor([1, 2]),
            "image_id": 7,
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": 9},
    ]

    @pytest.fixture
    def batches(self):
        return [([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))] * 2, self.TARGETS)]

    @pytest.fixture
    def predictions(self, batches):
        return predict(Mover(self.TARGETS, finds=True), batches, ["a", "b"], device=torch.device("cpu"))

    def test_each_row_has_the_detections_of_every_image(self, predictions):
        assert list(predictions.found) == [GREEDY, SOFT, GUIDED, REFINED]
        for row, found in predictions.found.items():
            assert [image_id for image_id, _ in found] == [7, 9]
            expected = self.TARGETS[0]["boxes"] - (0 if row == REFINED else Mover.OFFSET)
            assert torch.equal(found[0][1].boxes, expected) and len(found[1][1]) == 0

    def test_candidates_are_matched_with_the_ground_truth(self, predictions):
        ious, scores, predicted = joined(predictions.matches)
        assert ious.tolist() == pytest.approx([19 / 21, 19 / 21]) and scores.tolist() == predicted.tolist() == [1, 1]

    def test_examples_show_the_same_boxes_before_and_after(self, predictions):
        first, second = predictions.examples
        assert torch.equal(first.after.boxes - first.before.boxes, Mover.OFFSET.expand(2, 4))
        assert first.ground_truth is self.TARGETS[0] and len(second.before) == 0

    def test_changes(self, predictions):
        assert [change.name for change in predictions.changes] == ["a, image 7", "b, image 7"]
        assert [change.gain for change in predictions.changes] == pytest.approx([2 / 21, 2 / 21])

    @pytest.mark.parametrize("changes", [{"refine_before_nms": True}, {"final_score": "class_times_iou"}])
    def test_examples_pair_the_same_boxes_for_any_postprocessing(self, batches, changes):
        detector = Mover(self.TARGETS, finds=True)
        detector.postprocessing = replace(detector.postprocessing, **changes)
        first, _ = predict(detector, batches, ["a", "b"], device=torch.device("cpu")).examples
        assert torch.equal(first.after.boxes - first.before.boxes, Mover.OFFSET.expand(2, 4))
        assert torch.equal(first.after.scores, first.before.scores)

    def test_results_name_the_categories(self, predictions):
        results = as_results(predictions.found[REFINED], [30, 40])
        assert [(entry["image_id"], entry["category_id"]) for entry in results] == [(7, 30), (7, 40)]

    def test_changes_need_the_ground_truth(self, predictions):
        example = replace(predictions.examples[0], ground_truth=None)
        with pytest.raises(ValueError, match="image 7 has no ground truth"):
            list(box_changes(example, ["a", "b"], "image 7"))


def test_rows_differ_in_nms_and_the_last_row_refines():
    own = Postprocessing(NMSOptions("greedy", threshold=0.4), RefinementOptions(step_size=2.0))
    rows = table_rows(own)
    assert [options.nms.kind for options in rows.values()] == ["greedy", "soft", "iou_guided", "iou_guided"]
    assert [options.refinement.num_steps for options in rows.values()] == [0, 0, 0, 5]
    assert {options.nms.threshold for options in rows.values()} == {0.4}
    assert rows[REFINED].refinement == own.refinement


def test_a_final_score_times_iou_adds_a_row():
    rows = table_rows(Postprocessing(final_score="class_times_iou"))
    assert {row: options.final_score for row, options in rows.items()} == {
        **dict.fromkeys((GREEDY, SOFT, GUIDED, REFINED), "class"),
        RESCORED: "class_times_iou",
    }
    assert rows[RESCORED] == Postprocessing(final_score="class_times_iou")
