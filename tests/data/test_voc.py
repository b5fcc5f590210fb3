"""Conversion of a VOC folder with four images; the expected boxes are computed by hand from VOC's definition."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from iounet.data import CocoDataset, DataError
from iounet.data.voc import convert_voc, main


def voc_object(name, xmin, ymin, xmax, ymax, difficult=0):
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def voc_annotation(*objects, size="<size><width>40</width><height>30</height><depth>3</depth></size>"):
    return f"<annotation>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "voc"
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    annotations = {
        # In VOC, the first pixel alone is [1, 1, 1, 1]; two by three pixels at the corner are [1, 1, 2, 3].
        "one": voc_annotation(voc_object("dog", 1, 1, 2, 3), voc_object("cat", 11, 6, 40, 30, difficult=1)),
        "two": voc_annotation(
            voc_object("dog", 8, 9, 8, 20),
            voc_object("cat", 5.5, 0, 10, 99),
            voc_object("dog", 50, 5, 60, 9),
            voc_object("cat", "?", 1, 5, 5),
        ),
        "no objects": voc_annotation(size=""),
        "four": voc_annotation(voc_object("ant", 3, 3, 6, 6)),
    }
    for name, text in annotations.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
    splits = {
        "train": "one\ntwo\n",
        "val": "no objects\nfour",
        "trainval": "one\ntwo\nno objects\nfour\n",
        "later": "\n",
    }
    for split, text in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text)
    (root / "ImageSets" / "Main" / "dog_train.txt").write_text("one  1\ntwo -1\n")
    return root


def read(path):
    return json.loads(path.read_text())


def test_boxes_ids_and_difficult_objects(root, tmp_path):
    convert_voc(root, tmp_path / "coco")
    train, val = read(tmp_path / "coco" / "train.json"), read(tmp_path / "coco" / "val.json")
    categories = [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}]
    assert train["categories"] == val["categories"] == categories
    # Names in alphabetical order: four, no objects, one, two.
    assert train["images"] == [
        {"id": 3, "file_name": "one.jpg", "width": 40, "height": 30},
        {"id": 4, "file_name": "two.jpg", "width": 40, "height": 30},
    ]
    assert [a | {"area": None} for a in train["annotations"]] == [
        {"id": 1, "image_id": 3, "category_id": 3, "bbox": [0, 0, 2, 3], "iscrowd": 0, "area": None},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [10, 5, 30, 25], "iscrowd": 1, "area": None},
        {"id": 3, "image_id": 4, "category_id": 2, "bbox": [4.5, 0, 5.5, 30], "iscrowd": 0, "area": None},
    ]
    assert [a["area"] for a in train["annotations"]] == [6, 750, 165]
    assert [a["id"] for a in val["annotations"]] == [1]


def test_only_lists_of_images_are_splits(root, tmp_path):
    assert sorted(convert_voc(root, tmp_path / "coco")) == ["train", "trainval", "val"]
    assert sorted(path.name for path in (tmp_path / "coco").iterdir()) == [
        "train.json",
        "trainval.json",
        "val.json",
    ]


def test_converted_and_left_out_boxes(root, tmp_path):
    train = convert_voc(root, tmp_path / "coco")["train"]
    assert train.num_images == 2
    assert train.num_boxes == {"ant": 0, "cat": 2, "dog": 1}
    assert [(item.file.name, item.number) for item in train.left_out] == [("two.xml", n) for n in (1, 3, 4)]
    reasons = [item.reason for item in train.left_out]
    assert reasons[0] == "dog: bndbox has no area: xmin 8, ymin 9, xmax 8, ymax 20; correct or remove the object"
    assert reasons[1].startswith("dog: bndbox lies outside its image of 40 x 30 pixels")
    assert reasons[2].startswith("cat: bndbox is not four numbers")


def test_classes_determine_the_ids(root, tmp_path):
    converted = convert_voc(root, tmp_path / "coco", classes=["dog", "cat"])
    assert read(tmp_path / "coco" / "val.json")["categories"] == [
        {"id": 1, "name": "dog"},
        {"id": 2, "name": "cat"},
    ]
    assert [item.reason for item in converted["val"].left_out] == ["class ant is not one of the given classes"]


def test_the_data_set_reads_it(root, tmp_path):
    convert_voc(root, tmp_path / "coco")
    dataset = CocoDataset(tmp_path / "coco" / "trainval.json", root / "JPEGImages")
    assert len(dataset) == 4
    assert dataset[0][1]["boxes"].tolist() == [[0, 0, 2, 3]]
    assert dataset[2][1]["boxes"].shape == (0, 4)


def test_missing_splits(root, tmp_path):
    for file in (root / "ImageSets" / "Main").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="Main: no split file .* give the folder that contains ImageSets"):
        convert_voc(root, tmp_path / "coco")


class TestFlat:
    """Annotations beside the images, in a folder for each split, as labelImg writes them."""

    @pytest.fixture
    def flat(self, tmp_path):
        flat = tmp_path / "flat"
        for split, names in (("train", "abcde"), ("test", "fg")):
            (flat / split).mkdir(parents=True)
            for number, name in enumerate(names):
                suffix = "JPG" if name in "bf" else "jpg"
                Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(flat / split / f"{name}.{suffix}")
                text = voc_annotation(voc_object("cat" if number % 2 else "ant", 1, 1, number + 2, 3))
                (flat / split / f"{name}.xml").write_text(text)
        Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(flat / "train" / "without annotations.jpg")
        (flat / "notes").mkdir()
        return flat

    def test_a_folder_is_a_split(self, flat, tmp_path):
        converted = convert_voc(flat, tmp_path / "coco")
        assert {split: of_split.num_images for split, of_split in converted.items()} == {"test": 2, "train": 5}
        dataset = CocoDataset(tmp_path / "coco" / "train.json", flat)
        assert [image["file_name"] for image in dataset.images] == [
            "train/a.jpg",
            "train/b.JPG",
            *(f"train/{name}.jpg" for name in "cde"),
        ]
        assert dataset[1][1]["boxes"].tolist() == [[0, 0, 3, 3]]
        assert [category["name"] for category in dataset.categories] == ["ant", "cat"]

    def test_a_single_folder_is_train(self, flat, tmp_path):
        """A single folder, as labelImg writes it."""
        converted = convert_voc(flat / "train", tmp_path / "coco", val_share=0.4)
        assert {split: of_split.num_images for split, of_split in converted.items()} == {"train": 3, "val": 2}
        dataset = CocoDataset(tmp_path / "coco" / "val.json", flat / "train")
        assert all("/" not in image["file_name"] for image in dataset.images)

    def test_a_share_of_train_becomes_val(self, flat, tmp_path):
        for folder in ("one", "two"):
            convert_voc(flat, tmp_path / folder, val_share=0.4)
        names = {
            split: [image["file_name"] for image in read(tmp_path / "one" / f"{split}.json")["images"]]
            for split in ("train", "val", "test")
        }
        assert [len(names[split]) for split in names] == [3, 2, 2]
        assert sorted(names["train"] + names["val"]) == sorted(["train/b.JPG", *(f"train/{n}.jpg" for n in "acde")])
        assert (tmp_path / "one" / "val.json").read_text() == (tmp_path / "two" / "val.json").read_text()

    def test_a_share_needs_train_and_no_val(self, flat, root, tmp_path):
        with pytest.raises(DataError, match="needs a split train and no split val; the splits are train, trainval"):
            convert_voc(root, tmp_path / "coco", val_share=0.2)
        (flat / "train").rename(flat / "all")
        with pytest.raises(DataError, match="needs a split train .* the splits are all, test"):
            convert_voc(flat, tmp_path / "coco", val_share=0.2)

    def test_an_annotation_without_its_image(self, flat, tmp_path):
        (flat / "train" / "b.JPG").unlink()
        with pytest.raises(
            DataError, match=r"train/b.xml: no image with this name .*; restore the image, or remove the annotation"
        ):
            convert_voc(flat, tmp_path / "coco")

    def test_neither_layout(self, tmp_path):
        with pytest.raises(DataError, match="neither ImageSets .* nor .xml files beside their images"):
            convert_voc(tmp_path, tmp_path / "coco")

    def test_command_line_refuses_a_share_out_of_range(self, flat, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["voc", str(flat), "--output", str(tmp_path / "c"), "--val-share", "20"])
        with pytest.raises(SystemExit):
            main()
        assert "--val-share must lie in [0, 1); got 20" in capsys.readouterr().err


def test_missing_image(root, tmp_path):
    (root / "JPEGImages" / "one.jpg").unlink()
    with pytest.raises(DataError, match=r"one.xml: no image with this name \(.jpg, .*\); restore the image"):
        convert_voc(root, tmp_path / "coco")


def test_missing_annotation(root, tmp_path):
    (root / "Annotations" / "one.xml").unlink()
    with pytest.raises(DataError, match="one.xml: no such file; restore it"):
        convert_voc(root, tmp_path / "coco")


def test_malformed_annotation(root, tmp_path):
    (root / "Annotations" / "one.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match="one.xml: not XML .*; repair or restore"):
        convert_voc(root, tmp_path / "coco")


def test_xml_of_another_kind(root, tmp_path):
    (root / "Annotations" / "one.xml").write_text("<dataset><object/></dataset>")
    with pytest.raises(DataError, match="one.xml: not a Pascal VOC annotation: .* <dataset>"):
        convert_voc(root, tmp_path / "coco")


def test_image_of_another_size(root, tmp_path):
    Image.fromarray(np.zeros((60, 80, 3), dtype=np.uint8)).save(root / "JPEGImages" / "one.jpg")
    with pytest.raises(
        DataError, match="one.jpg: the image is 80 wide and 60 high, .*one.xml says 40 wide and 30 high"
    ):
        convert_voc(root, tmp_path / "coco")


def test_unreadable_image(root, tmp_path):
    (root / "JPEGImages" / "one.jpg").write_text("no picture")
    with pytest.raises(DataError, match="one.jpg: cannot be read as an image"):
        convert_voc(root, tmp_path / "coco")


def test_command_line(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["voc", str(root), "--output", str(tmp_path / "coco")])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["split", "images", "ant", "cat", "dog", "boxes", "left", "out"]
    assert lines[1].split() == ["train", "2", "0", "2", "1", "3", "3"]
    # Image two is in train and in trainval; each of its boxes is reported once.
    assert [line.split("object ")[1][0] for line in lines if line.startswith("left out: ")] == ["1", "3", "4"]


def test_an_output_folder_that_is_a_file(root, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["voc", str(root), "--output", str(tmp_path / "file")])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'file'}: cannot be used as the output folder")
