"""Pascal VOC labels: one XML file per image.

`supervision.DetectionDataset.from_pascal_voc` is not used because it stops at the first file that it cannot read, keeps
no object numbers, and writes newly built files instead of changed copies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from ..errors import DataError
from .images import IMAGE_SUFFIXES, exif_orientation, open_image
from .label_copies import check_moves, digest, read_unchanged, refuse_overwriting, write_files
from .labels import Box, LabeledBox, LabeledImage, LabelFault, LabelSet, repeated_boxes
from .voc_folder import VocFolder, VocSource
from .voc_xml import VocAnnotation, VocObject, parse_voc, with_boxes


@dataclass(frozen=True)
class VocRecord:
    """The content of one annotation file.

    Attributes:
        source: the file.
        class_names: classes of all objects, including unusable ones.
        image: None if the image was not opened, or if there is an ``error``.
        boxes: the usable objects with their boxes.
        bad_objects: number of an unusable object → its error.
        error: why the file or its image cannot be used.
        digest: digest of the file's content; None if the file could not be read.
    """

    source: VocSource
    class_names: set[str]
    image: LabeledImage | None
    boxes: list[tuple[VocObject, Box]]
    bad_objects: dict[int, DataError]
    error: DataError | None
    digest: str | None

    def key(self, number: int) -> str:
        """Return the key of the label that is the ``number``-th object."""
        return f"{self.source.label} object {number}"

    def labels(self, image: int) -> list[LabeledBox]:
        """Return the usable objects as labels of the ``image``-th image."""
        return [
            LabeledBox(self.key(item.number), image, item.class_name, box, item.difficult, item.movable)
            for item, box in self.boxes
        ]

    def faults(self, path: Path) -> list[LabelFault]:
        """Return the faults of the file at ``path``."""
        faults = [LabelFault(self.key(number), error.rule, str(error)) for number, error in self.bad_objects.items()]
        if self.error is not None:
            text = str(self.error).removeprefix(f"{path}: ")
            faults.append(LabelFault(self.source.label, self.error.rule, text))
        return faults


@dataclass(frozen=True)
class VocLabels(LabelSet):
    """Pascal VOC labels.

    Attributes:
        folder: the data set.
        records: the annotation files of the split that was read.
        digests: path relative to the folder of the data set → digest, for all its annotation files.
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
        contents = {}
        for name, path in sources.items():
            if not path.exists() and name in self.digests and self.digests[name] is None:
                continue  # listed in a split, but missing when the labels were read
            data = read_unchanged(path, self.digests.get(name))
            record = records.get(name)
            if record is not None and record.image is not None:
                items = {record.key(item.number): item for item, _ in record.boxes}
                moved = [(item, boxes[key]) for key, item in items.items() if key in boxes]
                data = with_boxes(data, moved, record.image.width, record.image.height)
            contents[output / name] = data
        return write_files(contents)


def read_voc(folder: VocFolder, split: str | None = None) -> VocLabels:
    """Read the labels of a split, or of all splits, and collect their faults.

    The class names are those of the whole data set in alphabetical order, so that all splits have the same classes.

    Args:
        folder: the data set.
        split: one of its splits; None reads all of them.
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
        faults += record.faults(folder.root / record.source.label)
        if record.image is not None:
            boxes += record.labels(len(images))
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


def read_record(folder: VocFolder, source: VocSource, *, open_the_image: bool = True) -> VocRecord:
    """Read an annotation file and collect its faults; if the image is not opened, read only the class names."""
    path = folder.root / source.label
    found = image = error = None
    class_names: set[str] = set()
    boxes: list[tuple[VocObject, Box]] = []
    bad_objects: dict[int, DataError] = {}
    try:
        data = _content(path)
        found = digest(data)
        annotation = parse_voc(data, path)
        class_names = {item.class_name for item in annotation.objects if item.class_name}
        if open_the_image:
            image = _open(folder, source, annotation)
            for item in annotation.objects:
                try:
                    boxes.append((item, item.box(image.width, image.height)))
                except DataError as bad:
                    bad_objects[item.number] = bad
    except DataError as raised:
        error = raised
    return VocRecord(source, class_names, image, boxes, bad_objects, error, found)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; restore it, or remove {path.stem} from the split files", rule="missing label file"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions", rule="unreadable label file"
        ) from None


def _open(folder: VocFolder, source: VocSource, annotation: VocAnnotation) -> LabeledImage:
    label = folder.root / source.label
    path = _image_of(source, annotation)
    if path is None:
        raise DataError(
            f"{label}: no image with this name ({', '.join(IMAGE_SUFFIXES)}); restore the image, or remove the "
            "annotation file",
            rule="missing image",
        )
    with open_image(path) as image:
        width, height = image.size
        swaps_sides = exif_orientation(image) >= 5
    # Some tools write no size, or zeros; the size of the image file is then used.
    stated = [text or "0" for text in annotation.size]
    if swaps_sides and stated == [str(height), str(width)] != [str(width), str(height)]:
        raise DataError(
            f"{path}: {label} gives the size of the image after its EXIF rotation, but training reads the image as "
            "stored, so its boxes do not fit; save the image rotated (PIL.ImageOps.exif_transpose)",
            rule="annotated as rotated by EXIF",
        )
    if stated != ["0", "0"] and stated != [str(width), str(height)]:
        raise DataError(
            f"{path}: the image is {width} wide and {height} high, but {label} says {stated[0]} wide and {stated[1]} "
            "high, so its boxes do not fit; restore the image that was annotated, or correct the annotation file",
            rule="wrong width or height",
        )
    return LabeledImage(path.relative_to(folder.image_root).as_posix(), path, width, height)


def _image_of(source: VocSource, annotation: VocAnnotation) -> Path | None:
    """Return the image with the name of the annotation file; of several, prefer the one named in ``<filename>``."""
    named = PureWindowsPath(annotation.filename).name
    return next((path for path in source.images if path.name == named), source.images[0] if source.images else None)
