"""Transforms of an image with one bright rectangle; its box must move with the rectangle."""

import pytest
import torch
from torchvision import tv_tensors

from iounet.data import build_transforms

BOX = [3, 2, 9, 5]  # in an image 20 wide and 12 high


def bright_rectangle():
    image = torch.zeros(3, 12, 20, dtype=torch.uint8)
    image[:, BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    boxes = tv_tensors.BoundingBoxes(torch.tensor([BOX], dtype=torch.float32), format="XYXY", canvas_size=(12, 20))
    return tv_tensors.Image(image), {"boxes": boxes, "labels": torch.tensor([4]), "image_id": 1}


def extent_of_bright_pixels(image):
    rows, columns = torch.nonzero(image[0] > 0.5, as_tuple=True)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ({"horizontal_flip": 0.0}, [3, 2, 9, 5]),
        ({"horizontal_flip": 1.0}, [11, 2, 17, 5]),
        ({"horizontal_flip": 0.0, "vertical_flip": 1.0}, [3, 7, 9, 10]),
        ({"horizontal_flip": 1.0, "vertical_flip": 1.0}, [11, 7, 17, 10]),
    ],
)
def test_boxes_move_with_the_image(flips, expected):
    image, target = build_transforms(True, **flips)(*bright_rectangle())
    assert target["boxes"].tolist() == [expected]
    assert extent_of_bright_pixels(image) == expected
    assert target["labels"].tolist() == [4]
    assert target["image_id"] == 1


def test_evaluation_only_converts_to_float():
    image, target = build_transforms(False, horizontal_flip=1.0, vertical_flip=1.0, color_jitter=0.5)(
        *bright_rectangle()
    )
    assert image.dtype is torch.float32
    assert image.unique().tolist() == [0.0, 1.0]
    assert target["boxes"].tolist() == [BOX]


def test_color_jitter_changes_colours_and_leaves_boxes():
    torch.manual_seed(0)
    image, target = build_transforms(True, horizontal_flip=0.0, color_jitter=0.4)(*bright_rectangle())
    assert image.dtype is torch.float32
    assert 0 <= image.min() and image.max() <= 1
    assert image.max() < 1 or image.min() > 0
    assert target["boxes"].tolist() == [BOX]
