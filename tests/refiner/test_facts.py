"""Messages about a results file before its boxes are refined."""

import pytest
from coco_results import entry

from iounet.errors import DataError
from iounet.refiner.facts import box_report, check_classes, class_report
from iounet.refiner.matching import match_categories
from iounet.refiner.results import DetectionsFile

CLASSES = [{"id": 3, "name": "cross"}, {"id": 7, "name": "star"}]
MANY = [{"id": number, "name": f"c{number}"} for number in range(1, 73)]


def detections(category_ids, categories=CLASSES, names=None):
    results = [entry(1, [5, 6, 7, 8], category_id=id_) for id_ in category_ids]
    labels = match_categories(category_ids, names, categories)
    return DetectionsFile("d.json", results, {}, labels, names or {}, {})


def report(category_ids, categories=CLASSES, names=None, *, class_agnostic=False):
    given = detections(category_ids, categories, names)
    return class_report(given, categories, class_agnostic=class_agnostic).splitlines()


class TestClasses:
    def test_equal_names_are_not_listed(self):
        assert report([4, 4, 5], names={4: "star", 5: "cross"}) == [
            "refined, classes matched by name: 3 boxes of 2 classes"
        ]

    def test_only_differences_are_listed(self):
        names = {3: "STAR", 7: "zebra", 8: "lion", 9: "cross"}
        assert report([3, 9, 7, 7, 8], names=names) == [
            "refined, classes matched by name: 2 boxes of 2 classes",
            "  matched under a different name: 3 STAR as 7 star",
            "unchanged, class unknown to the refiner: 3 boxes of 2 classes: 7 zebra, 8 lion",
        ]

    def test_without_names_the_first_ids_are_listed_with_their_classes(self):
        assert report([*range(1, 73)], MANY) == [
            "refined, classes matched by id: 72 boxes of 72 classes",
            "  1 as c1, 2 as c2, 3 as c3, 4 as c4, 5 as c5, 6 as c6, 7 as c7, 8 as c8, 9 as c9, 10 as c10, ... 62 more",
        ]

    def test_class_agnostic(self):
        assert report([0, 3], class_agnostic=True) == ["refined regardless of class: 2 boxes of 2 classes"]

    @pytest.mark.parametrize("zero", [0, "0"])
    def test_ids_that_may_count_from_0(self, zero):
        *_, last = report([zero, 3])
        assert last.startswith("warning: the refiner has no class 0. If the ids in this file count from 0, every box")
        assert last.endswith("with --annotations, or use the refiner's ids: 3 cross, 7 star")

    def test_id_0_that_the_annotation_file_lacks(self):
        *_, last = report([0, 1], names={1: "star", 2: "cross"})
        assert last == (
            "warning: the annotation file has no class 0. If the ids in this file count from 0, every box is refined "
            "as an object of the wrong class; use the annotation file's ids: 1 star, 2 cross"
        )

    def test_a_known_or_named_id_0_gives_no_warning(self):
        from_zero = [{"id": 0, "name": "star"}, {"id": 1, "name": "cross"}]
        assert "warning" not in " ".join(report([0, 1], from_zero) + report([0], names={0: "star"}))

    def test_no_class_is_known(self):
        with pytest.raises(DataError) as error:
            check_classes(detections([1, 2]), CLASSES)
        assert str(error.value) == (
            "d.json: the refiner knows none of the classes in this file; match them by name with --annotations, or "
            "refine boxes of any class with --class-agnostic. Classes in the file: 1, 2. "
            "Classes of the refiner: 3 cross, 7 star"
        )
        check_classes(detections([]), CLASSES)
        check_classes(detections([1, 3]), CLASSES)

    def test_unknown_names_get_no_advice_to_match_by_name(self):
        with pytest.raises(DataError, match=r"none of the classes in this file; refine boxes .* file: 3 dog, lion\. "):
            check_classes(detections(["lion", 3], names={3: "dog"}), CLASSES)


class TestBoxes:
    def boxes(self, *bboxes):
        results = [entry(1, list(bbox)) for bbox in bboxes]
        return DetectionsFile("d.json", results, {}, {1: 1}, {}, {})

    def test_valid_boxes_give_no_warning(self):
        assert box_report(self.boxes((5, 6, 7, 8), (0, 0, 0, 0), (0, 0, 1, 1))) == box_report(self.boxes()) == ""
        assert box_report(self.boxes((0, 0, 0, 0.5))) == ""

    def test_negative_sizes(self):
        assert box_report(self.boxes((5, 6, 7, 8), (5, 6, 7, -8), (5, 6, -7, 8))) == (
            "warning: 2 of 3 boxes have a negative width or height and are left unchanged, such as entry 1: "
            "[5, 6, 7, -8]"
        )

    def test_fractions_of_the_image_size(self):
        with pytest.raises(
            DataError, match=r"d\.json: all boxes lie within the first pixel .* multiply x and width by"
        ):
            box_report(self.boxes((0.25, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.504)))
