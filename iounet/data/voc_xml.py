"""Reading and editing one Pascal VOC annotation file.

VOC counts pixels from 1 and includes the last one. Boxes here are xyxy, measured from the image's left and top edges:
x0 = xmin - 1 and x1 = xmax, clipped to the image.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from ..errors import DataError
from .annotations import MIN_BOX_SIDE
from .labels import Box

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class VocObject:
    """An object of an annotation file, as text.

    Attributes:
        number: number of the object in the file, from 1.
        texts: element name (``name``, ``difficult`` and the corners) → its stripped text.
        spans: corner → byte range of its text in the file (start, exclusive end); only for corners that are plain text,
            without comments, entities or a 16-bit encoding.
    """

    number: int
    texts: dict[str, str] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        return self.texts.get("name", "")

    @property
    def difficult(self) -> bool:
        return self.texts.get("difficult") == "1"

    @property
    def movable(self) -> bool:
        return len(self.spans) == len(_CORNERS)

    def box(self, width: int, height: int) -> Box:
        """Return the box, clipped to an image of ``width`` x ``height`` pixels.

        Raises:
            DataError: if the box cannot be used.
        """
        name = self.class_name
        if not name:
            raise DataError("has no class name; add <name>, or remove the object", rule="no class name")
        texts = {key: self.texts.get(key, "") for key in _CORNERS}
        try:
            xmin, ymin, xmax, ymax = (float(text) for text in texts.values())
        except ValueError:
            stated = ", ".join(f"{key} {text!r}" for key, text in texts.items())
            raise DataError(
                f"{name}: bndbox is not four numbers: {stated}; correct or remove the object",
                rule="box is not four numbers",
            ) from None
        where = f"xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}"
        if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
            raise DataError(f"{name}: bndbox is not finite: {where}; correct or remove the object", "box is not finite")
        if xmax <= xmin or ymax <= ymin:
            raise DataError(f"{name}: bndbox has no area: {where}; correct or remove the object", "box has no area")
        x0, y0, x1, y1 = max(xmin - 1, 0.0), max(ymin - 1, 0.0), min(xmax, width), min(ymax, height)
        if x1 - x0 < MIN_BOX_SIDE or y1 - y0 < MIN_BOX_SIDE:
            raise DataError(
                f"{name}: bndbox lies outside its image of {width} x {height} pixels: {where}; correct or remove the "
                "object",
                rule="box lies outside its image",
            )
        return x0, y0, x1, y1


@dataclass
class VocAnnotation:
    """The content of an annotation file.

    Attributes:
        filename: file name of the image; may be empty, or a path on the machine where the file was made.
        size: (width, height) as text; "" if missing.
        objects: in file order.
    """

    filename: str = ""
    size: tuple[str, str] = ("", "")
    objects: list[VocObject] = field(default_factory=list)


def parse_voc(data: bytes, path: Path) -> VocAnnotation:
    """Parse the content of an annotation file; ``path`` is used in messages only.

    Raises:
        DataError: if the content is not XML, or its root element is not ``annotation``.
    """
    reader = _Reader(data)
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as error:
        raise DataError(f"{path}: not XML ({error}); repair or restore the file", rule="not XML") from None
    except (ValueError, LookupError) as error:  # an encoding unknown to expat or to Python
        raise DataError(f"{path}: cannot be read as XML ({error}); save it as UTF-8", rule="not XML") from None
    if reader.root != "annotation":
        raise DataError(
            f"{path}: not a Pascal VOC annotation: the root element is <{reader.root}>, not <annotation>",
            rule="not an annotation of Pascal VOC",
        )
    return reader.annotation


class _Reader:
    """Builds a `VocAnnotation` from expat's events. ElementTree would be shorter but gives no byte positions."""

    def __init__(self, data: bytes) -> None:
        self.annotation = VocAnnotation()
        self.root = ""
        self._data = data
        self._open: list[str] = []
        self._text: list[str] = []
        self._first = -1  # first byte of the element's text
        self._has_text_only = False
        self._seen: set[str] = set()  # element paths already read in this object; the first one counts
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.CharacterDataHandler = self._characters
        self.parser.EndElementHandler = self._end

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.root = self.root or name
        self._open.append(name)
        self._text, self._first, self._has_text_only = [], -1, True
        if self._open == ["annotation", "object"]:
            self.annotation.objects.append(VocObject(len(self.annotation.objects) + 1))
            self._seen = set()

    def _characters(self, text: str) -> None:
        if self._first < 0:
            self._first = self.parser.CurrentByteIndex
        self._text.append(text)

    def _end(self, name: str) -> None:
        path = "/".join(self._open)
        if self._has_text_only and path not in self._seen:
            self._read(path, name, "".join(self._text))
        self._has_text_only = False
        self._open.pop()

    def _read(self, path: str, name: str, text: str) -> None:
        annotation, stripped = self.annotation, text.strip()
        if path in ("annotation/object/name", "annotation/object/difficult"):
            annotation.objects[-1].texts[name] = stripped
            self._seen.add(path)
        elif path in [f"annotation/object/bndbox/{corner}" for corner in _CORNERS]:
            annotation.objects[-1].texts[name] = stripped
            self._seen.add(path)
            if stripped and self._data[self._first : self.parser.CurrentByteIndex] == text.encode():
                first = self._first + len(text[: text.index(stripped)].encode())
                annotation.objects[-1].spans[name] = first, first + len(stripped.encode())
        elif path == "annotation/filename":
            annotation.filename = annotation.filename or stripped
        elif path == "annotation/size/width":
            annotation.size = annotation.size[0] or stripped, annotation.size[1]
        elif path == "annotation/size/height":
            annotation.size = annotation.size[0], annotation.size[1] or stripped


def with_boxes(data: bytes, boxes: Iterable[tuple[VocObject, Box]], width: int, height: int) -> bytes:
    """Return the content of an annotation file with new boxes; only the bytes of their corners change.

    If all corners of a box are integers, its new corners are integers too; otherwise, they have two decimals.

    Args:
        data: the content.
        boxes: movable objects of this content with their new boxes.
        width, height: size of the image in pixels.
    """
    changes = []
    for item, box in boxes:
        for corner, text in zip(_CORNERS, _corner_texts(item, box, width, height), strict=True):
            changes.append((*item.spans[corner], text.encode()))
    for first, end, digits in sorted(changes, reverse=True):
        data = data[:first] + digits + data[end:]
    return data


def _corner_texts(item: VocObject, box: Box, width: int, height: int) -> list[str]:
    x0, y0, x1, y1 = box
    if not all(item.texts[corner].lstrip("+-").isdigit() for corner in _CORNERS):
        return [f"{value:.2f}" for value in (x0 + 1, y0 + 1, x1, y1)]
    (xmin, xmax), (ymin, ymax) = _pixels(x0, x1, width), _pixels(y0, y1, height)
    return [str(value) for value in (xmin, ymin, xmax, ymax)]


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """Round two edges to a first and a last pixel, counted from 1. They differ, since readers require max > min."""
    first, last = math.floor(low + 0.5) + 1, math.floor(high + 0.5)
    if last <= first:
        first = max(1, min(math.floor(low) + 1, size - 1))
        last = first + 1
    return first, last
