"""Detections and annotations as files: what is read, and which image and class an entry means."""

import json
from pathlib import Path

import pytest
from PIL import Image

from iounet.errors import DataError
from iounet.refiner.results import (
    DetectionsFile,
    ImageIndex,
    find_images,
    images_of,
    listed_ids,
    match_categories,
    match_images,
    match_names,
    read_results,
)

ENTRY = {"image_id": 7, "category_id": 3, "bbox": [1.5, 2, 30, 40], "score": 0.5}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.png", "a.JPG", "000139.jpg", "notes.txt", "c.webp"):
        (folder / name).touch()
    (folder / "inner").mkdir()
    (folder / "inner" / "d.png").touch()
    return folder


class TestReadResults:
    def test_entries_come_back_as_they_are(self, write):
        entries = [ENTRY, ENTRY | {"image_id": "photo", "track": 5, "segmentation": {"counts": "x"}}]
        assert read_results(write(entries)) == entries

    def test_no_detections(self, write):
        assert read_results(write([])) == []

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
    def test_a_score_that_is_not_finite(self, write, number):
        text = json.dumps([ENTRY | {"score": 0.625}]).replace("0.625", number)
        with pytest.raises(DataError, match=r"entry 0 \(image .*\) has score (nan|inf); it must be a finite number"):
            read_results(write(text))

    def test_a_corner_beyond_float32(self, write):
        with pytest.raises(DataError, match=r"entry 0 .* whose far corner is beyond all numbers of 32 bits"):
            read_results(write([ENTRY | {"bbox": [3e38, 0, 3e38, 5]}]))

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere\.json: no such detections file; check the path"):
            read_results(tmp_path / "nowhere.json")

    def test_a_truncated_file(self, write):
        with pytest.raises(DataError, match=r"detections\.json: is not JSON .*truncated"):
            read_results(write(json.dumps([ENTRY])[:-5]))

    def test_a_file_that_is_not_text(self, tmp_path):
        (tmp_path / "detections.json").write_bytes(b"\xff\xfe\x00\x9c")
        with pytest.raises(DataError, match=r"detections\.json: is not JSON"):
            read_results(tmp_path / "detections.json")

    @pytest.mark.parametrize("content", [{"annotations": [ENTRY]}, 5, "text", None])
    def test_something_else_than_a_list(self, write, content):
        with pytest.raises(DataError, match=r"is not a COCO results file, which is a list; it holds a JSON \w+"):
            read_results(write(json.dumps(content)))

    @pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "score"])
    def test_a_missing_key_names_the_entry(self, write, key):
        incomplete = {name: value for name, value in ENTRY.items() if name != key}
        with pytest.raises(DataError, match=rf"detections\.json: entry 1 lacks {key}"):
            read_results(write([ENTRY, incomplete]))

    @pytest.mark.parametrize("entry", [5, "text", None, [1, 2, 3, 4]])
    def test_an_entry_that_is_no_object(self, write, entry):
        with pytest.raises(DataError, match=r"detections\.json: entry 1 "):
            read_results(write([ENTRY, entry]))

    @pytest.mark.parametrize(
        "bbox",
        [[1, 2, 3], [1, 2, 3, 4, 5], [], [1, 2, 3, "4"], [1, 2, 3, None], "box!", None, 5, {"x": 1}, [[1, 2, 3, 4]]],
    )
    def test_a_bbox_that_is_not_four_numbers(self, write, bbox):
        with pytest.raises(DataError, match=r"detections\.json: entry 1 \(image 7\) has bbox .*four finite numbers"):
            read_results(write([ENTRY, ENTRY | {"bbox": bbox}]))

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
    def test_a_bbox_that_is_not_finite(self, write, number):
        text = json.dumps([ENTRY, ENTRY]).replace("40]", f"{number}]")
        with pytest.raises(DataError, match=r"entry 0 \(image 7\) has bbox .*four finite numbers"):
            read_results(write(text))

    @pytest.mark.parametrize("score", ["0.5", None, [0.5]])
    def test_a_score_that_is_no_number(self, write, score):
        with pytest.raises(DataError, match=r"detections\.json: entry 1 \(image 7\) has score"):
            read_results(write([ENTRY, ENTRY | {"score": score}]))

    @pytest.mark.parametrize(("key", "value"), [("image_id", [7]), ("image_id", None), ("category_id", {"id": 3})])
    def test_an_id_that_is_none(self, write, key, value):
        with pytest.raises(DataError, match=rf"detections\.json: entry 1 has {key}"):
            read_results(write([ENTRY, ENTRY | {key: value}]))


class TestFindImages:
    def test_those_of_a_folder_by_name(self, folder):
        assert [path.name for path in find_images([folder])] == ["000139.jpg", "a.JPG", "b.png", "c.webp"]

    def test_files_and_folders_in_the_order_given(self, folder):
        found = find_images([folder / "inner" / "d.png", str(folder), folder / "notes.txt"])
        assert [path.name for path in found] == ["d.png", "000139.jpg", "a.JPG", "b.png", "c.webp", "notes.txt"]

    def test_a_missing_path(self, folder):
        with pytest.raises(DataError, match=r"gone\.png: no such image or folder; check the path"):
            find_images([folder, folder / "gone.png"])

    def test_a_file_given_twice(self, folder):
        assert find_images([folder, folder / "b.png"]) == find_images([folder])

    def test_a_folder_without_images(self, tmp_path):
        with pytest.raises(DataError, match=r"no images in .*known suffixes are \.bmp"):
            find_images([tmp_path])


class TestMatchImages:
    IMAGES = [Path("x/a.png"), Path("x/000139.jpg"), Path("y/12.png")]

    def test_by_name_without_suffix_or_by_its_number(self):
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

    def test_unknown_ids_are_counted_and_the_first_named(self):
        with pytest.raises(
            DataError, match=r"d\.json: 7 image ids have no image among the 3 given: 1, 2, 3, 4, 5, \.\.\.; name"
        ):
            match_images([12, 1, 2, 3, 4, 5, 6, "seven", 1], self.IMAGES, None, "d.json")

    def test_an_image_of_the_annotation_file_that_is_not_among_those_given(self):
        with pytest.raises(DataError, match=r"1 image ids have no image among the 3 given: 139; give the folder"):
            match_images([139], self.IMAGES, {139: "elsewhere.png"}, "d.json")

    def test_an_id_that_fits_two_images(self):
        images = [Path("x/a.png"), Path("y/a.png")]
        with pytest.raises(DataError, match=r"d\.json: image_id 'a' fits x/a\.png, y/a\.png; give one folder"):
            match_images(["a"], images, None, "d.json")
        with pytest.raises(DataError, match=r"image_id 139 fits x/139\.png, x/0139\.png"):
            match_images([139], [Path("x/139.png"), Path("x/0139.png")], None, "d.json")

    def test_two_annotated_images_of_one_name_are_not_taken_for_each_other(self):
        # Only train/a.png is given; the detections of val/a.png must not be refined on it.
        names = {1: "train/a.png", 2: "val/a.png"}
        with pytest.raises(DataError, match="2"):
            match_images([1, 2], [Path("train/a.png")], names, "d.json")

    def test_the_folders_of_file_names_tell_images_of_one_name_apart(self):
        names = {1: "train/a.png", 2: "val/a.png"}
        images = [Path("set/val/a.png"), Path("set/train/a.png")]
        assert match_images([1, 2], images, names, "d.json") == {1: images[1], 2: images[0]}


class TestListedIds:
    NAMES = {5: "val/a.png", 139: "000139.jpg", 7: "x/b.png", 8: "y/b.png"}

    @pytest.mark.parametrize(
        ("given", "listed"),
        [(5, 5), ("5", 5), ("a", 5), ("a.png", 5), ("val/a.png", 5), ("000139", 139), ("x/b.png", 7)],
    )
    def test_an_image_may_be_named_in_several_ways(self, given, listed):
        assert listed_ids([given], self.NAMES) == {given: listed}

    @pytest.mark.parametrize("given", [6, "b", "b.png", "c.png"])
    def test_one_that_is_not_listed_or_could_be_two(self, given):
        assert listed_ids([given], self.NAMES) == {}


class TestMatchCategories:
    CLASSES = [{"id": 3, "name": "traffic light"}, {"id": 8, "name": "star"}]

    def test_by_id(self):
        results = [ENTRY | {"category_id": id_} for id_ in (8, 3, 5, "8", "Traffic-Light", "zebra")]
        expected = {3: 1, 5: 0, 8: 2, "8": 2, "Traffic-Light": 1, "zebra": 0}
        matched = match_categories(results, None, self.CLASSES)
        assert matched == expected and list(matched) == list(expected)

    def test_by_name(self):
        results = [ENTRY | {"category_id": id_} for id_ in (8, 3, 5)]
        names = {3: "STAR", 8: "traffic_light"}  # not what the refiner has under these ids
        assert match_categories(results, names, self.CLASSES) == {3: 2, 5: 0, 8: 1}

    def test_case_spaces_and_dashes_in_names_do_not_matter(self):
        assert match_names(["TRAFFIC_light", "star", "", "lights"], self.CLASSES) == [1, 2, 0, 0]


class TestImageIndex:
    CONTENT = {"images": [{"id": 5, "file_name": "val/a.png"}], "categories": [{"id": 3, "name": "star"}], "extra": 1}

    def test_names_by_id_and_all_of_the_file(self, write):
        path = write(self.CONTENT)
        index = ImageIndex.read(path)
        assert (index.path, index.file_names, index.class_names) == (path, {5: "val/a.png"}, {3: "star"})
        assert index.content == self.CONTENT

    def test_a_file_of_images_alone(self, write):
        index = ImageIndex.read(write({"images": self.CONTENT["images"]}))
        assert index.file_names == {5: "val/a.png"} and index.class_names == {}

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ({"images": [{"id": 5}]}, r"an image lacks its id or file_name"),
            ({"images": [{"file_name": "a.png"}]}, r"an image lacks its id or file_name"),
            ({"categories": [{"id": 3}]}, r"or a category its id or name"),
            ({"images": [5]}, r"an image lacks its id or file_name"),
        ],
    )
    def test_what_lacks_its_id_or_name(self, write, fault, message):
        path = write(self.CONTENT | fault, "index.json")
        with pytest.raises(DataError, match=rf"index\.json: .*{message}.*python -m iounet\.data\.check {path}"):
            ImageIndex.read(path)

    def test_something_else(self, write, tmp_path):
        with pytest.raises(DataError, match=r"nowhere\.json: no such annotation file"):
            ImageIndex.read(tmp_path / "nowhere.json")
        with pytest.raises(DataError, match=r"index\.json"):
            ImageIndex.read(write([ENTRY], "index.json"))


class TestDetectionsFile:
    CLASSES = [{"id": 3, "name": "cross"}, {"id": 8, "name": "star"}]
    FILES = [Path("val/a.png"), Path("val/000007.png")]

    def test_without_an_annotation_file(self, write):
        path = write([ENTRY, ENTRY | {"image_id": "a"}, ENTRY])
        detections = DetectionsFile.read(path, self.FILES, None)
        assert detections.path == path and len(detections.results) == 3
        assert detections.paths == {7: self.FILES[1], "a": self.FILES[0]}
        assert detections.class_names == detections.listed_ids == {}
        assert detections.labels(self.CLASSES) == {3: 1}  # by id

    def test_with_one(self, write):
        index = ImageIndex("index.json", {5: "a.png", 9: "000007.png"}, {3: "Star"}, {})
        detections = DetectionsFile.read(write([ENTRY | {"image_id": id_} for id_ in (9, "a")]), self.FILES, index)
        assert detections.paths == {9: self.FILES[1], "a": self.FILES[0]}
        assert detections.listed_ids == {9: 9, "a": 5}
        assert detections.labels(self.CLASSES) == {3: 2}  # by name

    def test_an_image_that_the_annotation_file_does_not_list(self, write):
        index = ImageIndex("index.json", {5: "a.png"}, {}, {})
        with pytest.raises(DataError, match=r"1 image ids have no .*: 7; 1 of them are not in the annotation file"):
            DetectionsFile.read(write([ENTRY]), self.FILES, index)


def test_an_image_of_several_files_and_of_none():
    files = [Path("a/x.png"), Path("b/x.png"), Path("b/y.png")]
    names = {1: "x.png", 2: "b/x.png", 3: "elsewhere/y.png", 4: "z.png"}
    assert images_of(files, names) == {1: files[:2], 2: [files[1]], 3: [files[2]], 4: []}


def test_the_image_suffixes_are_ones_that_can_be_read(folder):
    known = Image.registered_extensions()
    assert all(path.suffix.lower() in known for path in find_images([folder]))
