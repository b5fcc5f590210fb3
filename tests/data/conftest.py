"""A hand-written data set with category id 0, gaps in the ids, an empty image, a crowd and an overhanging box."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from iounet.data.check import main

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "empty.png", "width": 20, "height": 20},
        {"id": 0, "file_name": "deep/b.png", "width": 16, "height": 24},
    ],
    "annotations": [
        {"id": 5, "image_id": 0, "category_id": 90, "bbox": [2, 4, 6, 8], "area": 30.5, "iscrowd": 0},
        {"id": 0, "image_id": 7, "category_id": 17, "bbox": [10, 5, 20, 10]},
        {"id": 9, "image_id": 7, "category_id": 0, "bbox": [30.5, -2, 20, 12], "area": 240, "iscrowd": 0},
        {"id": 6, "image_id": 7, "category_id": 90, "bbox": [0, 0, 40, 30], "area": 900, "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "kite"}, {"id": 0, "name": "cat"}, {"id": 17, "name": "dog"}],
}


@pytest.fixture
def content():
    return copy.deepcopy(CONTENT)


@pytest.fixture
def write_set(tmp_path):
    """Write the given annotations and all images of CONTENT; return the annotation file and the image folder."""

    def write(content):
        for image in CONTENT["images"]:
            path = tmp_path / "images" / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((image["height"], image["width"], 3), 51, dtype=np.uint8)).save(path)
        annotation_file = tmp_path / "set.json"
        annotation_file.write_text(json.dumps(content))
        return annotation_file, tmp_path / "images"

    return write


def voc_xml(size, *objects):
    """Return a VOC annotation file from (width, height) and the name, xmin, ymin, xmax, ymax of each object."""
    texts = [
        f"\t<object>\n\t\t<name>{name}</name>\n\t\t<bndbox>\n\t\t\t<xmin>{xmin}</xmin>\n\t\t\t<ymin>{ymin}</ymin>\n"
        f"\t\t\t<xmax>{xmax}</xmax>\n\t\t\t<ymax>{ymax}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        for name, xmin, ymin, xmax, ymax in objects
    ]
    sides = f"\t<size><width>{size[0]}</width><height>{size[1]}</height></size>\n"
    return f"<annotation>\n{sides}{''.join(texts)}</annotation>\n"


# The same three objects in each format, converted by hand. Image a is 40 wide and 20 high, image b 20 by 20. As xyxy
# from the image's edges, the dog of a is (10, 5, 30, 15), its cat (0, 0, 8, 20), and the cat of b (2, 4, 12, 14).
PETS_VOC = {
    "a": voc_xml((40, 20), ("dog", 11, 6, 30, 15), ("cat", 1, 1, 8, 20)),
    "b": voc_xml((20, 20), ("cat", 3, 5, 12, 14)),
}
PETS_YOLO = {"a": "0 0.5 0.5 0.5 0.5\n1 0.1 0.5 0.2 1\n", "b": "1 0.35 0.45 0.5 0.5\n"}
PETS_COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 20},
        {"id": 2, "file_name": "b.png", "width": 20, "height": 20},
    ],
    "annotations": [
        {"id": 4, "image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 10], "area": 200, "note": "kept"},
        {"id": 5, "image_id": 1, "category_id": 7, "bbox": [0, 0, 8, 20], "area": 150, "segmentation": []},
        {"id": 6, "image_id": 2, "category_id": 7, "bbox": [2, 4, 10, 10], "iscrowd": 0},
    ],
    "categories": [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}],
    "info": {"year": 2018},
}


def pet_images(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in (("a", (40, 20)), ("b", (20, 20))):
        Image.new("RGB", size).save(folder / f"{name}.png")


@pytest.fixture
def pets(tmp_path):
    """Write the same small data set, without splits, in a given format; return its path."""

    def write(form):
        root = tmp_path / form
        if form == "coco":
            pet_images(root / "images")
            (root / "pets.json").write_text(json.dumps(PETS_COCO))
            return root / "pets.json"
        if form == "voc":
            pet_images(root)
            for name, text in PETS_VOC.items():
                (root / f"{name}.xml").write_text(text)
            return root
        pet_images(root / "images")
        (root / "labels").mkdir()
        for name, text in PETS_YOLO.items():
            (root / "labels" / f"{name}.txt").write_text(text)
        (root / "classes.txt").write_text("dog\ncat\n")
        return root

    return write


@pytest.fixture
def split_pets(tmp_path):
    """Write the same data set with splits, image a in train and b in val, as YOLO or VOC; return its path."""

    def write(form):
        root = tmp_path / f"split_{form}"
        for split, name in (("train", "a"), ("val", "b")):
            if form == "voc":
                pet_images(root / split)
                (root / split / f"{name}.xml").write_text(PETS_VOC[name])
                continue
            pet_images(root / split / "images")
            (root / split / "labels").mkdir()
            (root / split / "labels" / f"{name}.txt").write_text(PETS_YOLO[name])
            (root / split / "images" / ("b.png" if name == "a" else "a.png")).unlink()
        if form == "voc":
            return root
        (root / "data.yaml").write_text("train: train/images\nval: val/images\nnames: [dog, cat]\n")
        return root / "data.yaml"

    return write


@pytest.fixture
def clean(content):
    """The hand-written set without the entries that cause notes: annotation 0, an overhanging box, an empty image."""
    content["annotations"][1]["id"] = 10
    content["annotations"][2]["bbox"] = [30, 2, 10, 12]
    content["annotations"].append({"id": 11, "image_id": 3, "category_id": 17, "bbox": [1, 1, 5, 5]})
    return content


@pytest.fixture
def check(tmp_path, capsys):
    """Run the command with --json; return its exit code, the report, and its printed output."""

    def run(annotation_file, *arguments):
        report_file = tmp_path / "report.json"
        code = main([str(annotation_file), *map(str, arguments), "--json", str(report_file)])
        return code, json.loads(report_file.read_text()), capsys.readouterr().out

    return run
