"""Reading and editing one line of a YOLO label file.

A line is ``class cx cy w h``, the box's centre and size normalised by the image's width and height, or
``class x1 y1 x2 y2 x3 y3 ...``, a polygon. Ultralytics applies the EXIF rotation when it opens an image, so YOLO labels
refer to the image as displayed. Boxes in this project refer to the image as stored.
"""

import math
import re
from dataclasses import dataclass

from ..errors import DataError
from .labels import Box

# Range of coordinates that Ultralytics accepts.
_LOWEST, _HIGHEST = -0.01, 1.01

# EXIF orientation → conversion of normalised points from the displayed to the stored image: whether to swap x and y,
# then whether to mirror x, then whether to mirror y.
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
    """The coordinate frame of a label file.

    Attributes:
        width, height: size of the stored image in pixels.
        orientation: EXIF orientation of the image, 1 to 8.
    """

    width: int
    height: int
    orientation: int = 1

    def to_pixels(self, box: Box) -> Box:
        """Convert a normalised xyxy box of the displayed image to pixels of the stored image, without clipping."""
        swaps, mirrors_x, mirrors_y = _TO_STORED[self.orientation]
        x0, y0, x1, y1 = (box[1], box[0], box[3], box[2]) if swaps else box
        x0, x1 = (1 - x1, 1 - x0) if mirrors_x else (x0, x1)
        y0, y1 = (1 - y1, 1 - y0) if mirrors_y else (y0, y1)
        return x0 * self.width, y0 * self.height, x1 * self.width, y1 * self.height

    def from_pixels(self, box: Box) -> Box:
        """Convert a box in pixels of the stored image to a normalised xyxy box of the displayed image."""
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
        class_index: index of the class, from 0.
        box: xyxy, normalised by the size of the displayed image; not clipped.
        is_polygon: whether ``box`` is the box around a polygon.
    """

    class_index: int
    box: Box
    is_polygon: bool


def parse_line(line: bytes) -> YoloLine:
    """Parse a line that is not blank.

    Raises:
        DataError: if the line is not a label. The message does not name the file or the line.
    """
    words = line.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise DataError(
            f"not all numbers: {_shown(line)}; write 'class cx cy w h'", rule="line is not numbers"
        ) from None
    if not all(map(math.isfinite, numbers)):
        raise DataError(
            f"a number is not finite: {_shown(line)}; correct or remove the line", rule="line is not finite"
        )
    if len(numbers) == 6:
        raise DataError(
            f"six numbers instead of five: {_shown(line)}; the sixth may be the confidence of a prediction, which is "
            "not a label. If the box is correct, remove the sixth number",
            rule="line of six numbers",
        )
    if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
        raise DataError(
            f"{len(numbers)} numbers: {_shown(line)}; a box has 5 (class cx cy w h), a polygon has the class "
            "and x y of at least 3 points",
            rule="line of the wrong length",
        )
    class_index, coordinates = numbers[0], numbers[1:]
    if class_index < 0 or class_index != int(class_index):
        raise DataError(f"the class is {words[0].decode()}; write a class number, 0, 1, 2, ...", rule="no class index")
    if not all(_LOWEST <= value <= _HIGHEST for value in coordinates):
        if len(numbers) == 5 and min(coordinates[2:]) < 0:
            raise DataError(f"box has no area: {_shown(line)}; correct or remove the line", rule="box has no area")
        raise DataError(
            f"coordinates outside 0 to 1: {_shown(line)}; divide pixel coordinates by the image's width and height",
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
    """Return the line with a new box; class, whitespace and line end stay the same.

    Args:
        line: ``class cx cy w h``.
        box: xyxy, normalised by the size of the displayed image.
    """
    x0, y0, x1, y1 = box
    numbers = iter(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0))
    class_word = re.match(rb"\s*\S+", line)
    assert class_word is not None
    head, rest = line[: class_word.end()], line[class_word.end() :]
    return head + re.sub(rb"\S+", lambda _: f"{next(numbers):.6f}".encode(), rest)
