"""The refinement of one box of a photo, step by step."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from ..data.images import DECODING_ERRORS, as_viewers_show
from ..errors import DataError
from ..refiner import IoURefiner


@dataclass(frozen=True)
class Steps:
    """A box after 0, 1, ..., T steps of refinement.

    Attributes:
        boxes: T + 1 boxes [x1, y1, x2, y2] in pixels of the upright photo, clipped to it.
        ious: Predicted IoU of each box.
    """

    boxes: list[list[float]]
    ious: list[float]


def tighten(refiner: IoURefiner, photo: bytes, box: Sequence[float]) -> Steps:
    """Refine a box around an object of any class and return its steps.

    Args:
        refiner: Refines the box.
        photo: Content of an image file. Its EXIF orientation is applied, as browsers do.
        box: [x1, y1, x2, y2] in pixels of the upright photo.

    Raises:
        DataError: The photo cannot be read, or the box has no area inside it.
    """
    image = upright(photo)
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise DataError(f"a box is four finite numbers x1, y1, x2, y2; got {list(box)}")
    ends = [image.width, image.height] * 2
    x1, y1, x2, y2 = (min(max(value, 0.0), float(end)) for value, end in zip(box, ends, strict=True))
    if x1 >= x2 or y1 >= y2:
        raise DataError("the box has no area inside the photo; draw it around an object")
    path = refiner.refinement_path(image, torch.tensor([[x1, y1, x2, y2]]))[:, 0]
    return Steps(path.tolist(), refiner.score(image, path).tolist())


def upright(photo: bytes) -> Image.Image:
    """Decode an image file to RGB and apply its EXIF orientation, as browsers do.

    Raises:
        DataError: The photo cannot be read, or has more than 8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(photo)) as file:
            if file.mode.startswith(("I", "F")):  # convert() would clip them at 255
                raise DataError("the photo has more than 8 bits per channel; convert it to 8 bits")
            return as_viewers_show(file)
    except DataError:  # also a ValueError, which the next clause would catch
        raise
    except DECODING_ERRORS as error:
        raise DataError(f"the file cannot be read as an image ({error}); try a JPEG or PNG file") from error
