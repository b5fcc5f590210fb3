"""Detecting and reading photographs that image viewers rotate."""

import pytest
import torch
from PIL import ExifTags, Image

from iounet.data import has_exif_rotation, read_image
from iounet.errors import DataError

# The stored image: red, green and blue from left to right.
STORED = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
# Orientation → rows of the displayed image (TIFF 6.0, section 8).
SHOWN = {
    1: [[0, 1, 2]],
    2: [[2, 1, 0]],
    3: [[2, 1, 0]],
    4: [[0, 1, 2]],
    5: [[0], [1], [2]],
    6: [[0], [1], [2]],
    7: [[2], [1], [0]],
    8: [[2], [1], [0]],
}


def save(path, orientation=None):
    image = Image.new("RGB", (3, 1))
    image.putdata(STORED)
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", SHOWN)
def test_reading_as_displayed_or_as_stored(tmp_path, orientation):
    path = save(tmp_path / "photo.png", orientation)
    shown = torch.tensor([[STORED[column] for column in row] for row in SHOWN[orientation]], dtype=torch.uint8)
    stored = torch.tensor([STORED], dtype=torch.uint8)
    assert torch.equal(read_image(path, exif=True), shown.permute(2, 0, 1))
    assert torch.equal(read_image(path), stored.permute(2, 0, 1))
    assert has_exif_rotation(path) == (orientation != 1)


def test_pillow_rotates_a_tiff(tmp_path):
    path = save(tmp_path / "photo.tiff", 6)
    assert torch.equal(read_image(path), read_image(path, exif=True)) and read_image(path).shape == (3, 3, 1)
    assert not has_exif_rotation(path)


def test_a_jpeg(tmp_path):
    assert has_exif_rotation(save(tmp_path / "photo.jpg", 6))
    assert read_image(tmp_path / "photo.jpg", exif=True).shape == (3, 3, 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_an_image_without_exif(tmp_path, suffix):
    image = Image.new("RGB", (3, 1), (1, 2, 3))
    image.save(tmp_path / f"photo.{suffix}")
    assert not has_exif_rotation(tmp_path / f"photo.{suffix}")
    assert read_image(tmp_path / f"photo.{suffix}", exif=True).shape == (3, 1, 3)


@pytest.mark.parametrize("orientation", [0, 9, 200])
def test_an_invalid_orientation(tmp_path, orientation):
    path = save(tmp_path / "photo.png", orientation)
    assert not has_exif_rotation(path) and read_image(path, exif=True).shape == (3, 1, 3)


def test_a_file_that_is_not_an_image(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"not an image")
    assert not has_exif_rotation(tmp_path / "photo.jpg") and not has_exif_rotation(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=r"photo\.jpg: cannot be read as an image"):
        read_image(tmp_path / "photo.jpg", exif=True)


def test_damaged_exif(tmp_path):
    path = save(tmp_path / "photo.jpg", 6)
    content = path.read_bytes()
    start = content.index(b"Exif\0\0") + 6
    path.write_bytes(content[:start] + b"\xff" * 12 + content[start + 12 :])
    assert not has_exif_rotation(path)
    assert read_image(path, exif=True).shape == read_image(path).shape == (3, 1, 3)


def test_damage_to_other_tags_does_not_matter(tmp_path):
    """Pillow's exif_transpose raises a TypeError for this file."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.XResolution] = 72.0
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (3, 1)).save(path, exif=exif)
    content = bytearray(path.read_bytes())
    resolution = content.index(b"\x01\x1a\x00\x05")  # tag 282, of type RATIONAL
    content[resolution + 3] = 1  # BYTE
    path.write_bytes(content)
    assert has_exif_rotation(path) and read_image(path, exif=True).shape == (3, 3, 1)
