"""Reading image files as tensors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ..errors import DataError

# Suffixes of the image files to look for beside label files; compared in lower case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

# The errors that PIL raises for a file that is not an image or is damaged, depending on the format.
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
    ImportError,  # ultralytics replaces Image.open with a function that looks for another decoder
)

# EXIF orientation → transposition that turns the image upright. PIL.ImageOps.exif_transpose is not used because it
# fails if other tags are damaged.
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
    """Read an image file as RGB: uint8 ``[3, H, W]``.

    Greyscale, palette, CMYK and RGBA images are converted; transparency is dropped. By default, the EXIF rotation is
    not applied, because boxes in COCO format refer to the pixels as stored. (TIFF files are an exception: Pillow
    applies their rotation itself.)

    Args:
        exif: apply the EXIF rotation, so that the image is upright as in an image viewer.

    Raises:
        DataError: if the file is missing, truncated or unreadable, or has more than 8 bits per channel.
    """
    with open_image(path) as file:
        return tv_tensors.Image(F.pil_to_tensor(as_viewers_show(file) if exif else file.convert("RGB")))


def as_viewers_show(file: Image.Image) -> Image.Image:
    """Convert an opened image file to RGB and turn it upright by its EXIF orientation."""
    image = file.convert("RGB")  # must come first: decoding a TIFF rotates it and drops the tag
    turn = _UPRIGHT.get(exif_orientation(file))
    return image if turn is None else image.transpose(turn)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file and turn PIL's errors, including decoding errors in the ``with`` block, into `DataError`.

    Raises:
        DataError: see `read_image`.
    """
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):  # PIL would silently clamp these to 255, a white image
                raise DataError(
                    f"{path}: the image has more than 8 bits per channel (PIL mode {file.mode}); convert it to 8 bits",
                    rule="more than 8 bits per channel",
                )
            yield file
    except DataError:  # a subclass of ValueError, which DECODING_ERRORS includes
        raise
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such image; restore it, or remove it from the list of images", rule="missing image"
        ) from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: the image is too large to read ({str(error).partition(',')[0]}); scale it down with its boxes, "
            "or remove it from the list of images",
            rule="too many pixels",
        ) from error
    except DECODING_ERRORS as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); the file may be truncated. Copy or download it again, "
            "or remove it from the list of images",
            rule="unreadable image",
        ) from error


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if the tag is missing or damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF fails in many ways (SyntaxError, struct.error), while the pixels are fine
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def has_exif_rotation(path: str | Path) -> bool:
    """Return whether image viewers rotate or mirror an image file, which `read_image` does only with ``exif``.

    Returns False for a file that cannot be read.
    """
    try:
        with Image.open(path) as file:
            if file.format == "TIFF":  # Pillow applies the rotation when it reads the pixels
                return False
            if file.format == "PNG" and "exif" not in file.info:  # getexif would decode the whole image
                return False
            return exif_orientation(file) > 1
    except DECODING_ERRORS:
        return False


def image_path(folder: str | Path, file_name: str) -> Path:
    """Return the path of an image listed in an annotation file.

    The folder may be a symbolic link, and links within it are followed.

    Raises:
        DataError: if ``file_name`` is not a valid file name, or a link in it points outside the folder.
    """
    path = Path(folder, file_name)
    try:
        target = Path(os.path.realpath(path))
    except ValueError as error:  # a null character, or half of a surrogate pair
        raise DataError(f"{str(path)!r}: not a valid file name ({error}); correct it", "missing image") from error
    if not target.is_relative_to(os.path.realpath(folder)):
        raise DataError(
            f"{path}: a link points outside the image folder, to {target}; "
            "copy the image into the folder, or give a folder that contains all images",
            rule="leaves the image folder",
        )
    return path


def check_image_size(
    path: Path, width: int, height: int, annotated: dict[str, Any], annotation_file: str | Path
) -> None:
    """Compare an image's size, ``width`` x ``height`` pixels as stored, with its entry in the annotation file.

    Raises:
        DataError: if the sizes differ.
    """
    if (width, height) != (annotated["width"], annotated["height"]):
        raise DataError(
            f"{path}: the image is {width} wide and {height} high, but {annotation_file} says "
            f"{annotated['width']} wide and {annotated['height']} high (image {annotated['id']}), so its "
            "boxes do not fit; restore the image that was annotated, or correct the annotation file",
            rule="wrong width or height",
        )
