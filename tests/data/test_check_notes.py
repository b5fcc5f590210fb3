"""Notes of the check about data that training accepts but that may contain mistakes."""

import numpy as np
import pytest
from PIL import Image


def notes_of(report):
    return [(note["rule"], note["section"], note["id"], note["text"]) for note in report["notes"]]


@pytest.mark.parametrize(
    ("alter", "note"),
    [
        (
            lambda c: c["images"][1].update(file_name="a.png", width=40, height=30),
            ("file listed twice", "images", 3, "image 3 has the same file_name as image 7: a.png"),
        ),
        (
            # Sorted by id: 0 (cat), 17, 90.
            lambda c: c["categories"][0].update(name="cat"),
            ("two classes of one name", "categories", 90, "category 90 has the same name as category 0: cat"),
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[0, 0, 17, 20]),
            (
                "box larger than its image",
                "annotations",
                5,
                "annotation 5 of image 0: bbox [0, 0, 17, 20] in an image 16 wide and 24 high: training clips the box; "
                "check whether the image was resized",
            ),
        ),
        (
            lambda c: c["images"][1].update(width=2001),
            (
                "extreme aspect ratio",
                "images",
                3,
                "image 3 (empty.png): 2001 wide and 20 high; resizing leaves little of the short side",
            ),
        ),
    ],
    ids=["file", "class", "box", "thin"],
)
def test_a_note(write_set, clean, check, alter, note):
    alter(clean)
    code, report, _ = check(write_set(clean)[0])
    assert (code, report["faults"]) == (0, [])
    assert notes_of(report) == [note]


def test_an_image_with_more_pixels_than_pil_reads(write_set, clean, check, monkeypatch):
    annotation_file, folder = write_set(clean)
    Image.fromarray(np.zeros((30, 50), dtype=np.uint8)).save(folder / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30 * 40 / 2)
    _, report, _ = check(annotation_file, folder)
    [fault] = report["faults"]
    assert (fault["rule"], fault["id"]) == ("too many pixels", 7)
    assert "a.png: the image is too large to read (Image size (1500 pixels) exceeds limit" in fault["text"]
    assert "truncated" not in fault["text"] and "scale it down with its boxes" in fault["text"]
