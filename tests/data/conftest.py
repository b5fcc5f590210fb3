"""A hand-written data set: category ids with gaps and 0, an empty image, a crowd, a box that overhangs."""

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
    """Writes a content and all images of CONTENT; returns the annotation file and the image folder."""

    def write(content):
        for image in CONTENT["images"]:
            path = tmp_path / "images" / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((image["height"], image["width"], 3), 51, dtype=np.uint8)).save(path)
        annotation_file = tmp_path / "set.json"
        annotation_file.write_text(json.dumps(content))
        return annotation_file, tmp_path / "images"

    return write


@pytest.fixture
def clean(content):
    """The hand-written set without what is worth a note: annotation 0, an overhanging box, an image without objects."""
    content["annotations"][1]["id"] = 10
    content["annotations"][2]["bbox"] = [30, 2, 10, 12]
    content["annotations"].append({"id": 11, "image_id": 3, "category_id": 17, "bbox": [1, 1, 5, 5]})
    return content


@pytest.fixture
def check(tmp_path, capsys):
    """Runs the command with --json; returns its exit code, the report, and what it printed as text."""

    def run(annotation_file, *arguments):
        report_file = tmp_path / "report.json"
        code = main([str(annotation_file), *map(str, arguments), "--json", str(report_file)])
        return code, json.loads(report_file.read_text()), capsys.readouterr().out

    return run
