"""Image files as tensors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ..errors import DataError

# What PIL raises, depending on format and damage, on a file that is no image or only part of one.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: str | Path, *, exif: bool = False) -> tv_tensors.Image:
    """Reads a whole image file as RGB: uint8 ``[3, H, W]``.

    Greyscale, palette, CMYK and RGBA pictures are converted; transparency is dropped. The pixels stay as
    they are stored: an EXIF rotation is not applied, because boxes in COCO form refer to the stored pixels.

    Args:
        exif: apply the EXIF rotation: the image is then upright, as viewers show it.

    Raises:
        DataError: the file is missing, truncated, unreadable, or has more than 8 bits per channel.
    """
    with open_image(path) as file:
        upright = ImageOps.exif_transpose(file) if exif else file
        return tv_tensors.Image(F.pil_to_tensor(upright.convert("RGB")))


def has_exif_rotation(path: str | Path) -> bool:
    """Whether viewers show the image rotated or mirrored, by its EXIF orientation; False if it cannot be read."""
    try:
        with Image.open(path) as file:
            if file.format == "PNG" and "exif" not in file.info:  # Pillow would decode all of it to look further
                return False
            return file.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except _DECODING_ERRORS:
        return False


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
    except _DECODING_ERRORS as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); it may be truncated: copy or download it again, "
            "or take it out of the list of images",
            rule="unreadable image",
        ) from error


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
