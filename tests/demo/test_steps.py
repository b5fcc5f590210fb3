"""The refinement steps of a box, computed from the bytes of a photo."""

import io

import pytest
import torch
from PIL import Image

from iounet.demo import tighten
from iounet.errors import DataError

pytestmark = pytest.mark.usefixtures("one_thread")

BOX = [8.0, 9.0, 40.0, 44.0]


@pytest.fixture(scope="module")
def picture():
    """An image of colour noise, 80 x 50 pixels."""
    values = torch.randint(256, (50, 80, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def as_file(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def test_every_step_with_its_predicted_iou(refiner, picture):
    steps = tighten(refiner, as_file(picture), BOX)
    path = refiner.refinement_path(picture, [BOX])[:, 0]
    assert steps.boxes == path.tolist() and steps.boxes[0] == BOX
    assert len(steps.boxes) == refiner.detector.postprocessing.refinement.num_steps + 1
    assert steps.boxes[-1] == pytest.approx(refiner.refine(picture, [BOX]).boxes[0].tolist(), abs=1e-3)
    for box, iou in zip(steps.boxes, steps.ious, strict=True):
        assert iou == pytest.approx(float(refiner.score(picture, [box])), abs=1e-5)


def test_a_box_is_clipped_to_the_photo(refiner, picture):
    assert tighten(refiner, as_file(picture), [-9, -9, 99, 99]) == tighten(refiner, as_file(picture), [0, 0, 80, 50])


def test_a_photo_is_refined_as_browsers_show_it(refiner, picture):
    """A photo stored sideways, with the EXIF orientation that turns it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    lying = picture.transpose(Image.Transpose.ROTATE_90)
    assert tighten(refiner, as_file(lying, exif=exif), BOX) == tighten(refiner, as_file(picture), BOX)


def test_damage_to_other_tags_does_not_matter(refiner, picture):
    """Pillow's own exif_transpose raises a TypeError."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0  # XResolution
    photo = as_file(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)
    resolution = photo.index(b"\x01\x1a\x00\x05")  # the tag, of type RATIONAL
    damaged = bytearray(photo)
    damaged[resolution + 3] = 1  # BYTE
    assert tighten(refiner, bytes(damaged), BOX) == tighten(refiner, photo, BOX)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_modes(refiner, picture, mode):
    converted = picture.convert(mode)
    expected = tighten(refiner, as_file(converted.convert("RGB")), BOX)
    assert tighten(refiner, as_file(converted), BOX) == expected


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 2, 3], "a box is four finite numbers"),
        ([1, 2, 3, float("nan")], "a box is four finite numbers"),
        ([10, 10, 10, 20], "no area inside the photo"),
        ([90, 10, 99, 20], "no area inside the photo"),
        ([20, 10, 10, 20], "no area inside the photo"),
    ],
)
def test_boxes_that_cannot_be_refined(refiner, picture, box, message):
    with pytest.raises(DataError, match=message):
        tighten(refiner, as_file(picture), box)


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (b"", "cannot be read as an image"),
        (b"hello", "cannot be read as an image"),
        (as_file(Image.new("RGB", (80, 50), "red"), "JPEG")[:200], "cannot be read as an image"),
        (as_file(Image.new("I;16", (80, 50))), "more than 8 bits"),
    ],
    ids=["empty", "text", "truncated", "16 bits"],
)
def test_files_that_are_not_photos(refiner, photo, message):
    with pytest.raises(DataError, match=message):
        tighten(refiner, photo, BOX)
