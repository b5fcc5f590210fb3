"""One line of a YOLO label file: read, and changed in place.

A line is ``class cx cy w h``, the box's centre and size normalised by the image's width and height, or
``class x1 y1 x2 y2 x3 y3 ...``, a polygon. Ultralytics applies the EXIF rotation when it opens an image, so the labels
refer to the picture as it is shown. Boxes of this project refer to the pixels as they are stored.
"""

import math
import re
from dataclasses import dataclass

from ..errors import DataError
from .labels import Box

# Ultralytics refuses coordinates outside of this.
_LOWEST, _HIGHEST = -0.01, 1.01

# EXIF orientation → how a normalised point of the shown picture becomes one of the stored picture: whether x and y are
# swapped, then whether x, and whether y, is mirrored.
_TO_STORED = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True)
class Frame:
    """Where the boxes of a label file lie.

    Attributes:
        width, height: of the image as it is stored, in pixels.
        orientation: its EXIF orientation, 1 to 8.
    """

    width: int
    height: int
    orientation: int = 1

    def to_pixels(self, box: Box) -> Box:
        """A box of the shown picture, xyxy and normalised, in pixels of the stored picture; not clipped."""
        swaps, mirrors_x, mirrors_y = _TO_STORED[self.orientation]
        x0, y0, x1, y1 = (box[1], box[0], box[3], box[2]) if swaps else box
        x0, x1 = (1 - x1, 1 - x0) if mirrors_x else (x0, x1)
        y0, y1 = (1 - y1, 1 - y0) if mirrors_y else (y0, y1)
        return x0 * self.width, y0 * self.height, x1 * self.width, y1 * self.height

    def from_pixels(self, box: Box) -> Box:
        """The inverse of :meth:`to_pixels`."""
        swaps, mirrors_x, mirrors_y = _TO_STORED[self.orientation]
        x0, x1 = box[0] / self.width, box[2] / self.width
        y0, y1 = box[1] / self.height, box[3] / self.height
        x0, x1 = (1 - x1, 1 - x0) if mirrors_x else (x0, x1)
        y0, y1 = (1 - y1, 1 - y0) if mirrors_y else (y0, y1)
        return (y0, x0, y1, x1) if swaps else (x0, y0, x1, y1)


@dataclass(frozen=True)
class YoloLine:
    """A label.

    Attributes:
        class_index: from 0.
        box: xyxy, normalised by the size of the picture as it is shown; not clipped.
        is_polygon: whether ``box`` is the box around a polygon.
    """

    class_index: int
    box: Box
    is_polygon: bool


def parse_line(line: bytes) -> YoloLine:
    """Reads a line that is not blank.

    Raises:
        DataError: it is no label; the message does not say where it stands.
    """
    words = line.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise DataError(
            f"is not made of numbers alone: {_shown(line)}; write 'class cx cy w h'", rule="line is not numbers"
        ) from None
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"has a number that is not finite: {_shown(line)}", rule="line is not finite")
    if len(numbers) == 6:
        raise DataError(
            f"has six numbers: {_shown(line)}; the sixth may be the confidence of a prediction, which is no label: "
            "remove it if the box is right",
            rule="line of six numbers",
        )
    if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
        raise DataError(
            f"has {len(numbers)} numbers: {_shown(line)}; a box has 5 (class cx cy w h), a polygon 1 + 2 for each of "
            "at least 3 points",
            rule="line of a wrong length",
        )
    class_index, coordinates = numbers[0], numbers[1:]
    if class_index < 0 or class_index != int(class_index):
        raise DataError(f"has the class {words[0].decode()}; classes are counted 0, 1, 2, ...", rule="no class index")
    if not all(_LOWEST <= value <= _HIGHEST for value in coordinates):
        if len(numbers) == 5 and min(coordinates[2:]) < 0:
            raise DataError(f"has no area: {_shown(line)}", rule="box has no area")
        raise DataError(
            f"has coordinates outside 0 to 1: {_shown(line)}; divide pixels by the image's width and height",
            rule="coordinates are not normalised",
        )
    if len(numbers) == 5:
        cx, cy, w, h = coordinates
        box = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    else:
        xs, ys = coordinates[::2], coordinates[1::2]
        box = min(xs), min(ys), max(xs), max(ys)
    return YoloLine(int(class_index), box, len(numbers) > 5)


def _shown(line: bytes) -> str:
    text = line.strip().decode(errors="backslashreplace")
    return text if len(text) <= 60 else f"{text[:57]}..."


def with_box(line: bytes, box: Box) -> bytes:
    """A line of a box with another box; its class, its spaces and its end stay.

    Args:
        line: ``class cx cy w h``.
        box: xyxy, normalised by the size of the picture as it is shown.
    """
    x0, y0, x1, y1 = box
    numbers = iter(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0))
    class_word = re.match(rb"\s*\S+", line)
    assert class_word is not None
    head, rest = line[: class_word.end()], line[class_word.end() :]
    return head + re.sub(rb"\S+", lambda _: f"{next(numbers):.6f}".encode(), rest)
