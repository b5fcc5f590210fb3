"""Corrected copies of label files: moved boxes change, and every other byte stays the same."""

import json
import os
import random
import shutil

import pytest
import yaml

from iounet.data.label_files import read_labels
from iounet.errors import DataError

MOVED = (11.25, 4.0, 29.0, 16.0)


def label_files(root):
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".png"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def copy_with_images(labels, source, output, boxes):
    """Copy a VOC or YOLO folder with its images, so that the copy can be read."""
    written = labels.write_copy(output, boxes)
    for path in source.rglob("*.png"):
        target = output / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return written


class TestAllForms:
    @pytest.mark.parametrize("form", ["voc", "yolo"])
    def test_nothing_moved_is_the_same_bytes(self, pets, tmp_path, form):
        root = pets(form)
        damaged = {"voc": "a.xml", "yolo": "labels/a.txt"}[form]
        (root / damaged).write_bytes(b"\xff\xfe no label \r\n\r")
        written = read_labels(root).write_copy(tmp_path / "copy", {})
        assert label_files(tmp_path / "copy") == label_files(root)
        assert sorted(written) == sorted(path for path in (tmp_path / "copy").rglob("*") if path.is_file())

    def test_nothing_moved_is_the_same_json(self, pets, tmp_path):
        path = pets("coco")
        assert read_labels(path).write_copy(tmp_path / "copy.json", {}) == [tmp_path / "copy.json"]
        assert (tmp_path / "copy.json").read_bytes() == path.read_bytes()

    @pytest.mark.parametrize(("form", "precision"), [("coco", 0.011), ("voc", 0.5), ("yolo", 1e-4)])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_copy_is_read_with_the_boxes_that_were_written(self, pets, tmp_path, form, precision, seed):
        source = pets(form)
        labels = read_labels(source)
        draw = random.Random(seed)
        boxes = {}
        for label in labels.boxes:
            image = labels.images[label.image]
            x0, y0 = draw.uniform(0, image.width - 3), draw.uniform(0, image.height - 3)
            boxes[label.key] = x0, y0, draw.uniform(x0 + 2, image.width), draw.uniform(y0 + 2, image.height)
        kept = boxes.pop(labels.boxes[1].key) and labels.boxes[1]
        if form == "coco":
            labels.write_copy(tmp_path / "copy.json", boxes)
            copy = read_labels(tmp_path / "copy.json", images=source.parent / "images")
        else:
            copy_with_images(labels, source, tmp_path / "copy", boxes)
            copy = read_labels(tmp_path / "copy")
        assert [label.key for label in copy.boxes] == [label.key for label in labels.boxes]
        for label in copy.boxes:
            expected = boxes.get(label.key, kept.box)
            assert label.box == pytest.approx(expected, abs=precision if label.key in boxes else 1e-9)

    @pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
    def test_a_source_is_never_overwritten(self, pets, tmp_path, form):
        source = pets(form)
        labels = read_labels(source)
        (tmp_path / "link").symlink_to(source)
        (tmp_path / "folder").symlink_to(source.parent, target_is_directory=True)
        before = label_files(tmp_path)
        for output in (source, tmp_path / "link", tmp_path / "folder" / source.name, source.parent / "." / source.name):
            with pytest.raises(DataError, match="would overwrite the label file .*; choose another output"):
                labels.write_copy(output, {})
        assert label_files(tmp_path) == before

    @pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
    def test_a_file_that_changed_is_not_copied(self, pets, tmp_path, form):
        source = pets(form)
        labels = read_labels(source)
        changed = {"coco": source, "voc": source / "b.xml", "yolo": source / "labels" / "b.txt"}[form]
        changed.write_bytes(changed.read_bytes() + b"\n")
        with pytest.raises(DataError, match=f"{changed.name}: the file has changed since its labels were read"):
            labels.write_copy(tmp_path / "copy", {})
        assert not (tmp_path / "copy").exists()
        changed.unlink()
        with pytest.raises(DataError, match=f"{changed.name}: the file no longer exists"):
            labels.write_copy(tmp_path / "copy", {})

    @pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
    def test_unknown_labels(self, pets, tmp_path, form):
        with pytest.raises(ValueError, match="has no label 'annotation 99'"):
            read_labels(pets(form)).write_copy(tmp_path / "copy", {"annotation 99": MOVED})
        assert not (tmp_path / "copy").exists()

    @pytest.mark.parametrize("form", ["voc", "yolo"])
    def test_a_split_changes_and_the_others_are_copied(self, split_pets, tmp_path, form):
        source = split_pets(form)
        root = source if form == "voc" else source.parent
        labels = read_labels(source, split="train")
        copy_with_images(labels, root, tmp_path / "copy", {labels.boxes[0].key: (10, 5, 29, 15)})
        before, after = label_files(root), label_files(tmp_path / "copy")
        assert list(before) == list(after)
        assert [name for name in before if before[name] != after[name]] == [
            "train/a.xml" if form == "voc" else "train/labels/a.txt"
        ]
        again = read_labels(tmp_path / "copy", split="train")
        assert again.boxes[0].box == pytest.approx((10, 5, 29, 15))


class TestCoco:
    def test_only_the_box_and_its_area_change(self, pets, tmp_path):
        path = pets("coco")
        content = json.loads(path.read_text())
        labels = read_labels(path)
        labels.write_copy(tmp_path / "copy.json", {label.key: (1.001, 2.004, 4.0, 6.5) for label in labels.boxes})
        for annotation, area in zip(content["annotations"], (13.5, 150, None), strict=True):
            annotation["bbox"] = [1.0, 2.0, 3.0, 4.5]
            if area is not None:
                annotation["area"] = area
        assert (tmp_path / "copy.json").read_text() == json.dumps(content)  # also the order of the keys

    def test_a_label_with_a_segmentation_cannot_be_moved(self, pets, tmp_path):
        path = pets("coco")
        content = json.loads(path.read_text())
        content["annotations"][0]["segmentation"] = [[10, 5, 30, 5, 30, 15]]
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="annotation 4: the label cannot be moved"):
            read_labels(path).write_copy(tmp_path / "copy.json", {"annotation 4": MOVED})


class TestVoc:
    ODD = (
        b'<?xml version="1.0" encoding="ISO-8859-1"?>\r\n<!-- by hand: \xe4 <xmin>1</xmin> -->'
        b'<annotation verified="yes">\n'
        b"<object><name>chat \xe9lanc\xe9</name><bndbox>\r\n <ymax>15</ymax><xmin> 11 </xmin><ymin\n>6</ymin>"
        b"<xmax unit='px'>30</xmax></bndbox><bndbox><xmin>2</xmin></bndbox></object>\n"
        b"<object><name>dog</name><bndbox><xmin>1.5</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        b"</annotation  >"
    )

    def test_every_other_byte_stays(self, pets, tmp_path):
        root = pets("voc")
        (root / "a.xml").write_bytes(self.ODD)
        labels = read_labels(root)
        assert labels.boxes[0].class_name == "chat élancé"
        assert labels.boxes[0].box == (10, 5, 30, 15)
        boxes = {"a.xml object 1": MOVED, "a.xml object 2": (0.123, 0.5, 10.0, 11.0)}
        labels.write_copy(tmp_path / "copy", boxes)
        expected = self.ODD
        for old, new in [
            (b"<ymax>15<", b"<ymax>16<"),
            (b"<xmin> 11 <", b"<xmin> 12 <"),
            (b"<ymin\n>6<", b"<ymin\n>5<"),
            (b"'px'>30<", b"'px'>29<"),
            (b"<xmin>1.5</xmin><ymin>2<", b"<xmin>1.12</xmin><ymin>1.50<"),
            (b"<xmax>9</xmax><ymax>9<", b"<xmax>10.00</xmax><ymax>11.00<"),
        ]:
            assert expected.count(old) == 1
            expected = expected.replace(old, new)
        assert (tmp_path / "copy" / "a.xml").read_bytes() == expected

    @pytest.mark.parametrize(
        ("box", "corners"),
        [
            ((0.0, 0.0, 40.0, 20.0), ("1", "1", "40", "20")),
            ((10.5, 5.49, 29.5, 15.5), ("12", "6", "30", "16")),
            ((3.2, 5.0, 4.4, 15.0), ("4", "6", "5", "15")),  # rounded, one pixel wide: no area for most readers
            ((39.6, 19.6, 40.0, 20.0), ("39", "19", "40", "20")),
        ],
    )
    def test_integers_stay_integers_in_the_image(self, pets, tmp_path, box, corners):
        root = pets("voc")
        read_labels(root).write_copy(tmp_path / "copy", {"a.xml object 1": box})
        text = (tmp_path / "copy" / "a.xml").read_text()
        found = [text.split(f"<{corner}>")[1].split("<")[0] for corner in ("xmin", "ymin", "xmax", "ymax")]
        assert tuple(found) == corners

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("<xmin>11<", "<xmin>1<!-- one -->1<"),
            ("<xmin>11<", "<xmin>&#49;1<"),
            ("<xmin>11<", "<xmin><![CDATA[11]]><"),
        ],
    )
    def test_a_box_whose_corner_is_not_plain_text_cannot_be_moved(self, pets, tmp_path, old, new):
        root = pets("voc")
        text = (root / "a.xml").read_text().replace(old, new)
        (root / "a.xml").write_text(text)
        labels = read_labels(root)
        assert labels.boxes[0].box == (10, 5, 30, 15)
        assert [label.movable for label in labels.boxes] == [False, True, True]

    def test_other_encodings(self, pets, tmp_path):
        root = pets("voc")
        text = (root / "a.xml").read_text()
        (root / "a.xml").write_bytes(b"\xef\xbb\xbf" + text.encode())
        (root / "b.xml").write_text((root / "b.xml").read_text(), encoding="utf-16")
        labels = read_labels(root)
        assert [label.movable for label in labels.boxes] == [True, True, False]
        labels.write_copy(tmp_path / "copy", {"a.xml object 1": (10, 5, 29, 15)})
        expected = b"\xef\xbb\xbf" + text.replace("<xmax>30<", "<xmax>29<").encode()
        assert (tmp_path / "copy" / "a.xml").read_bytes() == expected

    def test_the_lists_of_a_devkit_are_copied(self, pets, tmp_path):
        flat, root = pets("voc"), tmp_path / "devkit"
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        for name in "ab":
            shutil.copy(flat / f"{name}.xml", root / "Annotations")
            shutil.copy(flat / f"{name}.png", root / "JPEGImages")
        (root / "Annotations" / "in no list.xml").write_text("<annotation/>")
        (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\ngone\n")
        (root / "ImageSets" / "Main" / "dog_train.txt").write_text("a 1\n")
        read_labels(root).write_copy(tmp_path / "copy", {})
        assert label_files(tmp_path / "copy") == label_files(root)


class TestYolo:
    def test_only_the_numbers_of_a_moved_line_change(self, pets, tmp_path):
        root = pets("yolo")
        lines = b" 0\t0.5 0.5  0.50 .5 \r\n\n0 0.1 0.1\r1 1e-1 0.5 0.2 1\n0 0.1 0.1 0.2 0.2 0.3 0.1\n1 0.2 0.5 0.1 1"
        (root / "labels" / "a.txt").write_bytes(lines)
        labels = read_labels(root)
        keys = [label.key for label in labels.boxes]
        assert keys[:4] == [f"labels/a.txt line {number}" for number in (1, 4, 5, 6)]
        labels.write_copy(tmp_path / "copy", {keys[0]: (10, 5, 31, 15), keys[3]: (7, 0, 9, 20)})
        assert (tmp_path / "copy" / "labels" / "a.txt").read_bytes() == (
            b" 0\t0.512500 0.500000  0.525000 0.500000 \r\n\n0 0.1 0.1\r1 1e-1 0.5 0.2 1\n"
            b"0 0.1 0.1 0.2 0.2 0.3 0.1\n1 0.200000 0.500000 0.050000 1.000000"
        )

    def test_a_polygon_cannot_be_moved(self, pets, tmp_path):
        root = pets("yolo")
        (root / "labels" / "a.txt").write_text("0 0.25 0.5 0.5 0.25 0.75 0.75\n")
        with pytest.raises(ValueError, match="labels/a.txt line 1: the label cannot be moved"):
            read_labels(root).write_copy(tmp_path / "copy", {"labels/a.txt line 1": MOVED})

    @pytest.mark.parametrize("path", [None, "absolute", "../split_yolo", "."])
    def test_the_copy_of_data_yaml_leads_to_the_copy(self, split_pets, tmp_path, path, monkeypatch):
        """With a copied ``path``, training on the copy would read the original labels."""
        source = split_pets("yolo")
        monkeypatch.chdir(source.parent)
        root, text = source.parent, source.read_text()
        if path is not None:
            text = f"path: {root if path == 'absolute' else path}\n{text}"
        source.write_text(text)
        labels = read_labels(source)
        copy_with_images(labels, root, tmp_path / "copy", {"train/labels/a.txt line 1": (10, 5, 29, 15)})
        content = yaml.safe_load((tmp_path / "copy" / "data.yaml").read_text())
        assert content == {"train": "train/images", "val": "val/images", "names": ["dog", "cat"]}
        if path is None:
            assert (tmp_path / "copy" / "data.yaml").read_text() == text
        shutil.move(tmp_path / "copy", tmp_path / "moved")
        again = read_labels(tmp_path / "moved" / "data.yaml")
        assert [label.box for label in again.boxes][0] == pytest.approx((10, 5, 29, 15))
        assert len(again.boxes) == 3
        assert all(image.path.is_relative_to(tmp_path / "moved") for image in again.images)

    def test_lists_of_images_and_absolute_folders(self, split_pets, tmp_path):
        source = split_pets("yolo")
        root = source.parent
        lines = f"./train/images/a.png\r\n{root}/val/images/b.png\n"
        (root / "list.txt").write_bytes(lines.encode())
        source.write_text(f"train: {root}/list.txt\nval: [{root}/val/images]\nnames: {{0: dog, 1: cat}}\n")
        labels = read_labels(source)
        assert len(labels.boxes) == 3
        copy_with_images(labels, root, tmp_path / "copy", {})
        assert (tmp_path / "copy" / "list.txt").read_bytes() == b"./train/images/a.png\r\n./val/images/b.png\n"
        assert yaml.safe_load((tmp_path / "copy" / "data.yaml").read_text()) == {
            "train": "list.txt",
            "val": ["val/images"],
            "names": {0: "dog", 1: "cat"},
        }
        again = read_labels(tmp_path / "copy")
        assert [label.key for label in again.boxes] == [label.key for label in labels.boxes]
        assert all(image.path.is_relative_to(tmp_path / "copy") for image in again.images)

    def test_a_full_disk_leaves_no_partial_file(self, pets, tmp_path, monkeypatch):
        labels = read_labels(pets("yolo"))

        def fail(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError):
            labels.write_copy(tmp_path / "copy", {})
        assert label_files(tmp_path / "copy") == {}
