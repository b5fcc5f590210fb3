"""Magnify parts of a photograph."""

import math
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from .drawing import DARK

_MIN_REGION = 4  # pixels of the image; in a smaller region around a corner, nothing could be recognised


class Region(NamedTuple):
    """A square region of an image, in pixels: centre and side."""

    x: float
    y: float
    side: float

    @property
    def left(self) -> float:
        return self.x - self.side / 2

    @property
    def top(self) -> float:
        return self.y - self.side / 2


def region_around(points: Tensor, margin: float) -> Region:
    """Return the smallest square around points [K, 2], enlarged by the factor `margin`."""
    low, high = points.amin(0), points.amax(0)
    x, y = ((low + high) / 2).tolist()
    return Region(x, y, max(_MIN_REGION, margin * float((high - low).max())))


def magnified(photo: Image.Image, region: Region, size: int) -> Image.Image:
    """Scale a region of a photo to `size` × `size` pixels. Parts outside the photo are dark grey."""
    around = 2  # pixels that interpolation needs at the edges
    left, top = math.floor(region.left) - around, math.floor(region.top) - around
    crop_side = math.ceil(region.side) + 1 + 2 * around
    crop = Image.new("RGB", (crop_side, crop_side), DARK)
    crop.paste(photo, (-left, -top))
    x, y = region.left - left, region.top - top
    return crop.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + region.side, y + region.side))
