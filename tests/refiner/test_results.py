"""Reading results files, image folders and annotation files."""

import json
from pathlib import Path

import pytest
from PIL import Image

from iounet.errors import DataError
from iounet.refiner.results import (
    DetectionsFile,
    ImageIndex,
    find_images,
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
    def test_entries_are_returned_unchanged(self, write):
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
        with pytest.raises(DataError, match=r"entry 0 .* whose lower right corner exceeds the range of float32"):
            read_results(write([ENTRY | {"bbox": [3e38, 0, 3e38, 5]}]))

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere\.json: no such detections file; check the path"):
            read_results(tmp_path / "nowhere.json")

    def test_a_truncated_file(self, write):
        with pytest.raises(DataError, match=r"detections\.json: not valid JSON .*truncated"):
            read_results(write(json.dumps([ENTRY])[:-5]))

    def test_a_file_that_is_not_text(self, tmp_path):
        (tmp_path / "detections.json").write_bytes(b"\xff\xfe\x00\x9c")
        with pytest.raises(DataError, match=r"detections\.json: not valid JSON"):
            read_results(tmp_path / "detections.json")

    @pytest.mark.parametrize("content", [{"annotations": [ENTRY]}, 5, "text", None])
    def test_content_that_is_not_a_list(self, write, content):
        with pytest.raises(DataError, match=r"a COCO results file must be a JSON list; this one holds a \w+"):
            read_results(write(json.dumps(content)))

    @pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "score"])
    def test_a_missing_key_names_the_entry(self, write, key):
        incomplete = {name: value for name, value in ENTRY.items() if name != key}
        with pytest.raises(DataError, match=rf"detections\.json: entry 1 lacks {key}"):
            read_results(write([ENTRY, incomplete]))

    @pytest.mark.parametrize("entry", [5, "text", None, [1, 2, 3, 4]])
    def test_an_entry_that_is_not_an_object(self, write, entry):
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
    def test_a_score_that_is_not_a_number(self, write, score):
        with pytest.raises(DataError, match=r"detections\.json: entry 1 \(image 7\) has score"):
            read_results(write([ENTRY, ENTRY | {"score": score}]))

    @pytest.mark.parametrize(("key", "value"), [("image_id", [7]), ("image_id", None), ("category_id", {"id": 3})])
    def test_an_invalid_id(self, write, key, value):
        with pytest.raises(DataError, match=rf"detections\.json: entry 1 has {key}"):
            read_results(write([ENTRY, ENTRY | {key: value}]))


class TestFindImages:
    def test_images_of_a_folder_are_sorted_by_name(self, folder):
        assert [path.name for path in find_images([folder])] == ["000139.jpg", "a.JPG", "b.png", "c.webp"]

    def test_files_and_folders_in_the_order_given(self, folder):
        found = find_images([folder / "inner" / "d.png", str(folder), folder / "notes.txt"])
        assert [path.name for path in found] == ["d.png", "000139.jpg", "a.JPG", "b.png", "c.webp", "notes.txt"]

    def test_images_in_subfolders_that_an_annotation_file_names(self, folder):
        (folder / "inner" / "e.unknown").touch()
        (folder.parent / "outside.png").touch()
        names = ["inner/d.png", "b.png", "inner/e.unknown", "inner/gone.png", "../outside.png", str(folder / "b.png")]
        found = [str(path.relative_to(folder)) for path in find_images([folder], names)]
        assert found == ["000139.jpg", "a.JPG", "b.png", "c.webp", "inner/d.png", "inner/e.unknown"]
        assert find_images([folder.parent], ["photos/inner/d.png"]) == [
            folder.parent / "outside.png",
            folder / "inner" / "d.png",
        ]

    def test_a_missing_path(self, folder):
        with pytest.raises(DataError, match=r"gone\.png: no such image or folder; check the path"):
            find_images([folder, folder / "gone.png"])

    def test_a_file_given_twice(self, folder):
        assert find_images([folder, folder / "b.png"]) == find_images([folder])

    def test_a_folder_without_images(self, tmp_path):
        with pytest.raises(DataError, match=r"no images in .*supported suffixes are \.jpg"):
            find_images([tmp_path])


class TestImageIndex:
    CONTENT = {"images": [{"id": 5, "file_name": "val/a.png"}], "categories": [{"id": 3, "name": "star"}], "extra": 1}

    def test_names_by_id_and_content(self, write):
        path = write(self.CONTENT)
        index = ImageIndex.read(path)
        assert (index.path, index.file_names, index.class_names) == (path, {5: "val/a.png"}, {3: "star"})
        assert index.content == self.CONTENT

    def test_a_file_with_only_images(self, write):
        index = ImageIndex.read(write({"images": self.CONTENT["images"]}))
        assert index.file_names == {5: "val/a.png"} and index.class_names == {}

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ({"images": [{"id": 5}]}, r"an image lacks its id or file_name"),
            ({"images": [{"file_name": "a.png"}]}, r"an image lacks its id or file_name"),
            ({"categories": [{"id": 3}]}, r"or a category lacks its id or name"),
            ({"images": [5]}, r"an image lacks its id or file_name"),
        ],
    )
    def test_missing_ids_and_names(self, write, fault, message):
        path = write(self.CONTENT | fault, "index.json")
        with pytest.raises(DataError, match=rf"index\.json: .*{message}.*python -m iounet\.data\.check {path}"):
            ImageIndex.read(path)

    def test_invalid_files(self, write, tmp_path):
        with pytest.raises(DataError, match=r"nowhere\.json: no such annotation file"):
            ImageIndex.read(tmp_path / "nowhere.json")
        with pytest.raises(DataError, match=r"index\.json"):
            ImageIndex.read(write([ENTRY], "index.json"))


class TestDetectionsFile:
    CLASSES = [{"id": 3, "name": "cross"}, {"id": 8, "name": "star"}]
    FILES = [Path("val/a.png"), Path("val/000007.png")]

    def test_without_an_annotation_file(self, write):
        path = write([ENTRY, ENTRY | {"image_id": "a"}, ENTRY])
        detections = DetectionsFile.read(path, self.FILES, None, self.CLASSES)
        assert detections.path == path and len(detections.results) == 3
        assert detections.paths == {7: self.FILES[1], "a": self.FILES[0]}
        assert detections.class_names == detections.listed_ids == {}
        assert detections.labels == {3: 1}  # by id

    def test_with_an_annotation_file(self, write):
        index = ImageIndex("index.json", {5: "a.png", 9: "000007.png"}, {3: "Star"}, {})
        detections = DetectionsFile.read(
            write([ENTRY | {"image_id": id_} for id_ in (9, "a")]), self.FILES, index, self.CLASSES
        )
        assert detections.paths == {9: self.FILES[1], "a": self.FILES[0]}
        assert detections.listed_ids == {9: 9, "a": 5}
        assert detections.labels == {3: 2}  # by name

    def test_an_image_that_the_annotation_file_does_not_list(self, write):
        index = ImageIndex("index.json", {5: "a.png"}, {}, {})
        with pytest.raises(DataError, match=r"1 image id matches none .*: 7; the annotation file does not list 1"):
            DetectionsFile.read(write([ENTRY]), self.FILES, index, self.CLASSES)

    def test_a_file_name_that_contradicts_the_annotation_file(self, write):
        """ultralytics gives 7.png the image_id 7, which may be another image's id in the annotation file."""
        index = ImageIndex("a.json", {7: "a.png", 8: "7.png"}, {}, {})
        files = [Path("photos/a.png"), Path("photos/7.png")]
        with pytest.raises(DataError, match=r"image_id 7 is 7\.png by its file_name, but a\.png in a\.json; set each"):
            DetectionsFile.read(write([ENTRY | {"file_name": "7.png"}]), files, index, self.CLASSES)
        agreeing = DetectionsFile.read(write([ENTRY | {"file_name": "val/a.png"}]), files, index, self.CLASSES)
        assert agreeing.paths == {7: files[0]}


def test_files_with_supported_suffixes_can_be_read(folder):
    known = Image.registered_extensions()
    assert all(path.suffix.lower() in known for path in find_images([folder]))
