"""Reading label files in any format: COCO JSON, Pascal VOC, YOLO."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .coco_labels import read_coco
from .labels import LabelSet
from .voc_folder import VocFolder, find_voc
from .voc_labels import read_voc
from .yolo_folder import YoloFolder, find_yolo
from .yolo_labels import read_yolo

# Number of faults listed in the error about a source without usable labels.
_NUM_SHOWN = 3

# Names that other tools give to the split val.
_ALSO_VAL = ("valid", "validation")


def read_labels(source: Path, *, images: Path | None = None, split: str | None = None) -> LabelSet:
    """Read the label files of a data set in any format.

    Args:
        source: a COCO-format .json file; a data.yaml of YOLO labels; or a folder in one of the layouts of
            `iounet.data.voc_folder` and `iounet.data.yolo_folder`.
        images: the folder of the images, if they are not in the usual place for the format: for COCO, the folder that
            ``file_name`` is relative to; otherwise a folder with the same layout as the data set.
        split: the split to read, such as ``train``; None reads all of them.

    Raises:
        DataError: if there are no label files in a known format, no such split, or no usable labels.
    """
    found = _find(source, images)
    if split is not None:
        split = _one_of(found, split, source)
    labels = _read(found, split)
    if not labels.boxes:
        raise DataError(_nothing_usable(labels))
    return labels


def list_splits(source: Path, *, images: Path | None = None) -> list[str]:
    """Return the names of a data set's splits in the order of its files; empty if it has no splits.

    Args:
        source: see `read_labels`.
        images: see `read_labels`.

    Raises:
        DataError: if there are no label files in a known format.
    """
    return _splits_of(_find(source, images))


@dataclass(frozen=True)
class _CocoFile:
    path: Path
    images: Path | None


def _find(source: Path, images: Path | None) -> _CocoFile | VocFolder | YoloFolder:
    if images is not None and not images.is_dir():
        raise DataError(
            f"{images}: no such image folder; check the path, or omit it to look for the images beside the labels"
        )
    if source.is_file():
        if source.suffix.lower() == ".json":
            return _CocoFile(source, images)
        if source.suffix.lower() in (".yaml", ".yml") and (found := find_yolo(source, images)) is not None:
            return found
        raise DataError(f"{source}: unknown kind of label file; {_KNOWN}")
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder; check the path")
    has_yaml = any((source / name).is_file() for name in ("data.yaml", "data.yml", "dataset.yaml"))
    finders = (find_yolo, find_voc) if has_yaml else (find_voc, find_yolo)
    for find in finders:
        if (folder := find(source, images)) is not None:
            return folder
    if jsons := sorted(source.glob("*.json")) + sorted(source.glob("*/*.json")):
        raise DataError(f"{source}: is a folder; for labels in COCO format, give the file, such as {jsons[0]}")
    raise DataError(f"{source}: no label files in this folder; {_KNOWN}")


_KNOWN = (
    "give a COCO-format .json, a data.yaml of YOLO labels, or a folder of Pascal VOC (ImageSets, Annotations and "
    "JPEGImages, or .xml files beside their images) or of YOLO (images and labels)"
)


def _splits_of(found: _CocoFile | VocFolder | YoloFolder) -> list[str]:
    return [] if isinstance(found, _CocoFile) else [name for name in found.splits if name]


def _one_of(found: _CocoFile | VocFolder | YoloFolder, split: str, source: Path) -> str:
    splits = _splits_of(found)
    if not splits:
        raise DataError(f"{source}: has no splits; omit the split '{split}' to read all labels")
    for name in (split, *(_ALSO_VAL if split == "val" else ())):
        if name in splits:
            return name
    # For example, a test split in data.yaml whose folder was not copied with the others.
    faults = found.faults.get(split, []) if isinstance(found, YoloFolder) else []
    missing = [fault.text for fault in faults if fault.rule == "missing split"]
    raise DataError("; ".join([f"{source}: has no split '{split}', only {', '.join(splits)}", *missing]))


def _read(found: _CocoFile | VocFolder | YoloFolder, split: str | None) -> LabelSet:
    if isinstance(found, _CocoFile):
        return read_coco(found.path, found.images)
    if isinstance(found, VocFolder):
        return read_voc(found, split)
    return read_yolo(found, split)


def _nothing_usable(labels: LabelSet) -> str:
    if not labels.faults:
        return f"{labels.source}: none of its {len(labels.images)} images has a label; check where the label files are"
    shown = "; ".join(f"{fault.where}: {fault.text}" for fault in labels.faults[:_NUM_SHOWN])
    more = f"; and {len(labels.faults) - _NUM_SHOWN} more" if len(labels.faults) > _NUM_SHOWN else ""
    return f"{labels.source}: no usable label: {shown}{more}"
