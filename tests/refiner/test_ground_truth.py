"""AP before and after refinement and the boxes that changed most, from the objects of an annotation file."""

import pytest
import torch
from coco_results import perfect_entries

from iounet.evaluation import CocoEvaluator
from iounet.refiner.ground_truth import GroundTruth
from iounet.refiner.results import ImageIndex, find_images


class Given:
    """A source of boxes whose image ids are file names."""

    def __init__(self, files):
        self.paths = {path.stem: path for path in files}

    def listed_id(self, image_id):
        return int(image_id)


@pytest.fixture
def index(dataset):
    return ImageIndex.read(dataset / "annotations" / "val.json")


@pytest.fixture
def files(dataset):
    return find_images([dataset / "val"])


@pytest.fixture
def truth(index, files):
    return GroundTruth(index, files, Given(files))


def by_name(results):
    return [result | {"image_id": f"{result['image_id']:06d}"} for result in results]


def record(image_id, objects, shift):
    """Record of an image whose boxes were ``shift`` pixels to the right of the objects and now lie on the objects."""
    return {
        "image_id": image_id,
        "category_ids": [object_["category_id"] for object_ in objects],
        "before": [[x + shift, y, width, height] for x, y, width, height in (o["bbox"] for o in objects)],
        "after": [object_["bbox"] for object_ in objects],
        "ious_before": [0.25] * len(objects),
        "ious": [0.5] * len(objects),
    }


class TestAP:
    def test_the_objects_themselves(self, truth, index):
        columns, left_out = truth.ap(by_name(perfect_entries(index.content)))
        assert columns["AP"] == pytest.approx(100) and left_out == 0

    def test_agrees_with_the_evaluator(self, truth, index):
        results = perfect_entries(index.content)[::2]
        columns, _ = truth.ap(by_name(results))
        assert columns == pytest.approx(CocoEvaluator(index.content)(results), nan_ok=True)

    def test_results_that_are_left_out_are_counted(self, truth, index):
        results = perfect_entries(index.content)
        unscored = [
            results[0] | {"image_id": 77},
            results[0] | {"category_id": 99},
            results[0] | {"bbox": [1.0, 2.0, -3.0, 4.0]},
        ]
        columns, left_out = truth.ap(by_name([*unscored, *results]))
        assert columns["AP"] == pytest.approx(100) and left_out == 3

    def test_images_that_are_not_given_do_not_count(self, index, files):
        """Otherwise their objects would count as missed."""
        truth = GroundTruth(index, files[:2], Given(files[:2]))
        columns, left_out = truth.ap(by_name(perfect_entries(index.content)))
        assert columns["AP"] == pytest.approx(100)
        assert left_out == sum(object_["image_id"] > 2 for object_ in index.content["annotations"]) > 0


class TestMostChanged:
    def objects(self, index, image_id):
        return [object_ for object_ in index.content["annotations"] if object_["image_id"] == image_id]

    def test_boxes_that_moved_onto_their_objects(self, truth, index, files):
        objects = self.objects(index, 1)
        changes = truth.most_changed([record("000001", objects, shift=2)])
        assert 0 < len(changes) <= len(objects)
        for change in changes:
            assert torch.equal(change.path[1], change.ground_truth) and change.gain > 0
            assert change.predicted_ious.tolist() == [0.25, 0.5]
            name, file = change.name.split(", ")
            assert name in index.class_names.values() and file == "000001.png"
            assert change.image.shape == (3, 64, 64)

    def test_boxes_without_an_object_are_ignored(self, truth, index):
        objects = self.objects(index, 1)
        assert truth.most_changed([record("000001", objects, shift=60)]) == []
        wrong_class = [object_ | {"category_id": 99} for object_ in objects]
        assert truth.most_changed([record("000001", wrong_class, shift=2)]) == []
        assert truth.most_changed([record("000001", [], shift=2)]) == []

    def test_crowds_are_ignored(self, index, files):
        crowds = [object_ | {"iscrowd": 1} for object_ in index.content["annotations"]]
        crowded = ImageIndex(index.path, index.file_names, index.class_names, index.content | {"annotations": crowds})
        truth = GroundTruth(crowded, files, Given(files))
        assert truth.most_changed([record("000001", self.objects(index, 1), shift=2)]) == []


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([5], "an annotation is not a JSON object"),
        ([{"image_id": 1, "category_id": 1}], "an annotation has no bbox"),
    ],
)
def test_invalid_objects(index, files, objects, message):
    faulty = ImageIndex(index.path, index.file_names, index.class_names, index.content | {"annotations": objects})
    with pytest.raises(ValueError, match=message):
        GroundTruth(faulty, files, Given(files))


def test_classes_in_ascending_order_of_id(files):
    content = {
        "images": [{"id": 1, "file_name": "000001.png", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 9, "bbox": [5, 6, 30, 40], "area": 1200, "iscrowd": 0}],
        "categories": [{"id": 9, "name": "zebra"}, {"id": 4, "name": "lion"}],
    }
    index = ImageIndex("index.json", {1: "000001.png"}, {9: "zebra", 4: "lion"}, content)
    assert GroundTruth(index, files, Given(files)).class_names == ["lion", "zebra"]
