"""Pascal VOC to COCO form.

    python -m iounet.data.voc ROOT --output DIR

reads ``ROOT/ImageSets/Main/*.txt``, ``ROOT/Annotations/*.xml`` and ``ROOT/JPEGImages``, and writes one
``DIR/<split>.json`` for each split file. The images stay where they are: in JPEGImages, which
``file_name`` is relative to.

VOC counts pixels from 1 and includes the last one, COCO measures from the image's left and top edges: a box
becomes x = xmin - 1, y = ymin - 1, w = xmax - xmin + 1, h = ymax - ymin + 1, clipped to its image. An object
marked ``difficult`` becomes a crowd (``iscrowd`` 1): evaluation ignores it and training leaves it out. A box
that cannot be used is left out, and reported with its file, its object's number and the reason.
"""

import argparse
import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError
from ..files import replacing

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
# The lines of "aeroplane_train.txt": an image and whether it holds the class.
_PER_CLASS_LINE = re.compile(r"\S\s+(-1|0|1)$")


@dataclass(frozen=True)
class LeftOut:
    """A box that was not converted: the ``number``-th object, from 1, of an annotation ``file``."""

    file: Path
    number: int
    reason: str


@dataclass(frozen=True)
class ConvertedSplit:
    """What became of one split.

    Attributes:
        annotation_file: the COCO-form file written.
        num_images: images in it.
        num_boxes: class name -> boxes in it, difficult ones included.
        left_out: the boxes that are not in it.
    """

    annotation_file: Path
    num_images: int
    num_boxes: dict[str, int]
    left_out: list[LeftOut]


def convert_voc(
    root: str | Path, output: str | Path, *, classes: Sequence[str] | None = None
) -> dict[str, ConvertedSplit]:
    """Writes ``output/<split>.json`` for each split of a Pascal VOC folder; returns what became of them.

    Image ids and category ids are the same in all splits. Split files that list images by class, and empty
    ones, are passed over.

    Args:
        root: the folder that holds ImageSets, Annotations and JPEGImages.
        output: the folder for the COCO-form files; made if it does not exist, files of the same names
            replaced.
        classes: the class names in the order of their category ids 1, 2, ...; by default all that occur, in
            alphabetical order. Objects of other classes are left out.

    Raises:
        DataError: a part of the folder is missing, an annotation file is not XML, an image is missing,
            unreadable or of another size than its annotation says.
    """
    root, output = Path(root), Path(output)
    splits = _read_splits(root / "ImageSets" / "Main")
    names = sorted({name for split in splits.values() for name in split})
    files = _find_images(root / "JPEGImages")
    images = {name: _read_image(root, name, files) for name in names}
    if classes is None:
        classes = sorted({box.class_name for image in images.values() for box in image.boxes})
    if not classes:
        raise DataError(f"{root / 'Annotations'}: no image of any split has an object; check the folder")
    image_ids = {name: image_id for image_id, name in enumerate(names, start=1)}
    return {
        split: _write_split(output / f"{split}.json", {image_ids[n]: images[n] for n in members}, classes)
        for split, members in splits.items()
    }


@dataclass(frozen=True)
class _Box:
    number: int
    class_name: str
    bbox: tuple[float, float, float, float]  # [x, y, w, h] from the image's edges, clipped to it
    difficult: bool


@dataclass(frozen=True)
class _Image:
    annotation_file: Path
    file_name: str
    width: int
    height: int
    boxes: list[_Box]
    left_out: list[LeftOut]


def _read_splits(folder: Path) -> dict[str, list[str]]:
    splits = {}
    for file in sorted(folder.glob("*.txt")):
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if lines and not all(_PER_CLASS_LINE.search(line) for line in lines):
            splits[file.stem] = list(dict.fromkeys(lines))
    if not splits:
        raise DataError(
            f"{folder}: no split file there (such as train.txt, one image name a line); "
            "give the folder that holds ImageSets, Annotations and JPEGImages"
        )
    return splits


def _find_images(folder: Path) -> dict[str, str]:
    """Name without suffix -> file name, of the images in a folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; VOC keeps its images there")
    files = (Path(name) for name in sorted(os.listdir(folder)))
    return {file.stem: file.name for file in files if file.suffix.lower() in _IMAGE_SUFFIXES}


def _read_image(root: Path, name: str, files: dict[str, str]) -> _Image:
    annotation_file = root / "Annotations" / f"{name}.xml"
    if name not in files:
        raise DataError(
            f"{root / 'JPEGImages' / name}.jpg: no such image (nor {', '.join(_IMAGE_SUFFIXES[1:])}), though "
            f"{root / 'ImageSets' / 'Main'} lists it; restore it, or take it out of the splits"
        )
    path = root / "JPEGImages" / files[name]
    try:
        annotation = ElementTree.parse(annotation_file).getroot()
    except FileNotFoundError:
        raise DataError(f"{annotation_file}: no such file; restore it, or take {name} out of the splits") from None
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{annotation_file}: is not XML ({error}); repair or restore the file") from error
    try:
        with Image.open(path) as image:  # reads the header only
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); restore the file") from error
    stated = [annotation.findtext(f"size/{side}", "0").strip() for side in ("width", "height")]
    # Some tools write no size, or zeros: then the image's own is all there is.
    if stated != ["0", "0"] and stated != [str(width), str(height)]:
        raise DataError(
            f"{path}: the image is {width} wide and {height} high, but {annotation_file} says "
            f"{stated[0]} wide and {stated[1]} high, so its boxes do not fit; restore the original image, or "
            "correct the file"
        )
    boxes, left_out = [], []
    for number, item in enumerate(annotation.iterfind("object"), start=1):
        try:
            boxes.append(_read_box(item, number, width, height))
        except ValueError as error:
            left_out.append(LeftOut(annotation_file, number, str(error)))
    return _Image(annotation_file, files[name], width, height, boxes, left_out)


def _read_box(item: ElementTree.Element, number: int, width: int, height: int) -> _Box:
    """Raises ValueError with the reason if the box cannot be used."""
    class_name = item.findtext("name", "").strip()
    if not class_name:
        raise ValueError("has no class name")
    texts = {key: item.findtext(f"bndbox/{key}", "").strip() for key in ("xmin", "ymin", "xmax", "ymax")}
    try:
        xmin, ymin, xmax, ymax = (float(text) for text in texts.values())
    except ValueError:
        raise ValueError(f"{class_name}: has a bndbox that is not four numbers: {texts}") from None
    where = f"xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}"
    if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
        raise ValueError(f"{class_name}: is not finite: {where}")
    if xmax <= xmin or ymax <= ymin:
        raise ValueError(f"{class_name}: has no area: {where}")
    x0, y0, x1, y1 = max(xmin - 1, 0.0), max(ymin - 1, 0.0), min(xmax, width), min(ymax, height)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{class_name}: lies outside its image of {width} x {height} pixels: {where}")
    difficult = item.findtext("difficult", "0").strip() == "1"
    return _Box(number, class_name, (x0, y0, x1 - x0, y1 - y0), difficult)


def _write_split(path: Path, images: dict[int, _Image], classes: Sequence[str]) -> ConvertedSplit:
    category_ids = {name: category_id for category_id, name in enumerate(classes, start=1)}
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": category_id, "name": name} for name, category_id in category_ids.items()],
    }
    num_boxes: Counter[str] = Counter()
    left_out: list[LeftOut] = []
    for image_id, image in images.items():
        content["images"].append(
            {"id": image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
        )
        left_out += image.left_out
        for box in image.boxes:
            if box.class_name not in category_ids:
                reason = f"{box.class_name}: is not among the classes"
                left_out.append(LeftOut(image.annotation_file, box.number, reason))
                continue
            num_boxes[box.class_name] += 1
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[box.class_name],
                    "bbox": list(box.bbox),
                    "area": box.bbox[2] * box.bbox[3],
                    "iscrowd": int(box.difficult),
                }
            )
    with replacing(path) as file:
        json.dump(content, file)
    return ConvertedSplit(path, len(images), {name: num_boxes[name] for name in classes}, left_out)


def _table(splits: dict[str, ConvertedSplit]) -> Iterable[str]:
    classes = list(next(iter(splits.values())).num_boxes)
    rows = [["split", "images", *classes, "boxes", "left out"]]
    for split, converted in splits.items():
        boxes = converted.num_boxes
        numbers = [converted.num_images, *boxes.values(), sum(boxes.values()), len(converted.left_out)]
        rows.append([split, *map(str, numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m iounet.data.voc",
        description="Converts a Pascal VOC data set to COCO form, one JSON file per split.",
        epilog="example: python -m iounet.data.voc VOCdevkit/VOC2007 --output data/voc2007",
    )
    parser.add_argument("root", type=Path, help="the folder that holds ImageSets, Annotations and JPEGImages")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the JSON files go")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="class names in the order of their category ids")
    args = parser.parse_args()
    try:
        splits = convert_voc(args.root, args.output, classes=args.classes)
    except DataError as error:
        parser.exit(1, f"{error}\n")
    print("\n".join(_table(splits)))
    # Splits overlap (trainval is train and val): one line per box, not one per split.
    left_out = dict.fromkeys(item for converted in splits.values() for item in converted.left_out)
    for item in left_out:
        print(f"left out: {item.file}: object {item.number}: {item.reason}")


if __name__ == "__main__":
    main()
