"""Label files of any form: COCO JSON, Pascal VOC, YOLO."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .coco_labels import read_coco
from .labels import LabelSet
from .voc_folder import VocFolder, find_voc
from .voc_labels import read_voc
from .yolo_folder import YoloFolder, find_yolo
from .yolo_labels import read_yolo

# How many faults an error shows of a source in which nothing can be used.
_NUM_SHOWN = 3

# Names of other tools for the split val.
_ALSO_VAL = ("valid", "validation")


def read_labels(source: Path, *, images: Path | None = None, split: str | None = None) -> LabelSet:
    """Reads the label files of a data set, in whichever form they are.

    Args:
        source: a COCO-form .json file; a data.yaml of YOLO labels; or a folder in one of the layouts of
            :mod:`iounet.data.voc_folder` and :mod:`iounet.data.yolo_folder`.
        images: the folder of the images, if they are not where the form keeps them: what ``file_name`` is relative to,
            or a folder of the same layout as the data set.
        split: which part to read, such as ``train``; None: all of it.

    Raises:
        DataError: no label files in any known form; no such split; no label that can be used.
    """
    found = _find(source, images)
    if split is not None:
        split = _one_of(found, split, source)
    labels = _read(found, split)
    if not labels.boxes:
        raise DataError(_nothing_usable(labels))
    return labels


def list_splits(source: Path, *, images: Path | None = None) -> list[str]:
    """The names of a data set's splits, in the order of its files; none if it is not divided.

    Args:
        source, images: as for :func:`read_labels`.

    Raises:
        DataError: no label files in any known form.
    """
    return _splits_of(_find(source, images))


@dataclass(frozen=True)
class _CocoFile:
    path: Path
    images: Path | None


def _find(source: Path, images: Path | None) -> _CocoFile | VocFolder | YoloFolder:
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: no such image folder; check the path, or leave it out to look beside the labels")
    if source.is_file():
        if source.suffix.lower() == ".json":
            return _CocoFile(source, images)
        if source.suffix.lower() in (".yaml", ".yml") and (found := find_yolo(source, images)) is not None:
            return found
        raise DataError(f"{source}: is no label file that is known by its name; {_KNOWN}")
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder; check the path")
    has_yaml = any((source / name).is_file() for name in ("data.yaml", "data.yml", "dataset.yaml"))
    finders = (find_yolo, find_voc) if has_yaml else (find_voc, find_yolo)
    for find in finders:
        if (folder := find(source, images)) is not None:
            return folder
    if jsons := sorted(source.glob("*.json")) + sorted(source.glob("*/*.json")):
        raise DataError(f"{source}: is a folder; for labels in COCO form give the file, such as {jsons[0]}")
    raise DataError(f"{source}: holds no label files; {_KNOWN}")


_KNOWN = (
    "give a COCO-form .json, a data.yaml of YOLO labels, or a folder of Pascal VOC (ImageSets, Annotations and "
    "JPEGImages, or .xml files beside their images) or of YOLO (images and labels)"
)


def _splits_of(found: _CocoFile | VocFolder | YoloFolder) -> list[str]:
    return [] if isinstance(found, _CocoFile) else [name for name in found.splits if name]


def _one_of(found: _CocoFile | VocFolder | YoloFolder, split: str, source: Path) -> str:
    splits = _splits_of(found)
    if not splits:
        raise DataError(f"{source}: is not divided into splits; leave out the split '{split}' to read all of it")
    for name in (split, *(_ALSO_VAL if split == "val" else ())):
        if name in splits:
            return name
    # Such as a test split whose folder was not copied along, though data.yaml names it.
    faults = found.faults.get(split, []) if isinstance(found, YoloFolder) else []
    missing = [fault.text for fault in faults if fault.rule == "missing split"]
    raise DataError(": ".join([f"{source}: has no split '{split}'; its splits are {', '.join(splits)}", *missing]))


def _read(found: _CocoFile | VocFolder | YoloFolder, split: str | None) -> LabelSet:
    if isinstance(found, _CocoFile):
        return read_coco(found.path, found.images)
    if isinstance(found, VocFolder):
        return read_voc(found, split)
    return read_yolo(found, split)


def _nothing_usable(labels: LabelSet) -> str:
    if not labels.faults:
        return f"{labels.source}: its {len(labels.images)} images have no label"
    shown = "; ".join(f"{fault.where}: {fault.text}" for fault in labels.faults[:_NUM_SHOWN])
    more = f"; and {len(labels.faults) - _NUM_SHOWN} more" if len(labels.faults) > _NUM_SHOWN else ""
    return f"{labels.source}: no label can be used: {shown}{more}"
