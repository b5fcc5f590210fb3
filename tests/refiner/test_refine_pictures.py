"""Which pictures a run draws, and their file names."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from iounet import Detections
from iounet.refiner.pictures import Pictures
from iounet.refiner.sources import RefinedImage

CATEGORIES = [{"id": 3, "name": "cross"}]
GREEN = (40, 230, 110)


@pytest.fixture
def refined():
    """An image with a valid box and a box of negative width."""
    boxes = torch.tensor([[5.0, 6.0, 30.0, 40.0], [50.0, 10.0, 30.0, 20.0]])
    before = Detections(boxes, torch.tensor([1, 0]), torch.tensor([0.9, 0.8]), torch.tensor([0.5, 0.0]))
    after = Detections(boxes + 1, before.labels, before.scores, torch.tensor([0.6, 0.0]))
    return RefinedImage("b", torch.zeros(3, 48, 64, dtype=torch.uint8), before, after, [3, 5])


def names_of(images, number, folder=Path("pictures")):
    return {id_: str(path) for id_, path in Pictures(folder, images, number, CATEGORIES).paths.items()}


def test_the_first_images_are_drawn_under_their_names():
    images = {id_: Path(f"photos/{id_}.jpg") for id_ in "abc"}
    assert names_of(images, 2) == {"a": "pictures/a.png", "b": "pictures/b.png"}
    assert len(names_of(images, 9)) == 3
    assert names_of(images, 0) == names_of(images, -1) == {}


def test_images_with_the_same_name_are_numbered():
    images = {7: Path("x/a.jpg"), 8: Path("x/b.jpg"), 9: Path("y/a.png"), 10: Path("z/a.png")}
    assert names_of(images, 3) == {7: "pictures/a_1.png", 8: "pictures/b.png", 9: "pictures/a_3.png"}


def test_numbered_names_do_not_collide_with_other_names():
    images = {1: Path("a/x.png"), 2: Path("b/x.png"), 3: Path("c/x_1.png")}
    names = names_of(images, 3)
    assert names[3] == "pictures/x_1.png" and len(set(names.values())) == 3


def test_a_picture_shows_the_valid_boxes(refined, tmp_path):
    images = {"a": Path("a.jpg"), "b": Path("b.jpg")}
    shown = []
    for rows in (slice(0, 2), slice(0, 1), slice(0, 0)):
        folder = tmp_path / str(rows.stop)
        some = replace(refined, before=refined.before[rows], after=refined.after[rows])
        Pictures(folder, images, 2, CATEGORIES).draw(some)
        assert [path.name for path in folder.iterdir()] == ["b.png"]
        with Image.open(folder / "b.png") as picture:
            shown.append(picture.convert("RGB").tobytes())
    both, first, none = shown
    assert both == first != none


class Truth:
    """Ground truth with a valid object and an object of negative width."""

    def objects_in(self, image_id):
        assert image_id == "b"
        return torch.tensor([[8.0, 9.0, 20.0, 30.0], [50.0, 10.0, 30.0, 20.0]]), torch.tensor([1, 1])


def test_known_objects_are_drawn(refined, tmp_path):
    drawn = []
    for truth in (Truth(), None):
        folder = tmp_path / str(truth is None)
        Pictures(folder, {"b": Path("b.jpg")}, 1, CATEGORIES, truth).draw(refined)
        with Image.open(folder / "b.png") as picture:
            # Scaled by 10; at the left edge of the object, no text covers it.
            drawn.append([picture.convert("RGB").getpixel((80 + 8, y)) for y in (8 + 150, 8 + 200)])
    assert drawn[0] == [(255, 255, 255)] * 2 and (255, 255, 255) not in drawn[1]


def test_boxes_with_low_scores_are_drawn_if_there_are_no_others(refined, tmp_path):
    """If all scores are low, the best three boxes are drawn; otherwise, only the boxes with high scores."""
    boxes = torch.tensor([[12.0 * column + 2, 20, 12 * column + 8, 28] for column in range(5)])
    labels, ious = torch.ones(5, dtype=torch.int64), torch.zeros(5)

    def columns_drawn(*scores):
        found = Detections(boxes, labels, torch.tensor(scores), ious)
        some = replace(refined, before=found, after=found)
        Pictures(tmp_path, {"b": Path("b.jpg")}, 1, CATEGORIES).draw(some)
        with Image.open(tmp_path / "b.png") as picture:
            pixels = picture.convert("RGB")
            return [
                column
                for column in range(5)
                if GREEN in [pixels.getpixel((8 + 120 * column + 20, y)) for y in range(200, 300)]
            ]

    assert columns_drawn(0.1, 0.4, 0.2, 0.3, 0.05) == [1, 2, 3]
    assert columns_drawn(0.1, 0.4, 0.2, 0.5, 0.05) == [3]
    assert columns_drawn(0.5, 0.9, 0.8, 0.7, 0.6) == [0, 1, 2, 3, 4]


def test_later_images_are_not_drawn(refined, tmp_path):
    Pictures(tmp_path / "pictures", {"a": Path("a.jpg"), "b": Path("b.jpg")}, 1, CATEGORIES).draw(refined)
    assert not (tmp_path / "pictures").exists()
