"""The folder layouts of YOLO data sets.

With a data.yaml in Ultralytics' format: ``path`` is the folder of the data set; ``train``, ``val`` and ``test`` are
folders of images or text files that list images, one or several each; ``names`` has the class names, or ``nc`` their
number.

Without a data.yaml:

- ``ROOT/images`` and ``ROOT/labels``, with or without a subfolder for each split;
- ``ROOT/<split>/images`` and ``ROOT/<split>/labels``;
- labels beside their images, in ``ROOT`` or in ``ROOT/<split>``.

``ROOT/classes.txt`` then names the classes, one per line; without it, their numbers serve as names.

The label file of ``.../images/x.jpg`` is ``.../labels/x.txt``; if no parent folder of an image is named ``images``, its
label file is beside it.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from .images import IMAGE_SUFFIXES
from .labels import LabelFault

_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}  # key of data.yaml → name of the split


# Upper limit of ``nc``, since each class gets a name in memory. No data set has so many classes.
_MOST_CLASSES = 100_000


@dataclass(frozen=True, order=True)
class YoloSource:
    """An image and its label file. An image whose label file does not exist has no objects."""

    label: Path
    image: Path


@dataclass
class YoloFolder:
    """A YOLO data set.

    Attributes:
        source: the data.yaml or folder given by the caller.
        base: the folder that the entries of data.yaml are relative to.
        image_base: the folder that contains the images; usually the same as ``base``.
        names: index → class name; None if the classes are named by their numbers.
        splits: name → images; a data set without splits has one with an empty name.
        content: the content of data.yaml; None without one.
        lists: text files that list images.
        faults: split → faults of its entries in data.yaml and in ``lists``, such as missing images.
    """

    source: Path
    base: Path
    image_base: Path
    names: dict[int, str] | None = None
    splits: dict[str, list[YoloSource]] = field(default_factory=dict)
    content: dict[str, Any] | None = None
    lists: list[Path] = field(default_factory=list)
    faults: dict[str, list[LabelFault]] = field(default_factory=dict)

    @property
    def classes_file(self) -> Path | None:
        """The classes.txt of the data set; None if there is none."""
        return next((path for path in _classes_files(self.base) if path.is_file()), None)


def _classes_files(base: Path) -> tuple[Path, ...]:
    return base / "classes.txt", base / "labels" / "classes.txt"


def find_yolo(source: Path, images: Path | None = None) -> YoloFolder | None:
    """Find the data set of a data.yaml or of a folder; return None if the folder has no YOLO labels.

    Args:
        source: a .yaml file or a folder.
        images: a folder of the same layout that contains the images; by default, ``source``.

    Raises:
        DataError: if data.yaml cannot be used.
    """
    if source.is_file():
        return _from_yaml(source, images)
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (source / name).is_file():
            return _from_yaml(source / name, images)
    base = Path(os.path.abspath(source))
    folder = YoloFolder(source, base, Path(os.path.abspath(images)) if images else base)
    folder.names = _named_classes(folder)
    for split, image_folder in _image_folders(folder).items():
        folder.splits[split] = _pair(folder, _images_under(image_folder))
    return folder if any(folder.splits.values()) else None


def _image_folders(folder: YoloFolder) -> dict[str, Path]:
    base, image_base = folder.base, folder.image_base
    if (base / "labels").is_dir():
        splits = _folders_in(image_base / "images")
        loose = any(is_image(path) for path in _listed(image_base / "images"))
        if splits and not loose:
            return {path.name: path for path in splits}
        return {"": image_base / "images"}
    splits = [path for path in _folders_in(base) if (path / "labels").is_dir()]
    if splits:
        return {path.name: image_base / path.name / "images" for path in splits}
    if _is_flat(base, image_base):
        return {"": image_base}
    names = [path.name for path in _folders_in(base)]
    return {name: image_base / name for name in names if _is_flat(base / name, image_base / name)}


def _is_flat(labels: Path, images: Path) -> bool:
    names = {path.stem for path in _listed(labels) if path.suffix == ".txt"}
    return any(is_image(path) and path.stem in names for path in _listed(images))


def _named_classes(folder: YoloFolder) -> dict[int, str] | None:
    file = folder.classes_file
    if file is None:
        return None
    lines = _text_of(file).splitlines()
    return {index: line.strip() for index, line in enumerate(lines) if line.strip()}


def _from_yaml(path: Path, images: Path | None) -> YoloFolder:
    try:
        content = yaml.safe_load(_text_of(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-13-01
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not valid YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(content, dict) or not any(content.get(key) for key in _SPLITS):
        raise DataError(f"{path}: has no train, val or test; give the data.yaml of a YOLO data set")
    if "kpt_shape" in content:
        raise DataError(f"{path}: has kpt_shape; pose labels are not supported, give a data set of boxes or polygons")
    base = _base(path, content)
    folder = YoloFolder(path, base, Path(os.path.abspath(images)) if images else base, content=content)
    folder.names = _names(path, content)
    for key, split in _SPLITS.items():
        entries = content.get(key) or []
        faults = folder.faults.setdefault(split, [])
        for entry in entries if isinstance(entries, list) else [entries]:
            try:
                found = _images_of(folder, str(entry), faults)
            except DataError as error:
                faults.append(LabelFault(f"{path.name} {key}", error.rule, str(error)))
            else:
                folder.splits.setdefault(split, []).extend(_pair(folder, found))
    return folder


def _base(path: Path, content: dict[str, Any]) -> Path:
    """Return the folder that entries of data.yaml are relative to: ``path``, relative to the file or to the cwd."""
    stated = content.get("path")
    beside = Path(os.path.abspath(path.parent))
    candidates = [beside / str(stated), Path(os.path.abspath(str(stated)))] if stated else [beside]
    # os.path here and below returns False for invalid names, for which Path.is_dir raises an error. The fallback is the
    # folder of data.yaml: a `path` from another machine does not exist here, but the data may be next to the file.
    return Path(os.path.abspath(next((folder for folder in candidates if os.path.isdir(folder)), beside)))


def _names(path: Path, content: dict[str, Any]) -> dict[int, str] | None:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, list):
        return {index: str(name) for index, name in enumerate(names)}
    if isinstance(names, dict) and all(isinstance(index, int) for index in names):
        return {index: str(names[index]) for index in sorted(names)}
    if names is not None:
        raise DataError(f"{path}: names must be a list or a mapping of index to name; found {str(names)[:60]!r}")
    if count is not None and not (isinstance(count, int) and 0 < count <= _MOST_CLASSES):
        raise DataError(f"{path}: nc must be the number of classes, 1 to {_MOST_CLASSES:,}; found {str(count)[:60]!r}")
    return None if count is None else {index: str(index) for index in range(count)}


def _images_of(folder: YoloFolder, entry: str, faults: list[LabelFault]) -> list[Path]:
    """Return the images of a data.yaml entry, which names a folder or a list; append its faults to ``faults``.

    Raises:
        DataError: if there is no such folder or file.
    """
    # Roboflow writes ../train/images for a folder beside its data.yaml, and Ultralytics accepts this.
    for name in (entry, entry.removeprefix("../")):
        if os.path.isdir(folder.image_base / name):
            return _images_under(Path(os.path.abspath(folder.image_base / name)))
        if os.path.isfile(folder.base / name):
            return _read_list(folder, Path(os.path.abspath(folder.base / name)), faults)
    raise DataError(
        f"{folder.image_base / entry}: no such image folder or list of images; correct the entry",
        rule="missing split",
    )


def _read_list(folder: YoloFolder, path: Path, faults: list[LabelFault]) -> list[Path]:
    folder.lists.append(path)
    images = []
    for number, line in enumerate(_text_of(path).splitlines(), start=1):
        if not (name := line.strip()):
            continue
        # Ultralytics resolves ./ relative to the list and other paths relative to the cwd; lists are written for both.
        beside = folder.image_base / os.path.relpath(path.parent, folder.base)
        candidates = [beside / name, folder.image_base / name, Path(name)]
        found = next((Path(os.path.abspath(candidate)) for candidate in candidates if os.path.isfile(candidate)), None)
        if found is None:
            text = f"{candidates[0]}: no such image; restore it, or remove the line"
            faults.append(LabelFault(f"{path.name} line {number}", "missing image", text))
        else:
            images.append(found)
    return images


def _pair(folder: YoloFolder, images: list[Path]) -> list[YoloSource]:
    return [YoloSource(_label_of(folder, image), image) for image in images]


def _label_of(folder: YoloFolder, image: Path) -> Path:
    if image.is_relative_to(folder.image_base):
        image = folder.base / image.relative_to(folder.image_base)
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    if "images" not in parts[:-1]:
        return beside
    last = len(parts) - 2 - parts[:-1][::-1].index("images")
    counterpart = Path(*parts[:last], "labels", *parts[last + 1 :])
    # A flat data set may lie in a folder named "images".
    return beside if beside.is_file() and not counterpart.is_file() else counterpart


def _images_under(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        found += [Path(parent, name) for name in sorted(files) if is_image(Path(name))]
    return found


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if path.is_dir()]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save the file as UTF-8") from None
