"""The folder layouts of Pascal VOC data sets.

| layout | files |
| --- | --- |
| VOC devkit | ``ROOT/ImageSets/Main/<split>.txt``, ``ROOT/Annotations/*.xml`` and ``ROOT/JPEGImages`` |
| no splits | ``ROOT/Annotations/*.xml`` and ``ROOT/JPEGImages``; or ``annotations`` and ``images`` |
| flat | ``ROOT/*.xml``, each beside its image, as labelImg writes them |
| flat splits | ``ROOT/<split>/*.xml``, each beside its image |
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .images import IMAGE_SUFFIXES

# A line of a file such as "aeroplane_train.txt": an image, and whether it contains the class.
_PER_CLASS_LINE = re.compile(r"\S\s+(-1|0|1)$")


@dataclass(frozen=True, order=True)
class VocSource:
    """An image and its annotation file.

    Attributes:
        label: path of the annotation file relative to the folder of the data set.
        images: the image files with the same name as the annotation file; several if their suffixes differ.
    """

    label: str
    images: tuple[Path, ...]


@dataclass(frozen=True)
class VocFolder:
    """A Pascal VOC data set.

    Attributes:
        root: the folder of the data set.
        image_root: the folder that the images' keys are relative to: ``root``, unless the images are elsewhere.
        splits: name → images in the order of the files; a data set without splits has one with an empty name.
        companions: further files that a copy of the data set needs, relative to ``root``.
    """

    root: Path
    image_root: Path
    splits: dict[str, list[VocSource]]
    companions: list[str]


def find_voc(root: Path, image_root: Path | None = None) -> VocFolder | None:
    """Find the data set in a folder; return None if no layout matches.

    Images without an annotation file are not part of the data set.

    Args:
        root: the folder.
        image_root: a folder of the same layout that contains the images, or JPEGImages itself; by default, ``root``.

    Raises:
        DataError: if a part of the folder is missing.
    """
    image_root = image_root or root
    if (root / "ImageSets").is_dir():
        return _devkit(root, image_root)
    for labels, images in (("Annotations", "JPEGImages"), ("annotations", "images")):
        if (root / labels).is_dir() and _label_files(root / labels):
            sources = _pair(root, labels, _image_folder(root, image_root, images))
            return VocFolder(root, image_root, {"": sources}, [])
    if _label_files(root):
        return VocFolder(root, image_root, {"": _pair(root, "", image_root)}, [])
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and _label_files(path))
    if not folders:
        return None
    splits = {folder: _pair(root, folder, image_root / folder) for folder in folders}
    return VocFolder(root, image_root, splits, [])


def _devkit(root: Path, image_root: Path) -> VocFolder:
    lists = root / "ImageSets" / "Main"
    images = _images_by_name(_image_folder(root, image_root, "JPEGImages"))
    splits = {}
    for file in sorted(lists.glob("*.txt")):
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise DataError(f"{file}: not UTF-8 text; save the file as UTF-8 with one image name per line") from None
        if not lines or all(_PER_CLASS_LINE.search(line) for line in lines):
            continue
        splits[file.stem] = [
            VocSource(f"Annotations/{name}.xml", tuple(images.get(name, ()))) for name in dict.fromkeys(lines)
        ]
    if not splits:
        raise DataError(
            f"{lists}: no split file (such as train.txt, with one image name per line); "
            "give the folder that contains ImageSets, Annotations and JPEGImages"
        )
    companions = [f"ImageSets/Main/{path.name}" for path in sorted(lists.glob("*.txt"))]
    companions += [f"Annotations/{path.name}" for path in _label_files(root / "Annotations")]
    listed = {source.label for sources in splits.values() for source in sources}
    return VocFolder(root, image_root, splits, [path for path in companions if path not in listed])


def _image_folder(root: Path, image_root: Path, name: str) -> Path:
    """Return the image folder; ``image_root`` may be that folder or its parent."""
    return image_root if image_root != root and not (image_root / name).is_dir() else image_root / name


def _pair(root: Path, labels: str, image_folder: Path) -> list[VocSource]:
    images = _images_by_name(image_folder)
    return [
        VocSource(path.relative_to(root).as_posix(), tuple(images.get(path.stem, ())))
        for path in _label_files(root / labels)
    ]


def _label_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [folder / name for name in sorted(os.listdir(folder)) if name.lower().endswith(".xml")]


def _images_by_name(folder: Path) -> dict[str, list[Path]]:
    """Return name without suffix → paths for the images in a folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the images of the VOC data set there")
    images: dict[str, list[Path]] = {}
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(path.stem, []).append(path)
    return images
