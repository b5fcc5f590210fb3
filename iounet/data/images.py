"""Image files as tensors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ..errors import DataError

# Of the image files that are looked for beside label files; compared in lower case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

# What PIL raises, depending on format and damage, on a file that is no image or only part of one.
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
    ImportError,  # ultralytics puts a function in the place of Image.open that looks for another decoder
)

# EXIF orientation → what turns the pixels upright. PIL.ImageOps.exif_transpose would fail where other tags are damaged.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path, *, exif: bool = False) -> tv_tensors.Image:
    """Reads a whole image file as RGB: uint8 ``[3, H, W]``.

    Greyscale, palette, CMYK and RGBA pictures are converted; transparency is dropped. The pixels stay as
    they are stored: an EXIF rotation is not applied, because boxes in COCO form refer to the stored pixels. (That of a
    TIFF file is: Pillow applies it itself.)

    Args:
        exif: apply the EXIF rotation: the image is then upright, as viewers show it.

    Raises:
        DataError: the file is missing, truncated, unreadable, or has more than 8 bits per channel.
    """
    with open_image(path) as file:
        return tv_tensors.Image(F.pil_to_tensor(as_viewers_show(file) if exif else file.convert("RGB")))


def as_viewers_show(file: Image.Image) -> Image.Image:
    """An opened image file as an RGB picture, turned upright by its EXIF orientation."""
    image = file.convert("RGB")  # first: Pillow turns a TIFF when it decodes it, and then drops the orientation
    turn = _UPRIGHT.get(exif_orientation(file))
    return image if turn is None else image.transpose(turn)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Opens an image file; PIL decodes it within the ``with`` block, where its errors become ours.

    Raises:
        DataError: as `read_image`.
    """
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):  # PIL would cut these off at 255: a white picture, without a word
                raise DataError(
                    f"{path}: has pixels of more than 8 bits (PIL mode {file.mode}); convert it to 8 bits per channel",
                    rule="more than 8 bits per channel",
                )
            yield file
    except DataError:  # a ValueError too
        raise
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such image; restore it, or take it out of the list of images", rule="missing image"
        ) from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: has too many pixels to be read ({str(error).partition(',')[0]}); scale it down with its boxes, "
            "or take it out of the list of images",
            rule="too many pixels",
        ) from error
    except DECODING_ERRORS as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); it may be truncated: copy or download it again, "
            "or take it out of the list of images",
            rule="unreadable image",
        ) from error


def exif_orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF numbers them; 1, upright, where the tag is missing or damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF fails in many ways (SyntaxError, struct.error), while the pixels are fine
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def has_exif_rotation(path: str | Path) -> bool:
    """Whether viewers show an image file rotated or mirrored against what `read_image` reads, unless told otherwise.

    A file that cannot be read is not.
    """
    try:
        with Image.open(path) as file:
            if file.format == "TIFF":  # Pillow turns it when it reads the pixels
                return False
            if file.format == "PNG" and "exif" not in file.info:  # to look further, Pillow would decode all of it
                return False
            return exif_orientation(file) > 1
    except DECODING_ERRORS:
        return False


def image_path(folder: str | Path, file_name: str) -> Path:
    """Where an image of an annotation file lies. The folder may be a link, and links within it are followed.

    Raises:
        DataError: by a link, ``file_name`` leads out of the folder: to files that the data set has no business with.
    """
    path = Path(folder, file_name)
    try:
        target = Path(os.path.realpath(path))
    except ValueError as error:  # a null character, or half of a surrogate pair
        raise DataError(
            f"{str(path)!r}: cannot be the name of a file ({error}); correct it", "missing image"
        ) from error
    if not target.is_relative_to(os.path.realpath(folder)):
        raise DataError(
            f"{path}: lies outside the image folder, at {target}, where a link leads; "
            "copy it into the folder, or give the folder that holds all images",
            rule="leaves the image folder",
        )
    return path


def check_image_size(
    path: Path, width: int, height: int, annotated: dict[str, Any], annotation_file: str | Path
) -> None:
    """Compares an image, ``width`` x ``height`` pixels as stored, with its entry in the annotation file.

    Raises:
        DataError: the entry gives another size.
    """
    if (width, height) != (annotated["width"], annotated["height"]):
        raise DataError(
            f"{path}: the image is {width} wide and {height} high, but {annotation_file} says "
            f"{annotated['width']} wide and {annotated['height']} high (image {annotated['id']}), so its "
            "boxes do not fit; restore the image as it was when annotated, or correct the file",
            rule="wrong width or height",
        )
