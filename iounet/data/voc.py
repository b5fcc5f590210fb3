"""Converts all splits of a Pascal VOC data set to COCO format.

    python -m iounet.data.voc ROOT --output DIR

The command writes ``DIR/<split>.json`` for each split. (``python -m iounet.data.convert`` writes one split, from any
format.) The images stay where they are. The layouts are those of `voc_folder`: with a folder ``JPEGImages``,
``file_name`` is relative to it, otherwise to ROOT. A folder without splits becomes ``train``. Images without an
annotation file are left out. With ``--val-share 0.2``, a fifth of the training images, drawn with a fixed seed, becomes
``val``.

VOC counts pixels from 1 and includes the last one; COCO measures from the image's left and top edges. A box becomes
x = xmin - 1, y = ymin - 1, w = xmax - xmin + 1, h = ymax - ymin + 1, clipped to its image. An object marked
``difficult`` becomes a crowd (``iscrowd`` 1), which evaluation ignores and training leaves out. An unusable box is left
out and reported with its file, the number of its object, and the reason.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, UserError
from ..files import make_folder, replacing
from .coco_form import coco_content
from .labels import LabeledImage
from .voc_folder import VocFolder, VocSource, find_voc
from .voc_labels import VocRecord, read_record


@dataclass(frozen=True)
class LeftOut:
    """A box that was not converted.

    Attributes:
        file: the annotation file.
        number: number of the object in the file, from 1.
        reason: what is wrong with the object.
    """

    file: Path
    number: int
    reason: str


@dataclass(frozen=True)
class ConvertedSplit:
    """The result of converting one split.

    Attributes:
        annotation_file: the COCO-format file written.
        num_images: number of images in the file.
        num_boxes: class name → number of boxes in the file, including difficult ones.
        left_out: the boxes that were left out.
    """

    annotation_file: Path
    num_images: int
    num_boxes: dict[str, int]
    left_out: list[LeftOut]


def convert_voc(
    root: str | Path, output: str | Path, *, classes: Sequence[str] | None = None, val_share: float = 0.0
) -> dict[str, ConvertedSplit]:
    """Write ``output/<split>.json`` for each split of a Pascal VOC folder; return the result of each split.

    Image ids and category ids are consistent across splits. Empty split files, and split files that list images by
    class, are skipped.

    Args:
        root: a folder in one of the layouts of `voc_folder`.
        output: the folder for the COCO-format files; created if needed. Existing files are replaced.
        classes: class names in the order of their category ids 1, 2, ...; by default, all classes that occur, in
            alphabetical order. Objects of other classes are left out.
        val_share: fraction of the images of ``train`` that becomes the split ``val``; the same images in every call.

    Raises:
        DataError: if a part of the folder is missing; an annotation file is not a VOC annotation; an image is missing,
            unreadable or not of the annotated size; or ``val_share`` is given, but there is no split ``train``, or
            there already is a split ``val``.
        ConfigError: if no files can be written in ``output``.
    """
    root, output = Path(root), Path(output)
    folder = find_voc(root) if root.is_dir() else None
    if folder is None:
        raise DataError(
            f"{root}: not a Pascal VOC folder: it has neither ImageSets (the layout of the VOC devkit) nor .xml files "
            "beside their images, here or in folders such as train; give the folder that contains them"
        )
    splits = {split or "train": sources for split, sources in folder.splits.items()}
    if val_share:
        splits = _with_val(splits, val_share)
    sources = sorted({source for of_split in splits.values() for source in of_split})
    images = {source: _read(folder, source) for source in sources}
    if classes is None:
        classes = sorted({item.class_name for image in images.values() for item, _ in image.record.boxes})
    if not classes:
        raise DataError(f"{root}: no split contains an object; check the folder")
    make_folder(output)
    by_name = sorted(sources, key=lambda source: images[source].file_name)
    image_ids = {source: image_id for image_id, source in enumerate(by_name, start=1)}
    return {
        split: _write_split(
            output / f"{split}.json", {image_ids[source]: images[source] for source in of_split}, classes
        )
        for split, of_split in splits.items()
    }


def _with_val(splits: dict[str, list[VocSource]], share: float) -> dict[str, list[VocSource]]:
    """Return the splits with a share of train moved to val."""
    if "train" not in splits or "val" in splits:
        raise DataError(f"--val-share needs a split train and no split val; the splits are {', '.join(splits)}")
    train = splits["train"]
    held_out = set(random.Random(0).sample(train, round(share * len(train))))
    return splits | {
        "train": [source for source in train if source not in held_out],
        "val": [source for source in train if source in held_out],
    }


@dataclass(frozen=True)
class _Image:
    annotation_file: Path
    file_name: str
    image: LabeledImage
    record: VocRecord


def _read(folder: VocFolder, source: VocSource) -> _Image:
    """Read an annotation file; raise DataError if the file or its image cannot be used."""
    record = read_record(folder, source)
    if record.error is not None:
        raise record.error
    assert record.image is not None
    return _Image(folder.root / source.label, record.image.key.removeprefix("JPEGImages/"), record.image, record)


def _write_split(path: Path, images: dict[int, _Image], classes: Sequence[str]) -> ConvertedSplit:
    num_boxes: Counter[str] = Counter()
    left_out: list[LeftOut] = []
    entries = []
    for image_id, image in images.items():
        reasons = {number: str(error) for number, error in image.record.bad_objects.items()}
        for item, _ in image.record.boxes:
            if item.class_name not in classes:
                reasons[item.number] = f"class {item.class_name} is not one of the given classes"
        left_out += [LeftOut(image.annotation_file, number, reasons[number]) for number in sorted(reasons)]
        boxes = [label for label in image.record.labels(image_id) if label.class_name in classes]
        num_boxes.update(label.class_name for label in boxes)
        entries.append((image_id, image.file_name, image.image, boxes))
    with replacing(path) as file:
        json.dump(coco_content(classes, entries), file)
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
        description="Convert a Pascal VOC data set to COCO format, one JSON file per split.",
        epilog="example: python -m iounet.data.voc VOCdevkit/VOC2007 --output data/voc2007",
    )
    parser.add_argument(
        "root",
        type=Path,
        metavar="ROOT",
        help="folder with ImageSets, Annotations and JPEGImages, or with .xml files beside their images",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the JSON files")
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="class names in the order of their category ids; by default, all classes in alphabetical order",
    )
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="fraction of the training images to hold out as val (default: 0)",
    )
    args = parser.parse_args()
    if not 0 <= args.val_share < 1:
        parser.error(f"--val-share must lie in [0, 1); got {args.val_share:g}")
    try:
        splits = convert_voc(args.root, args.output, classes=args.classes, val_share=args.val_share)
    except UserError as error:
        parser.exit(1, f"{error}\n")
    print("\n".join(_table(splits)))
    # Splits may overlap (trainval contains train and val); print each box once.
    left_out = dict.fromkeys(item for converted in splits.values() for item in converted.left_out)
    for item in left_out:
        print(f"left out: {item.file}: object {item.number}: {item.reason}")


if __name__ == "__main__":
    main()
