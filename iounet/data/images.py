"""Image files as tensors."""

from pathlib import Path

from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from .errors import DataError

# What PIL raises, depending on format and damage, on a file that is no image or only part of one.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: str | Path) -> tv_tensors.Image:
    """Reads a whole image file as RGB: uint8 ``[3, H, W]``.

    Greyscale, palette, CMYK and RGBA pictures are converted; transparency is dropped. The pixels stay as
    they are stored: an EXIF rotation is not applied, because boxes in COCO form refer to the stored pixels.

    Raises:
        DataError: the file is missing, truncated, unreadable, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as file:
            mode = file.mode
            rgb = file.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: no such image; restore it, or take it out of the list of images") from None
    except _DECODING_ERRORS as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); it may be truncated: copy or download it again, "
            "or take it out of the list of images"
        ) from error
    if mode.startswith(("I", "F")):  # PIL would have cut these off at 255: a white picture, without a word
        raise DataError(f"{path}: has pixels of more than 8 bits (PIL mode {mode}); convert it to 8 bits per channel")
    return tv_tensors.Image(F.pil_to_tensor(rgb))
