"""Pascal VOC to COCO form.

    python -m iounet.data.voc ROOT --output DIR

reads either of two layouts and writes one ``DIR/<split>.json`` for each split. The images stay where they are.

    VOC devkit   ``ROOT/ImageSets/Main/<split>.txt``, ``ROOT/Annotations/*.xml`` and ``ROOT/JPEGImages``;
                 ``file_name`` is relative to JPEGImages.
    flat         ``ROOT/<split>/*.xml``, each beside its image, as labelImg leaves them; ``file_name`` is relative to
                 ROOT. Images without an annotation file are left out. With ``--val-share 0.2``, a fifth of the training
                 images, drawn with a fixed seed, becomes the split ``val``.

VOC counts pixels from 1 and includes the last one, COCO measures from the image's left and top edges: a box
becomes x = xmin - 1, y = ymin - 1, w = xmax - xmin + 1, h = ymax - ymin + 1, clipped to its image. An object
marked ``difficult`` becomes a crowd (``iscrowd`` 1): evaluation ignores it and training leaves it out. A box
that cannot be used is left out, and reported with its file, its object's number and the reason.
"""

import argparse
import json
import math
import os
import random
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, UserError
from ..files import make_folder, replacing

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
    root: str | Path, output: str | Path, *, classes: Sequence[str] | None = None, val_share: float = 0.0
) -> dict[str, ConvertedSplit]:
    """Writes ``output/<split>.json`` for each split of a Pascal VOC folder; returns what became of them.

    Image ids and category ids are the same in all splits. Split files that list images by class, and empty
    ones, are passed over.

    Args:
        root: a folder in either layout.
        output: the folder for the COCO-form files; made if it does not exist, files of the same names
            replaced.
        classes: the class names in the order of their category ids 1, 2, ...; by default all that occur, in
            alphabetical order. Objects of other classes are left out.
        val_share: of the images of ``train`` that become the split ``val``; always the same ones.

    Raises:
        DataError: a part of the folder is missing, an annotation file is not XML, an image is missing,
            unreadable or of another size than its annotation says; ``val_share`` without ``train``, or with a ``val``.
        ConfigError: no files can be written in ``output``.
    """
    root, output = Path(root), Path(output)
    splits = _read_devkit(root) if (root / "ImageSets").is_dir() else _read_flat(root)
    if val_share:
        splits = _with_val(splits, val_share)
    sources = sorted({source for split in splits.values() for source in split})
    images = {source: _read_image(source) for source in sources}
    if classes is None:
        classes = sorted({box.class_name for image in images.values() for box in image.boxes})
    if not classes:
        raise DataError(f"{root}: no image of any split has an object; check the folder")
    image_ids = {source: image_id for image_id, source in enumerate(sources, start=1)}
    make_folder(output)
    return {
        split: _write_split(
            output / f"{split}.json", {image_ids[source]: images[source] for source in of_split}, classes
        )
        for split, of_split in splits.items()
    }


@dataclass(frozen=True, order=True)
class _Source:
    """An image of the data set and its annotation file; ``file_name`` is the image's in the COCO form."""

    file_name: str
    image: Path
    annotation_file: Path


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


def _read_devkit(root: Path) -> dict[str, list[_Source]]:
    lists, folder = root / "ImageSets" / "Main", root / "JPEGImages"
    files = _find_images(folder)
    splits = {}
    for file in sorted(lists.glob("*.txt")):
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines or all(_PER_CLASS_LINE.search(line) for line in lines):
            continue
        names = list(dict.fromkeys(lines))
        for name in names:
            if name not in files:
                raise DataError(
                    f"{folder / name}.jpg: no such image (nor {', '.join(_IMAGE_SUFFIXES[1:])}), though {lists} lists "
                    "it; restore it, or take it out of the splits"
                )
        splits[file.stem] = [
            _Source(files[name].name, files[name], root / "Annotations" / f"{name}.xml") for name in names
        ]
    if not splits:
        raise DataError(
            f"{lists}: no split file there (such as train.txt, one image name a line); "
            "give the folder that holds ImageSets, Annotations and JPEGImages"
        )
    return splits


def _read_flat(root: Path) -> dict[str, list[_Source]]:
    splits = {}
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        annotation_files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml")
        if not annotation_files:
            continue
        images = _find_images(folder)
        for file in annotation_files:
            if file.stem not in images:
                raise DataError(
                    f"{file.with_suffix('.jpg')}: no such image (nor {', '.join(_IMAGE_SUFFIXES[1:])}), though "
                    f"{file.name} describes it; restore it, or remove that file"
                )
        splits[folder.name] = [
            _Source(f"{folder.name}/{images[file.stem].name}", images[file.stem], file) for file in annotation_files
        ]
    if not splits:
        raise DataError(
            f"{root}: neither ImageSets (the VOC devkit's layout) nor a folder of images with their .xml files, such "
            "as train; give the folder that holds them"
        )
    return splits


def _with_val(splits: dict[str, list[_Source]], share: float) -> dict[str, list[_Source]]:
    """The same splits with a share of train as val."""
    if "train" not in splits or "val" in splits:
        raise DataError(
            f"a share for val is taken from train where there is no val; the splits are {', '.join(splits)}"
        )
    train = splits["train"]
    held_out = set(random.Random(0).sample(train, round(share * len(train))))
    return splits | {
        "train": [source for source in train if source not in held_out],
        "val": [source for source in train if source in held_out],
    }


def _find_images(folder: Path) -> dict[str, Path]:
    """Name without suffix → path, of the images in a folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; VOC keeps its images there")
    files = (folder / name for name in sorted(os.listdir(folder)))
    return {file.stem: file for file in files if file.suffix.lower() in _IMAGE_SUFFIXES}


def _read_image(source: _Source) -> _Image:
    path, annotation_file = source.image, source.annotation_file
    try:
        annotation = ElementTree.parse(annotation_file).getroot()
    except FileNotFoundError:
        raise DataError(f"{annotation_file}: no such file; restore it, or take {path.stem} out of the splits") from None
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
    return _Image(annotation_file, source.file_name, width, height, boxes, left_out)


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
    parser.add_argument(
        "root", type=Path, help="the folder that holds ImageSets, Annotations and JPEGImages; or that holds train, ..."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the JSON files go")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="class names in the order of their category ids")
    parser.add_argument("--val-share", type=float, default=0.0, metavar="SHARE", help="of train that becomes val")
    args = parser.parse_args()
    if not 0 <= args.val_share < 1:
        parser.error(f"--val-share must lie in [0, 1); got {args.val_share:g}")
    try:
        splits = convert_voc(args.root, args.output, classes=args.classes, val_share=args.val_share)
    except UserError as error:
        parser.exit(1, f"{error}\n")
    print("\n".join(_table(splits)))
    # Splits overlap (trainval is train and val): one line per box, not one per split.
    left_out = dict.fromkeys(item for converted in splits.values() for item in converted.left_out)
    for item in left_out:
        print(f"left out: {item.file}: object {item.number}: {item.reason}")


if __name__ == "__main__":
    main()
