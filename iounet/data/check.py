"""Checks a detection data set in COCO format before training.

    python -m iounet.data.check ANNOTATIONS [IMAGES]

The command prints the number of images and the number of objects by class and size. It lists *faults*, which training
refuses, and *notes*, which are harmless but worth knowing. With the image folder, it decodes every image.
The rules are those of `annotations` and `images`, which training uses too; ``--fix`` runs `repair`.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import replacing, write_text
from ..progress import progress
from ..terminal import print_any_name
from ..wording import counted
from .annotations import NO_SIZE, Annotations, Finding, Scan, id_in, load_json, scan_annotations
from .images import check_image_size, exif_orientation, image_path, open_image
from .listing import listed_by_rule
from .repair import repair

# Bin edges for the square root of an object's area, in pixels. They are about half an octave apart and include COCO's
# bounds, 32 and 96.
_SIZE_EDGES = (0, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_SMALL, _LARGE = 32, 96

# Aspect ratio above which an image gets a note.
_EXTREME_RATIO = 100

# Number of classes printed before "and N more", and length of the longest bar.
_NUM_CLASSES = 100
_BAR = 40

_STDOUT = Path("-")


@dataclass(frozen=True)
class Report:
    """The contents of a data set, with its faults.

    Attributes:
        annotation_file: the file that was checked.
        image_folder: the folder whose images were opened; None if only the annotations were checked.
        num_images: number of entries in ``images``.
        num_annotations: number of entries in ``annotations``.
        num_objects: number of usable annotations of single objects, which training learns from.
        num_crowds: number of usable annotations that stand for a group of objects (``iscrowd``).
        classes: ``{"id", "name", "objects"}`` of each category, sorted by id.
        sizes: ``{"from", "below", "objects"}`` for bins of the square root of the objects' area in pixels; ``below``
            is None in the last bin.
        coco_sizes: number of ``"small"`` (area < 32²), ``"medium"`` and ``"large"`` (area >= 96²) objects.
        faults: findings that training refuses.
        notes: findings that are harmless but worth knowing.
        image_sizes: (width, height) in pixels of each usable image file, by its index in ``images``.
    """

    annotation_file: str
    image_folder: str | None
    num_images: int
    num_annotations: int
    num_objects: int
    num_crowds: int
    classes: list[dict[str, Any]]
    sizes: list[dict[str, Any]]
    coco_sizes: dict[str, int]
    faults: list[Finding]
    notes: list[Finding]
    image_sizes: dict[int, tuple[int, int]]


def check_dataset(
    content: dict[str, Any], annotation_file: str | Path, image_folder: str | Path | None = None
) -> Report:
    """Check the ``content`` of an annotation file (`load_json`) and, if ``image_folder`` is given, its images."""
    scan = scan_annotations(content)
    faults, notes = list(scan.faults), list(_notes(content, scan))
    image_sizes = {}
    if image_folder is not None:
        refused = {fault.position for fault in faults if fault.section == "images" and fault.rule not in NO_SIZE}
        entries = [(position, entry) for position, entry in enumerate(content["images"]) if position not in refused]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL releases the GIL while it decodes
            examine = partial(_examine_image, folder=image_folder, annotation_file=annotation_file)
            examined = pool.map(examine, *zip(*entries, strict=True)) if entries else iter(())
            shown = progress(examined, total=len(entries), desc="check", unit="image", leave=False)
            for (position, _), (size, image_faults, image_notes) in zip(entries, shown, strict=True):
                faults += image_faults
                notes += image_notes
                if size is not None:
                    image_sizes[position] = size

    usable, is_object = scan.usable, ~scan.usable.crowd
    per_class = np.bincount(usable.labels[is_object], minlength=len(usable.categories) + 1)[1:].tolist()
    sides = np.sqrt(np.maximum(usable.areas[is_object], 0))
    per_size = np.histogram(sides, [*_SIZE_EDGES, np.inf])[0].tolist()
    small, large = int((sides < _SMALL).sum()), int((sides >= _LARGE).sum())
    return Report(
        annotation_file=str(annotation_file),
        image_folder=None if image_folder is None else str(image_folder),
        num_images=len(content["images"]),
        num_annotations=len(content["annotations"]),
        num_objects=len(sides),
        num_crowds=int(usable.crowd.sum()),
        classes=[{**category, "objects": n} for category, n in zip(usable.categories, per_class, strict=True)],
        sizes=[
            {"from": low, "below": high, "objects": n}
            for low, high, n in zip(_SIZE_EDGES, [*_SIZE_EDGES[1:], None], per_size, strict=True)
        ],
        coco_sizes={"small": small, "medium": len(sides) - small - large, "large": large},
        faults=faults,
        notes=notes,
        image_sizes=image_sizes,
    )


def _notes(content: dict[str, Any], scan: Scan) -> Iterator[Finding]:
    usable = scan.usable
    for position, item in enumerate(content["annotations"]):
        if id_in(item) == 0:
            text = "annotation 0: pycocotools never counts a match with id 0; iounet's evaluation renumbers annotations"
            yield Finding("annotation id 0", "annotations", position, 0, text)
    index_of = {id_in(item): index for index, item in enumerate(content["images"])}
    for position in np.sort(scan.positions[scan.overhanging]).tolist():
        item = content["annotations"][position]
        what = f"annotation {item['id']} of image {item['image_id']}: bbox {item['bbox']}"
        image = content["images"][index_of[item["image_id"]]]
        if item["bbox"][2] > image["width"] or item["bbox"][3] > image["height"]:
            rule = "box larger than its image"
            text = (
                f"{what} in an image {image['width']} wide and {image['height']} high: training clips the box; check "
                "whether the image was resized"
            )
        else:
            rule, text = "box overhangs its image", f"{what}: training clips the box to the image"
        yield Finding(rule, "annotations", position, item["id"], text)
    yield from _repetitions(content, usable)
    num_objects = np.diff(np.concatenate([[0], np.cumsum(~usable.crowd)])[usable.first])
    for index in np.flatnonzero(num_objects == 0):
        image = usable.images[index]
        text = f"image {image['id']} ({image['file_name']}): training uses it as background"
        yield Finding("image without objects", "images", index_of[image["id"]], image["id"], text)
    for image in usable.images:
        width, height = image["width"], image["height"]
        if max(width, height) > _EXTREME_RATIO * min(width, height):
            text = (
                f"image {image['id']} ({image['file_name']}): {width} wide and {height} high; resizing leaves little "
                "of the short side"
            )
            yield Finding("extreme aspect ratio", "images", index_of[image["id"]], image["id"], text)


def _repetitions(content: dict[str, Any], usable: Annotations) -> Iterator[Finding]:
    """Yield a note for each repeated file name and each repeated class name."""
    entries: list[tuple[str, str, str, list[dict[str, Any]], str]] = [
        ("file listed twice", "images", "image", usable.images, "file_name"),
        ("two classes of one name", "categories", "category", usable.categories, "name"),
    ]
    for rule, section, kind, items, key in entries:
        position_of = {id_in(item): position for position, item in enumerate(content[section])}
        first_of: dict[str, int] = {}
        for item in items:
            first = first_of.setdefault(item[key], item["id"])
            if first != item["id"]:
                text = f"{kind} {item['id']} has the same {key} as {kind} {first}: {item[key]}"
                yield Finding(rule, section, position_of[item["id"]], item["id"], text)


def _examine_image(
    position: int, entry: dict[str, Any], folder: str | Path, annotation_file: str | Path
) -> tuple[tuple[int, int] | None, list[Finding], list[Finding]]:
    """Return the (width, height) of an image file (None if it cannot be used), its faults and its notes."""

    def finding(rule: str, text: str) -> Finding:
        return Finding(rule, "images", position, entry["id"], f"image {entry['id']}: {text}")

    try:
        path = image_path(folder, entry["file_name"])
        with open_image(path) as file:
            width, height = file.convert("RGB").size  # as training reads it
            mode, orientation = file.mode, exif_orientation(file)
    except DataError as error:
        return None, [finding(error.rule, str(error))], []

    faults, notes = [], []
    annotated = entry.get("width"), entry.get("height")
    if mode == "CMYK":
        notes.append(finding("CMYK image", f"{path}: training converts it to RGB without its colour profile"))
    if orientation != 1:
        # Orientations 5 to 8 swap width and height.
        rotated = (height, width) if orientation >= 5 else (width, height)
        exif = f"{path}: training reads the image as stored, without its EXIF rotation (orientation {orientation})"
        if annotated == rotated != (width, height):
            text = (
                f"{exif}, but the annotated size, {annotated[0]} wide and {annotated[1]} high, is that of the rotated "
                "image, so its boxes do not fit; save the image rotated (PIL.ImageOps.exif_transpose)"
            )
            return None, [finding("annotated as rotated by EXIF", text)], []
        if annotated == rotated:
            fits = "fits both the stored and the rotated image"
        else:
            fits = "fits the stored image" if annotated == (width, height) else "fits neither of the two"
        notes.append(finding("rotated by EXIF", f"{exif}; the annotated size {fits}; check that the boxes fit"))
    # If width or height is missing or not a positive integer, the entry already has a fault.
    if all(isinstance(side, int) and side > 0 for side in annotated):
        try:
            check_image_size(path, width, height, entry, annotation_file)
        except DataError as error:
            faults.append(finding(error.rule, str(error)))
    return (width, height), faults, notes


def _lines(report: Report) -> Iterator[str]:
    """Yield the printed report line by line."""
    yield report.annotation_file
    yield (
        f"images in {report.image_folder}"
        if report.image_folder
        else "images not opened; to check them, give their folder"
    )
    unusable = report.num_annotations - report.num_objects - report.num_crowds
    numbers = (report.num_images, "image"), (report.num_objects, "object"), (report.num_crowds, "crowd")
    yield f"\n{', '.join(counted(number, noun) for number, noun in numbers)}" + (
        f", {counted(unusable, 'unusable annotation')}" if unusable else ""
    )

    yield "\nobjects by class (id and name)"
    yield from _chart([(f"{c['id']:>4}  {c['name']}", c["objects"]) for c in report.classes[:_NUM_CLASSES]])
    if len(report.classes) > _NUM_CLASSES:
        yield f"  and {len(report.classes) - _NUM_CLASSES:,} more classes"

    yield "\nobjects by size (square root of the area, pixels)"
    sizes = [(f"{s['from']:>4} - {s['below'] or '':<3}", s["objects"]) for s in report.sizes]
    filled = [row for row, (_, objects) in enumerate(sizes) if objects]
    yield from _chart(sizes[filled[0] : filled[-1] + 1] if filled else [])
    small, medium, large = (report.coco_sizes[name] for name in ("small", "medium", "large"))
    yield f"  COCO: {small:,} small (below {_SMALL}), {medium:,} medium, {large:,} large (from {_LARGE})"

    yield f"\nfaults (training refuses them): {_number(report.faults)}"
    yield from _listing(report.faults)
    yield f"\nnotes (harmless, but worth knowing): {_number(report.notes)}"
    yield from _listing(report.notes)


def _number(findings: list[Finding]) -> str:
    return f"{len(findings):,}" if findings else "none"


def _chart(rows: list[tuple[str, int]]) -> Iterator[str]:
    width = max((len(label) for label, _ in rows), default=0)
    most = max((number for _, number in rows), default=0)
    for label, number in rows:
        # At least an eighth of a block, to distinguish few from none.
        bar = "█" * round(_BAR * number / most) or "▏" if number else ""
        yield f"  {label:<{width}} {number:>9,}  {bar}".rstrip()


def _listing(findings: Iterable[Finding]) -> Iterator[str]:
    found = ((finding.rule, finding.text) for finding in findings)
    for lines in listed_by_rule(found, all_are_in=" (--json lists all)"):
        yield from ["", *lines]


def _as_json(report: Report, changes: list[Finding] | None) -> str:
    content = {key: value for key, value in asdict(report).items() if key != "image_sizes"}
    if changes is not None:
        content["changes"] = [asdict(change) for change in changes]
    return json.dumps(content, indent=1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m iounet.data.check",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Check a detection data set in COCO format: print what it contains and what is wrong with it.",
        epilog="example:\n"
        "  python -m iounet.data.check data/mine/train.json photos/ --fix data/mine/train_fixed.json\n\n"
        "exit codes:\n"
        "  0  no faults\n"
        "  1  faults (also if --fix wrote a repaired copy)\n"
        "  2  the file cannot be checked, or an output cannot be written",
    )
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="annotation file (COCO-format JSON)")
    parser.add_argument(
        "images", type=Path, nargs="?", metavar="IMAGES", help="folder of the images; if given, every image is opened"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the complete report as JSON; - prints it instead"
    )
    parser.add_argument(
        "--fix",
        type=Path,
        metavar="OUTPUT",
        help="write a repaired copy of ANNOTATIONS and print the changes: unusable images and boxes are removed, "
        "duplicate annotation ids are renumbered and, with IMAGES, wrong widths and heights are corrected",
    )
    args = parser.parse_args(arguments)
    # Check the paths before opening the images, which may take an hour.
    if args.images is not None and not args.images.is_dir():
        parser.error(f"{args.images}: no such image folder; check the path")
    outputs = [path for path in (args.fix, args.json) if path not in (None, _STDOUT)]
    for path in outputs:
        if not path.parent.is_dir() or path.is_dir():
            parser.error(f"{path}: cannot be written; give a file name in an existing folder")
        if path.exists() and args.annotations.exists() and path.samefile(args.annotations):
            parser.error(f"{path}: would overwrite the annotation file; give another name")
    if len({path.resolve() for path in outputs}) < len(outputs):
        parser.error(f"{args.fix}: given for both --fix and --json; give two names")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = _parse(arguments)
    changes, refusal = None, None
    try:
        content = load_json(args.annotations)
        report = check_dataset(content, args.annotations, args.images)
        if args.fix is not None:
            try:
                repaired, changes = repair(content, report.faults, report.image_sizes)
                with replacing(args.fix) as file:
                    json.dump(repaired, file)
            except DataError as error:
                refusal = f"{args.fix}: not written, because this fault needs your decision: {error}"
        if args.json not in (None, _STDOUT):
            write_text(args.json, _as_json(report, changes))
    except KeyboardInterrupt:
        return 130
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print_any_name()
    if args.json == _STDOUT:
        print(_as_json(report, changes))
    else:
        print("\n".join(_lines(report)))
        if changes is not None:
            print(f"\nrepaired copy: {args.fix}; changes: {_number(changes)}")
            print("\n".join(_listing(changes)))
    if refusal is not None:
        print(f"\n{refusal}", file=sys.stderr)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
