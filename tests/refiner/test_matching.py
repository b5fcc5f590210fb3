"""Match ids of a results file with images and with the refiner's classes."""

from pathlib import Path

import pytest

from iounet.errors import DataError
from iounet.refiner.matching import images_of, listed_ids, match_categories, match_images


class TestMatchImages:
    IMAGES = [Path("x/a.png"), Path("x/000139.jpg"), Path("y/12.png")]

    def test_by_name_with_or_without_suffix_or_by_number(self):
        matched = match_images([12, "a", 139, "a", "000139"], self.IMAGES, None, "detections.json")
        assert list(matched.items()) == [
            (12, Path("y/12.png")),
            ("a", Path("x/a.png")),
            (139, Path("x/000139.jpg")),
            ("000139", Path("x/000139.jpg")),
        ]
        assert match_images(["139", "a.png"], self.IMAGES, None, "d.json") == {
            "139": Path("x/000139.jpg"),
            "a.png": Path("x/a.png"),
        }

    def test_by_the_file_names_of_an_annotation_file(self):
        names = {5: "a.png", 9: "val/12.png", 139: "elsewhere.png"}
        assert match_images([9, 5], self.IMAGES, names, "d.json") == {9: Path("y/12.png"), 5: Path("x/a.png")}

    def test_no_results(self):
        assert match_images([], self.IMAGES, None, "d.json") == {}

    def test_unknown_ids_are_counted_and_the_first_ones_listed(self):
        with pytest.raises(
            DataError, match=r"d\.json: 7 image ids match none of the 3 given images: 1, 2, 3, 4, 5, \.\.\.; name"
        ):
            match_images([12, 1, 2, 3, 4, 5, 6, "seven", 1], self.IMAGES, None, "d.json")

    def test_an_image_of_the_annotation_file_that_was_not_given(self):
        with pytest.raises(DataError, match=r"1 image id matches none of the 3 given images: 139; pass the folder"):
            match_images([139], self.IMAGES, {139: "elsewhere.png"}, "d.json")

    def test_some_missing_images_can_be_allowed_but_not_all(self):
        matched = match_images([12, 5, "a"], self.IMAGES, None, "d.json", allow_missing=True)
        assert matched == {12: Path("y/12.png"), "a": Path("x/a.png")}
        with pytest.raises(DataError, match="2 image ids match none of the 3 given images: 5, 6;"):
            match_images([5, 6], self.IMAGES, None, "d.json", allow_missing=True)

    def test_an_id_that_matches_two_images(self):
        images = [Path("x/a.png"), Path("y/a.png")]
        with pytest.raises(DataError, match=r"d\.json: image_id 'a' matches x/a\.png, y/a\.png; pass only one"):
            match_images(["a"], images, None, "d.json")
        with pytest.raises(DataError, match=r"image_id 139 matches x/139\.png, x/0139\.png"):
            match_images([139], [Path("x/139.png"), Path("x/0139.png")], None, "d.json")

    def test_two_annotated_images_with_the_same_name_are_not_confused(self):
        # Only train/a.png is given; detections in val/a.png must not be refined on it.
        names = {1: "train/a.png", 2: "val/a.png"}
        with pytest.raises(DataError, match="2"):
            match_images([1, 2], [Path("train/a.png")], names, "d.json")

    def test_folders_in_file_names_distinguish_images_with_the_same_name(self):
        names = {1: "train/a.png", 2: "val/a.png"}
        images = [Path("set/val/a.png"), Path("set/train/a.png")]
        assert match_images([1, 2], images, names, "d.json") == {1: images[1], 2: images[0]}


class TestListedIds:
    NAMES = {5: "val/a.png", 139: "000139.jpg", 7: "x/b.png", 8: "y/b.png"}

    @pytest.mark.parametrize(
        ("given", "listed"),
        [(5, 5), ("5", 5), ("a", 5), ("a.png", 5), ("val/a.png", 5), ("000139", 139), ("x/b.png", 7)],
    )
    def test_several_ways_to_name_an_image(self, given, listed):
        assert listed_ids([given], self.NAMES) == {given: listed}

    @pytest.mark.parametrize("given", [6, "b", "b.png", "c.png"])
    def test_unlisted_and_ambiguous_ids(self, given):
        assert listed_ids([given], self.NAMES) == {}


class TestMatchCategories:
    CLASSES = [{"id": 3, "name": "traffic light"}, {"id": 8, "name": "star"}]

    def test_by_id(self):
        expected = {3: 1, 5: 0, 8: 2, "8": 2, "Traffic-Light": 1, "zebra": 0}
        matched = match_categories([8, 3, 5, 3, "8", "Traffic-Light", "zebra"], None, self.CLASSES)
        assert matched == expected and list(matched) == list(expected)

    def test_by_name(self):
        names = {3: "STAR", 8: "traffic_light"}  # the refiner has other classes under these ids
        assert match_categories([8, 3, 5], names, self.CLASSES) == {3: 2, 5: 0, 8: 1}

    def test_with_names_a_string_is_an_id_or_a_name(self):
        names = {3: "star", "a": "Traffic Light"}
        assert match_categories(["3", "a", "STAR", "dog"], names, self.CLASSES) == {"3": 2, "a": 1, "STAR": 2, "dog": 0}


def test_an_image_with_several_files_or_none():
    files = [Path("a/x.png"), Path("b/x.png"), Path("b/y.png")]
    names = {1: "x.png", 2: "b/x.png", 3: "elsewhere/y.png", 4: "z.png"}
    assert images_of(files, names) == {1: files[:2], 2: [files[1]], 3: [files[2]], 4: []}
