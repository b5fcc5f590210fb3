"""Reading label files in any format. The expected boxes are computed by hand; each test writes its own faults."""

import json
import os
import shutil

import pytest
from PIL import Image, ImageOps

from iounet.data.label_files import list_splits, read_labels
from iounet.errors import DataError

BOXES = [("dog", (10, 5, 30, 15)), ("cat", (0, 0, 8, 20)), ("cat", (2, 4, 12, 14))]


def boxes_of(labels):
    return [(label.class_name, pytest.approx(label.box)) for label in labels.boxes]


def faults_of(labels):
    return [(fault.where, fault.rule) for fault in labels.faults]


@pytest.mark.parametrize(
    ("form", "names", "image_keys", "keys"),
    [
        ("coco", ["dog", "cat"], ["1", "2"], ["annotation 4", "annotation 5", "annotation 6"]),
        ("voc", ["cat", "dog"], ["a.png", "b.png"], ["a.xml object 1", "a.xml object 2", "b.xml object 1"]),
        (
            "yolo",
            ["dog", "cat"],
            ["images/a.png", "images/b.png"],
            ["labels/a.txt line 1", "labels/a.txt line 2", "labels/b.txt line 1"],
        ),
    ],
)
def test_all_forms_give_the_same_labels(pets, form, names, image_keys, keys):
    labels = read_labels(pets(form))
    assert boxes_of(labels) == BOXES
    assert [label.image for label in labels.boxes] == [0, 0, 1]
    assert [label.key for label in labels.boxes] == keys
    assert [image.key for image in labels.images] == image_keys
    assert [(image.width, image.height) for image in labels.images] == [(40, 20), (20, 20)]
    assert all(image.path.is_file() for image in labels.images)
    assert labels.class_names == names
    assert labels.faults == []


class TestSplits:
    @pytest.mark.parametrize("form", ["voc", "yolo"])
    def test_one_split_or_all(self, split_pets, form):
        source = split_pets(form)
        assert list_splits(source) == ["train", "val"]
        assert boxes_of(read_labels(source)) == BOXES
        train, val = read_labels(source, split="train"), read_labels(source, split="val")
        assert (boxes_of(train), boxes_of(val)) == (BOXES[:2], BOXES[2:])
        # val has no dog, but its classes are those of the whole data set.
        assert sorted(train.class_names) == ["cat", "dog"]
        assert train.class_names == val.class_names

    def test_a_missing_split(self, split_pets):
        with pytest.raises(DataError, match="has no split 'test', only train, val"):
            read_labels(split_pets("voc"), split="test")

    @pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
    def test_a_set_without_splits(self, pets, form):
        source = pets(form)
        assert list_splits(source) == []
        with pytest.raises(DataError, match="has no splits; omit the split 'train'"):
            read_labels(source, split="train")

    def test_valid_is_val(self, split_pets):
        root = split_pets("voc")
        (root / "val").rename(root / "valid")
        assert boxes_of(read_labels(root, split="val")) == BOXES[2:]

    def test_splits_of_a_devkit_that_overlap(self, pets, tmp_path):
        flat = pets("voc")
        root = tmp_path / "devkit"
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        for name in "ab":
            shutil.copy(flat / f"{name}.xml", root / "Annotations")
            shutil.copy(flat / f"{name}.png", root / "JPEGImages")
        for split, text in {"train": "a", "trainval": "b\na", "dog_train": "a 1"}.items():
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text(text)
        assert list_splits(root) == ["train", "trainval"]
        assert boxes_of(read_labels(root)) == BOXES
        assert boxes_of(read_labels(root, split="train")) == BOXES[:2]


class TestVoc:
    def test_annotations_and_images_in_two_folders(self, pets, tmp_path):
        flat = pets("voc")
        for labels, images in (("Annotations", "JPEGImages"), ("annotations", "images")):
            root = tmp_path / labels
            shutil.copytree(flat, root / labels, ignore=shutil.ignore_patterns("*.png"))
            shutil.copytree(flat, root / images, ignore=shutil.ignore_patterns("*.xml"))
            read = read_labels(root)
            assert boxes_of(read) == BOXES
            assert [image.key for image in read.images] == [f"{images}/a.png", f"{images}/b.png"]

    def test_unusable_objects_are_reported(self, pets):
        root = pets("voc")
        text = (root / "a.xml").read_text()
        (root / "a.xml").write_text(text.replace("<xmin>11<", "<xmin>nan<").replace("<ymax>20<", "<ymax>1<"))
        (root / "gone.xml").write_text(text)
        (root / "other.xml").write_text("<plist><object/></plist>")
        (root / "cut.xml").write_text(text[:90])
        (root / "small.xml").write_text(text)
        (root / "small.PNG").write_bytes((root / "b.png").read_bytes())
        (root / "text.xml").write_text(text)
        (root / "text.jpg").write_text("no picture")
        labels = read_labels(root)
        assert boxes_of(labels) == BOXES[2:]
        assert faults_of(labels) == [
            ("a.xml object 1", "box is not finite"),
            ("a.xml object 2", "box has no area"),
            ("cut.xml", "not XML"),
            ("gone.xml", "missing image"),
            ("other.xml", "not an annotation of Pascal VOC"),
            ("small.xml", "wrong width or height"),
            ("text.xml", "unreadable image"),
        ]
        assert "root element is <plist>, not <annotation>" in labels.faults[4].text
        assert [image.key for image in labels.images] == ["a.png", "b.png"]

    def test_the_images_of_a_devkit_are_elsewhere(self, pets, tmp_path):
        flat, root = pets("voc"), tmp_path / "devkit"
        shutil.copytree(flat, root / "Annotations", ignore=shutil.ignore_patterns("*.png"))
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
        with pytest.raises(DataError, match="JPEGImages: no such folder"):
            read_labels(root)
        shutil.copytree(flat, tmp_path / "photos" / "JPEGImages", ignore=shutil.ignore_patterns("*.xml"))
        for images in (tmp_path / "photos", tmp_path / "photos" / "JPEGImages"):
            assert boxes_of(read_labels(root, images=images)) == BOXES

    def test_labels_of_a_rotated_image(self, pets):
        """VOC files contain the image size, which reveals labels of the image after its EXIF rotation."""
        root = pets("voc")
        exif = Image.Exif()
        exif[0x0112] = 6
        for size in ((20, 40), (40, 20)):
            Image.new("RGB", size).save(root / "a.png", exif=exif)
            expected = [("a.xml", "annotated as rotated by EXIF")] if size == (20, 40) else []
            assert faults_of(read_labels(root)) == expected

    def test_of_two_images_the_named_one_is_used(self, pets):
        root = pets("voc")
        Image.new("RGB", (5, 5)).save(root / "a.jpg")
        text = (root / "a.xml").read_text()
        (root / "a.xml").write_text(text.replace("<size>", "<filename>C:\\pets\\a.png</filename><size>"))
        assert [image.key for image in read_labels(root).images] == ["a.png", "b.png"]

    def test_difficult_objects_are_crowds(self, pets):
        root = pets("voc")
        text = (root / "a.xml").read_text()
        (root / "a.xml").write_text(text.replace("</name>", "</name><difficult> 1 </difficult>", 1))
        assert [label.crowd for label in read_labels(root).boxes] == [True, False, False]

    def test_parts_of_an_object_are_not_the_object(self, pets):
        root = pets("voc")
        part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        text = (root / "a.xml").read_text()
        (root / "a.xml").write_text(text.replace("</object>", part))
        assert boxes_of(read_labels(root)) == BOXES


class TestYolo:
    def test_unusable_lines_are_reported(self, pets):
        root = pets("yolo")
        lines = [
            "0 0.5 0.5 0.5 0.5",
            "",
            "2 0.5 0.5 0.5 0.5",
            "0 0.5 0.5 0.5 0.5 0.93",
            "0 0.5 0.5 0.5",
            "0 0.5 0.5 0.5 cat",
            "0 0.5 nan 0.5 0.5",
            "0 20 10 20 10",
            "0 0.5 0.5 0 0.5",
            "0 0.5 0.5 -0.1 0.5",
            "0.5 0.5 0.5 0.5 0.5",
            "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4",
            "0 1.005 0.5 0.009 0.5",
        ]
        (root / "labels" / "a.txt").write_text("\n".join(lines))
        labels = read_labels(root)
        assert boxes_of(labels) == [BOXES[0], BOXES[2]]
        assert faults_of(labels) == [
            (f"labels/a.txt line {number}", rule)
            for number, rule in [
                (3, "unknown class"),
                (4, "line of six numbers"),
                (5, "line of the wrong length"),
                (6, "line is not numbers"),
                (7, "line is not finite"),
                (8, "coordinates are not normalised"),
                (9, "box has no area"),
                (10, "box has no area"),
                (11, "no class index"),
                (12, "line of the wrong length"),
                (13, "box lies outside its image"),
            ]
        ]
        assert (
            labels.faults[0].text
            == "class 2 has no name; the named classes are 0 to 1. Correct the line, or add the name"
        )
        assert "the sixth may be the confidence" in labels.faults[1].text

    def test_a_polygon_is_a_box_that_cannot_be_moved(self, pets):
        root = pets("yolo")
        (root / "labels" / "a.txt").write_text("0 0.25 0.5 0.5 0.25 0.75 0.75\n1 0.1 0.5 0.2 1\n")
        labels = read_labels(root)
        assert boxes_of(labels) == BOXES
        assert [label.movable for label in labels.boxes] == [False, True, True]

    def test_polygons_with_the_same_box_are_not_the_same(self, pets):
        root = pets("yolo")
        (root / "labels" / "a.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75\n0 0.25 0.25 0.75 0.75 0.25 0.75\n")
        labels = read_labels(root)
        assert boxes_of(labels)[:2] == [BOXES[0]] * 2
        assert labels.faults == []

    def test_boxes_are_clipped_and_repeated_ones_noted(self, pets):
        root = pets("yolo")
        (root / "labels" / "b.txt").write_text("1 0 0.5 0.5 0.5\n0 0 0.5 0.5 0.5\n1 0.0 0.50 0.5 0.5\n")
        labels = read_labels(root)
        assert boxes_of(labels)[2:] == [("cat", (0, 5, 5, 15)), ("dog", (0, 5, 5, 15)), ("cat", (0, 5, 5, 15))]
        assert [(fault.where, fault.rule, fault.text) for fault in labels.faults] == [
            ("labels/b.txt line 3", "repeated box", "repeats labels/b.txt line 1; remove one of them")
        ]

    def test_images_without_labels_and_labels_without_images(self, pets):
        root = pets("yolo")
        (root / "labels" / "b.txt").rename(root / "labels" / "c.txt")
        labels = read_labels(root)
        assert [image.key for image in labels.images] == ["images/a.png", "images/b.png"]
        assert boxes_of(labels) == BOXES[:2]
        assert faults_of(labels) == [("labels/c.txt", "missing image")]
        # A file without labels is not a label file.
        (root / "labels" / "c.txt").write_text("some notes\n0\n")
        assert read_labels(root).faults == []

    def test_two_images_cannot_share_a_label_file(self, pets):
        root = pets("yolo")
        Image.new("RGB", (8, 8)).save(root / "images" / "a.jpg")
        labels = read_labels(root)
        assert faults_of(labels) == [("images/a.png", "shared label file")]
        assert len({label.key for label in labels.boxes}) == len(labels.boxes)

    def test_classes_without_names_are_numbers(self, pets):
        root = pets("yolo")
        (root / "classes.txt").unlink()
        (root / "labels" / "b.txt").write_text("999999999 0.35 0.45 0.5 0.5")
        labels = read_labels(root)
        assert labels.class_names == ["0", "1", "999999999"]
        assert [label.class_name for label in labels.boxes] == ["0", "1", "999999999"]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_labels_refer_to_the_displayed_image(self, tmp_path, orientation):
        """Ultralytics applies the EXIF rotation; the boxes are converted to the stored pixels."""
        stored = (8, 16, 40, 24)
        image = Image.new("L", (64, 32))
        image.paste(255, stored)
        exif = Image.Exif()
        exif[0x0112] = orientation
        (tmp_path / "images").mkdir()
        image.save(tmp_path / "images" / "a.png", exif=exif)
        shown = ImageOps.exif_transpose(Image.open(tmp_path / "images" / "a.png"))
        x0, y0, x1, y1 = shown.getbbox()
        numbers = (x0 + x1) / 2 / shown.width, (y0 + y1) / 2 / shown.height
        numbers += (x1 - x0) / shown.width, (y1 - y0) / shown.height
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.txt").write_text("0 " + " ".join(f"{number:.6f}" for number in numbers))
        labels = read_labels(tmp_path)
        assert labels.boxes[0].box == pytest.approx(stored)
        labels.write_copy(tmp_path / "copy", {labels.boxes[0].key: stored})
        assert (tmp_path / "copy" / "labels" / "a.txt").read_text() == (tmp_path / "labels" / "a.txt").read_text()


class TestCoco:
    def test_unusable_annotations_are_reported(self, pets):
        path = pets("coco")
        content = json.loads(path.read_text())
        content["images"].append({"id": 3, "file_name": "c.png", "width": 5, "height": 5})
        content["annotations"] += [
            {"id": 4, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5]},
            {"id": 8, "image_id": 1, "category_id": 3, "bbox": [1, 1, 0, 5]},
            {"id": 9, "image_id": 3, "category_id": 3, "bbox": [1, 1, 2, 2]},
            {"id": 10, "image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 10]},
            {"image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 10]},
        ]
        path.write_text(json.dumps(content))
        labels = read_labels(path)
        assert [label.key for label in labels.boxes] == [f"annotation {number}" for number in (4, 5, 10, 6)]
        assert faults_of(labels) == [
            ("annotations 4", "duplicate annotation id"),
            ("annotations 8", "box has no area"),
            ("annotations at index 7", "no usable id"),
            ("images 3", "missing image"),
            ("annotation 10", "repeated box"),
        ]

    def test_a_label_with_a_segmentation_is_not_movable(self, pets):
        path = pets("coco")
        content = json.loads(path.read_text())
        content["annotations"][0]["segmentation"] = [[10, 5, 30, 5, 30, 15]]
        path.write_text(json.dumps(content))
        assert [label.movable for label in read_labels(path).boxes] == [False, True, True]

    @pytest.mark.parametrize("folder", [".", "images", "../images", "../pets", "pets"])
    def test_images_are_found_near_the_file(self, pets, folder):
        path = pets("coco")
        moved = path.parent / "annotations" / "instances_pets.json"
        moved.parent.mkdir()
        path.rename(moved)
        target = moved.parent / folder
        if target.exists():
            for image in (path.parent / "images").iterdir() if folder == "." else ():
                shutil.copy(image, target)
        else:
            shutil.copytree(path.parent / "images", target)
        if folder != "../images":
            shutil.rmtree(path.parent / "images")
        labels = read_labels(moved)
        assert os.path.samefile(labels.images[0].path.parent, target)

    def test_images_that_are_not_near_the_file(self, pets, tmp_path):
        path = pets("coco")
        (path.parent / "images").rename(tmp_path / "elsewhere")
        with pytest.raises(DataError, match=r"image folder not found: no images such as a.png in .*\(--images"):
            read_labels(path)
        assert boxes_of(read_labels(path, images=tmp_path / "elsewhere")) == BOXES
        with pytest.raises(DataError, match="nowhere: no such image folder"):
            read_labels(path, images=tmp_path / "nowhere")


class TestUnknownSources:
    def test_a_missing_or_unknown_source(self, tmp_path):
        with pytest.raises(DataError, match="nowhere: no such file or folder"):
            read_labels(tmp_path / "nowhere")
        with pytest.raises(DataError, match=r"no label files in this folder; give a COCO-format .json, a data.yaml"):
            read_labels(tmp_path)
        (tmp_path / "labels.csv").write_text("a,b\n")
        with pytest.raises(DataError, match="labels.csv: unknown kind of label file; give a COCO-format"):
            read_labels(tmp_path / "labels.csv")

    def test_a_folder_of_coco_files(self, pets):
        path = pets("coco")
        with pytest.raises(DataError, match=rf"for labels in COCO format, give the file, such as {path}"):
            read_labels(path.parent)

    def test_no_usable_label(self, pets):
        root = pets("yolo")
        for name in "ab":
            (root / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.5\n" * 2)
        with pytest.raises(DataError, match=r"no usable label: labels/a.txt line 1: 4 numbers: .*; and 1 more$"):
            read_labels(root)
        for name in "ab":
            (root / "labels" / f"{name}.txt").unlink()
        with pytest.raises(DataError, match="none of its 2 images has a label"):
            read_labels(root)
