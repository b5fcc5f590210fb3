"""Labels in the form of Pascal VOC: an XML file for each image.

Why not `supervision.DetectionDataset.from_pascal_voc`: it stops at the first file that it cannot read, keeps no object
numbers, and writes files in a form of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from ..errors import DataError
from ..files import replacing
from .images import IMAGE_SUFFIXES, open_image
from .label_copies import check_moves, digest, read_unchanged, refuse_overwriting
from .labels import Box, LabeledBox, LabeledImage, LabelFault, LabelSet, repeated_boxes
from .voc_folder import VocFolder, VocSource
from .voc_xml import VocAnnotation, VocObject, parse_voc, with_boxes


@dataclass(frozen=True)
class VocRecord:
    """What one annotation file holds.

    Attributes:
        source: the file.
        image: None if the file or its image cannot be used; the one fault says why.
        boxes: the objects that can be used, with their boxes.
        faults: of the file, or of its objects.
        class_names: of all objects, whatever else is wrong with them.
        digest: of the file's content; None if it could not be read.
    """

    source: VocSource
    image: LabeledImage | None
    boxes: list[tuple[VocObject, Box]]
    faults: list[LabelFault]
    class_names: set[str]
    digest: str | None


@dataclass(frozen=True)
class VocLabels(LabelSet):
    """Labels in the form of Pascal VOC.

    Attributes:
        folder: where they lie.
        records: of the images that were asked for.
        digests: of all annotation files of the data set, by their path relative to its folder.
    """

    folder: VocFolder
    records: list[VocRecord]
    digests: dict[str, str | None]

    def write_copy(self, output: Path, boxes: Mapping[str, Box]) -> list[Path]:
        check_moves(self, boxes)
        names = [*self.digests, *self.folder.companions]
        sources = {name: self.folder.root / name for name in names}
        refuse_overwriting((output / name for name in names), sources.values())
        records = {record.source.label: record for record in self.records}
        written = []
        for name, path in sources.items():
            if not path.exists():
                continue  # a split lists it, but it was missing already: a fault
            data = read_unchanged(path, self.digests.get(name))
            record = records.get(name)
            if record is not None and record.image is not None:
                keys = {_key(name, item): item for item, _ in record.boxes}
                moved = [(item, boxes[key]) for key, item in keys.items() if key in boxes]
                data = with_boxes(data, moved, record.image.width, record.image.height)
            with replacing(output / name, "wb") as file:
                file.write(data)
            written.append(output / name)
        return written


def read_voc(folder: VocFolder, split: str | None = None) -> VocLabels:
    """The labels of a split, or of all splits; faults are collected.

    The class names are those of the whole data set, in alphabetical order, so that all splits have the same.

    Args:
        folder: the data set.
        split: one of its splits.
    """
    everything = {source.label: source for sources in folder.splits.values() for source in sources}
    wanted = {source.label for source in folder.splits[split]} if split is not None else set(everything)
    records = {}
    class_names: set[str] = set()
    digests = {}
    for label, source in sorted(everything.items()):
        record = read_record(folder, source, open_the_image=label in wanted)
        class_names |= record.class_names
        digests[label] = record.digest
        if label in wanted:
            records[label] = record
    images: list[LabeledImage] = []
    boxes: list[LabeledBox] = []
    faults: list[LabelFault] = []
    for record in records.values():
        faults += record.faults
        if record.image is None:
            continue
        boxes += [
            LabeledBox(
                key=_key(record.source.label, item),
                image=len(images),
                class_name=item.class_name,
                box=box,
                crowd=item.difficult,
                movable=item.movable,
            )
            for item, box in record.boxes
        ]
        images.append(record.image)
    return VocLabels(
        source=folder.root,
        class_names=sorted(class_names),
        images=images,
        boxes=boxes,
        faults=faults + repeated_boxes(boxes),
        folder=folder,
        records=list(records.values()),
        digests=digests,
    )


def _key(label: str, item: VocObject) -> str:
    return f"{label} object {item.number}"


def read_record(folder: VocFolder, source: VocSource, *, open_the_image: bool = True) -> VocRecord:
    """What an annotation file holds, with what is wrong with it; without its image, the class names alone."""
    path = folder.root / source.label
    found = None
    class_names: set[str] = set()
    try:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file; restore it, or take {path.stem} out of the splits", rule="missing label file"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})", rule="unreadable label file") from None
        found = digest(data)
        annotation = parse_voc(data, path)
        class_names = {item.class_name for item in annotation.objects if item.class_name}
        if not open_the_image:
            return VocRecord(source, None, [], [], class_names, found)
        image = _open(folder, source, annotation)
    except DataError as error:
        text = str(error).removeprefix(f"{path}: ")
        return VocRecord(source, None, [], [LabelFault(source.label, error.rule, text)], class_names, found)
    boxes, faults = [], []
    for item in annotation.objects:
        try:
            boxes.append((item, item.box(image.width, image.height)))
        except DataError as error:
            faults.append(LabelFault(_key(source.label, item), error.rule, str(error)))
    return VocRecord(source, image, boxes, faults, class_names, found)


def _open(folder: VocFolder, source: VocSource, annotation: VocAnnotation) -> LabeledImage:
    label = folder.root / source.label
    path = _image_of(source, annotation)
    if path is None:
        raise DataError(
            f"{label}: no image of this name ({', '.join(IMAGE_SUFFIXES)}), though the file describes one; "
            "restore the image, or remove the file",
            rule="missing image",
        )
    with open_image(path) as image:
        width, height = image.size
    # Some tools write no size, or zeros: then the image's own is all there is.
    stated = [text or "0" for text in annotation.size]
    if stated != ["0", "0"] and stated != [str(width), str(height)]:
        raise DataError(
            f"{path}: the image is {width} wide and {height} high, but {label} says {stated[0]} wide and {stated[1]} "
            "high, so its boxes do not fit; restore the original image, or correct the file",
            rule="wrong width or height",
        )
    return LabeledImage(path.relative_to(folder.image_root).as_posix(), path, width, height)


def _image_of(source: VocSource, annotation: VocAnnotation) -> Path | None:
    """Of several images with the annotation file's name the one that the file names."""
    named = PureWindowsPath(annotation.filename).name
    return next((path for path in source.images if path.name == named), source.images[0] if source.images else None)
