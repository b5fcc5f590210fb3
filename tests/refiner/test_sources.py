"""Sources of boxes: which boxes are refined, as which class, and the resulting entries."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from coco_results import entry

from iounet.detections import Detections, RefinedDetections
from iounet.errors import DataError
from iounet.refiner.matching import match_categories
from iounet.refiner.results import DetectionsFile, ImageIndex
from iounet.refiner.sources import OtherBoxes, OwnBoxes, RefinedImage, as_boxes

CATEGORIES = [{"id": 3, "name": "cross"}, {"id": 7, "name": "star"}]
FILES = [Path("val/a.png"), Path("val/b.png")]
IMAGE = torch.zeros(3, 48, 64, dtype=torch.uint8)


class Shifts:
    """A stand-in refiner: moves boxes one pixel right, and boxes of label 0 half a pixel down."""

    categories = CATEGORIES

    def refine_batch(self, images, boxes, labels, scores):
        self.labels = labels
        refined = []
        for of_image, classes, class_scores in zip(boxes, labels, scores, strict=True):
            classes = torch.tensor(classes, dtype=torch.int64)
            step = torch.where((classes > 0)[:, None], torch.tensor([1.0, 0, 1, 0]), torch.tensor([0, 0.5, 0, 0.5]))
            ious = torch.full((len(of_image),), 0.5)
            refined.append(
                RefinedDetections(
                    of_image + step, classes, torch.tensor(class_scores), ious + 0.25, ious, classes, classes
                )
            )
        return refined

    def detect_batch(self, images):
        before = Detections(as_boxes([[5, 6, 30, 40]]), torch.tensor([2]), torch.tensor([0.75]), torch.tensor([0.5]))
        after = Detections(before.boxes + 1, before.labels, before.scores, torch.tensor([1.5]))
        return [(before, after) for _ in images]


def others(results, *, index=None, class_agnostic=False, listed=None):
    paths = {result["image_id"]: FILES[result["image_id"] == "b"] for result in results}
    names = {} if index is None else index.class_names
    labels = match_categories([result["category_id"] for result in results], names or None, CATEGORIES)
    file = DetectionsFile("detections.json", results, paths, labels, names, listed or {})
    return OtherBoxes(Shifts(), file, class_agnostic=class_agnostic)


class TestOtherBoxes:
    RESULTS = [
        entry("b", [1, 2, 30, 40], category_id=7, track=5),
        entry("a", [5, 6, 7, 8], category_id=9),
        entry("b", [3, 4, 5, 6], category_id=3, score=0.5),
    ]

    def test_entries_keep_their_order_and_keys(self):
        source = others(self.RESULTS)
        assert source.paths == {"b": FILES[1], "a": FILES[0]}
        records = [refined.record() for refined in source.refine(["a", "b"], [IMAGE, IMAGE])]
        assert [record["category_ids"] for record in records] == [[], [7, 3]]
        first, second, third = source.results(records, "after")
        predicted = {"predicted_iou_before": 0.5, "predicted_iou": 0.75}
        assert first == self.RESULTS[0] | {"bbox": [2, 2, 30, 40]} | predicted
        assert second == self.RESULTS[1]  # the refiner does not know its class
        assert third == self.RESULTS[2] | {"bbox": [4, 4, 5, 6]} | predicted

    def test_results_before_refinement_are_as_given(self):
        source = others(self.RESULTS)
        records = [refined.record() for refined in source.refine(["b", "a"], [IMAGE, IMAGE])]
        assert list(source.results(records, "before")) == self.RESULTS

    def test_rescored(self):
        source = others(self.RESULTS)
        records = [refined.record() for refined in source.refine(["b", "a"], [IMAGE, IMAGE])]
        scores = [result["score"] for result in source.results(records, "after", rescore=True)]
        assert scores == [0.75 * 0.75, 0.75, 0.5 * 0.75]

    def test_class_agnostic(self):
        source = others(self.RESULTS, class_agnostic=True)
        records = [refined.record() for refined in source.refine(["b", "a"], [IMAGE, IMAGE])]
        assert [found["bbox"] for found in source.results(records, "after")] == [
            [1, 2.5, 30, 40],
            [5, 6.5, 7, 8],
            [3, 4.5, 5, 6],
        ]

    def test_class_report(self):
        assert others(self.RESULTS).facts == {
            "classes": "refined, classes matched by id: 2 boxes of 2 classes\n"
            "  3 as cross, 7 as star\n"
            "unchanged, class unknown to the refiner: 1 box of 1 class: 9"
        }

    def test_no_known_class(self):
        with pytest.raises(DataError, match="knows none of the classes in this file"):
            others(self.RESULTS[1:2])
        others(self.RESULTS[1:2], class_agnostic=True)
        others([])

    def test_a_missing_image(self):
        source = others(self.RESULTS)
        paths = {"b": FILES[1]}
        some = OtherBoxes(Shifts(), replace(source._file, paths=paths), class_agnostic=True)
        records = [refined.record() for refined in some.refine(["b"], [IMAGE])]
        assert [found == given for found, given in zip(some.results(records, "after"), self.RESULTS, strict=True)] == [
            False,
            True,
            False,
        ]

    @pytest.mark.filterwarnings("error")
    def test_negative_widths_are_reported_once_for_all_images(self):
        assert (
            others([entry("a", [9, 8, -7, 6], category_id=3), *self.RESULTS])
            .facts["boxes"]
            .startswith("warning: 1 of 4 boxes have a negative width or height")
        )

    @pytest.mark.parametrize(
        ("image_id", "file", "is_current"), [("a", "a", True), ("a", "b", False), ("c", "a", False)]
    )
    def test_an_earlier_record(self, image_id, file, is_current):
        record = {"image_id": image_id, "file": str(Path(f"val/{file}.png").absolute())}
        assert others(self.RESULTS).current(record) == (record if is_current else None)

    def test_listed_id(self):
        source = others(self.RESULTS, listed={"a": 5})
        assert (source.listed_id("a"), source.listed_id("b")) == (5, "b")


class TestOwnBoxes:
    def test_images_are_numbered(self):
        source = OwnBoxes(Shifts(), FILES, None)
        assert source.paths == {1: FILES[0], 2: FILES[1]} and source.listed_id(2) == 2

    def test_images_have_the_ids_of_an_annotation_file(self):
        index = ImageIndex("index.json", {9: "a.png", 4: "b.png", 5: "c.png"}, {}, {})
        assert list(OwnBoxes(Shifts(), FILES, index).paths.items()) == [(9, FILES[0]), (4, FILES[1])]

    def test_an_unlisted_image(self):
        index = ImageIndex("index.json", {4: "b.png"}, {}, {})
        with pytest.raises(DataError, match=r"index\.json does not list 1 of the images, such as val/a\.png; omit"):
            OwnBoxes(Shifts(), FILES, index)

    def test_an_earlier_record_gets_the_current_id(self):
        record = {"image_id": 7, "file": str(FILES[1].absolute()), "ious": [0.5]}
        assert OwnBoxes(Shifts(), FILES, None).current(record) == record | {"image_id": 2}
        assert OwnBoxes(Shifts(), FILES[:1], None).current(record) is None

    def test_results_image_by_image(self):
        source = OwnBoxes(Shifts(), FILES, None)
        records = [refined.record() for refined in source.refine([1, 2], [IMAGE, IMAGE])]
        expected = {
            "category_id": 7,
            "bbox": [6, 7, 30, 40],
            "score": 0.75,
            "predicted_iou_before": 0.5,
            "predicted_iou": 1.5,
        }
        assert list(source.results(records, "after")) == [{"image_id": id_} | expected for id_ in (1, 2)]
        assert [found["bbox"] for found in source.results(records, "before")] == [[5, 6, 30, 40]] * 2
        # A predicted IoU above 1 does not raise the score.
        assert [found["score"] for found in source.results(records, "after", rescore=True)] == [0.75] * 2


def test_the_record_of_an_image():
    before = Detections(as_boxes([[5, 6, 30, 40]]), torch.tensor([2]), torch.tensor([0.75]), torch.tensor([0.5]))
    after = Detections(before.boxes + 1, before.labels, before.scores, torch.tensor([0.625]))
    assert RefinedImage("a", IMAGE, before, after, [7]).record() == {
        "image_id": "a",
        "height": 48,
        "width": 64,
        "category_ids": [7],
        "scores": [0.75],
        "before": [[5, 6, 30, 40]],
        "after": [[6, 7, 30, 40]],
        "ious_before": [0.5],
        "ious": [0.625],
    }
