"""Checks label files in any format and converts them to COCO format.

    python -m iounet.data.convert SOURCE --output FILE

The command reads COCO JSON, Pascal VOC or YOLO labels (in the layouts of `voc_folder` and `yolo_folder`), prints the
number of images and objects of each class and the first unusable labels of each kind, and writes one COCO-format file.
The images stay where they are. Without ``--output``, nothing is written.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import replacing
from ..terminal import print_any_name
from .coco_form import as_coco
from .label_copies import refuse_overwriting
from .label_files import read_labels
from .labels import LabelFault, LabelSet
from .listing import listed_by_rule


def _lines(labels: LabelSet) -> Iterator[str]:
    """Yield the printed report line by line."""
    objects = Counter(label.class_name for label in labels.boxes if not label.crowd)
    images = {name: set[int]() for name in labels.class_names}
    for label in labels.boxes:
        images[label.class_name].add(label.image)
    crowds = sum(label.crowd for label in labels.boxes)
    yield str(labels.source)
    rows = [("class", "images", "objects")]
    rows += [(name, f"{len(images[name]):,}", f"{objects[name]:,}") for name in labels.class_names]
    rows.append(("all", f"{len(labels.images):,}", f"{objects.total():,}"))
    width = max(len(name) for name, _, _ in rows)
    yield from (f"  {name:<{width}} {in_images:>9} {count:>9}" for name, in_images, count in rows)
    if empty := len(labels.images) - len({label.image for label in labels.boxes}):
        yield f"  images without objects: {empty:,}"
    if crowds:
        yield f"  crowds and difficult objects, which training leaves out: {crowds:,}"
    yield from _faults(labels.faults)


def _faults(faults: Sequence[LabelFault]) -> Iterator[str]:
    yield f"faults: {len(faults):,}" if faults else "faults: none"
    for lines in listed_by_rule((fault.rule, f"{fault.where}: {fault.text}") for fault in faults):
        yield from lines


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m iounet.data.convert",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Check label files in COCO, Pascal VOC or YOLO format and convert them to COCO format.",
        epilog="examples:\n"
        "  python -m iounet.data.convert data.yaml                  # only check\n"
        "  python -m iounet.data.convert data.yaml --split train --output train.json\n"
        "  python -m iounet.data.convert VOCdevkit/VOC2007 --split val --output val.json\n\n"
        "exit codes:\n"
        "  0  there are usable labels\n"
        "  1  there are none, or the output cannot be written",
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="COCO JSON, a data.yaml, or a folder of Pascal VOC or YOLO labels",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="COCO-format file to write; by default, nothing is written"
    )
    parser.add_argument("--split", metavar="NAME", help="split to read, such as train; by default, all splits")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the images, if they are not in the usual place for the format",
    )
    args = parser.parse_args(arguments)
    # Label files of the other formats do not end with .json, so the output cannot overwrite them.
    if args.output is not None and args.output.suffix.lower() != ".json":
        parser.error(f"{args.output}: a COCO-format file is JSON; give a file name that ends with .json")
    return args


def _write(content: dict[str, Any], path: Path) -> None:
    try:
        with replacing(path) as file:
            json.dump(content, file)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); give another file name") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = _parse(arguments)
    print_any_name()
    try:
        labels = read_labels(args.source, images=args.images, split=args.split)
        print("\n".join(_lines(labels)))
        if args.output is not None:
            content, folder = as_coco(labels)
            refuse_overwriting([args.output], [labels.source])
            _write(content, args.output)
            print(f"wrote {args.output}; its image folder (DATA.TRAIN_IMAGES or DATA.VAL_IMAGES) is {folder}")
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
