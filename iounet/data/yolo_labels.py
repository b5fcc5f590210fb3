"""YOLO labels: one text file per image, one line per object.

`supervision.DetectionDataset.from_yolo` is not used because it stops at the first line that it cannot read, keeps no
line numbers, accepts predictions with confidences as labels, and writes files from scratch instead of edited copies.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import DataError
from .annotations import MIN_BOX_SIDE
from .images import IMAGE_SUFFIXES, exif_orientation, open_image
from .label_copies import check_moves, digest, read_unchanged, refuse_overwriting, write_files
from .labels import Box, LabeledBox, LabeledImage, LabelFault, LabelSet, repeated_boxes
from .yolo_folder import YoloFolder, YoloSource, is_image
from .yolo_lines import Frame, YoloLine, parse_line, with_box


@dataclass(frozen=True)
class YoloLabels(LabelSet):
    """YOLO labels.

    Attributes:
        folder: the data set.
        root: the folder that label keys and the names of copies are relative to.
        digests: label file → digest, for all splits of the data set.
        frames: label file → coordinate frame of its boxes.
    """

    folder: YoloFolder
    root: Path
    digests: dict[Path, str]
    frames: dict[Path, Frame]

    def write_copy(self, output: Path, boxes: Mapping[str, Box]) -> list[Path]:
        check_moves(self, boxes)
        companions = _companions(self.folder, self.root)
        sources = {output / name: path for name, (path, _) in companions.items()}
        sources |= {output / path.relative_to(self.root): path for path in self.digests}
        refuse_overwriting(sources, sources.values())
        contents = {output / name: data for name, (_, data) in companions.items()}
        for target, path in sources.items():
            if path in self.digests:
                contents[target] = self._moved(path, read_unchanged(path, self.digests[path]), boxes)
        return write_files(contents)

    def _moved(self, path: Path, data: bytes, boxes: Mapping[str, Box]) -> bytes:
        lines = data.splitlines(keepends=True)
        for index, line in enumerate(lines):
            box = boxes.get(_key(self.root, path, index + 1))
            if box is not None:
                lines[index] = with_box(line, self.frames[path].from_pixels(box))
        return b"".join(lines)


def read_yolo(folder: YoloFolder, split: str | None = None) -> YoloLabels:
    """Read the labels of a split, or of all splits, and collect their faults.

    Args:
        folder: the data set.
        split: one of its splits; None reads all of them.
    """
    everything = {source.image: source for sources in folder.splits.values() for source in sources}
    wanted = everything if split is None else {source.image: source for source in folder.splits[split]}
    root = _common_folder(folder.base, [*(source.label for source in everything.values()), *folder.lists])
    reader = _Reader(folder, root, _common_folder(folder.image_base, everything))
    contents = reader.read_files(source.label for source in everything.values())
    for source in wanted.values():
        reader.read_image(source, contents.get(source.label, b""))
    contents |= reader.read_strays(wanted.values())
    folder_faults = [
        fault for name, faults in folder.faults.items() if split is None or name == split for fault in faults
    ]
    return YoloLabels(
        source=folder.source,
        class_names=_class_names(folder, contents.values()),
        images=reader.images,
        boxes=reader.boxes,
        faults=folder_faults + reader.faults + repeated_boxes(reader.boxes),
        folder=folder,
        root=root,
        digests={path: digest(data) for path, data in contents.items()},
        frames=reader.frames,
    )


def _key(root: Path, path: Path, number: int) -> str:
    return f"{_name(root, path)} line {number}"


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _common_folder(base: Path, paths: Iterable[Path]) -> Path:
    """Return the base, or the common parent folder if some of the paths are outside the base."""
    outside = [path for path in paths if not path.is_relative_to(base)]
    return Path(os.path.commonpath([base, *outside])) if outside else base


class _Reader:
    """Collects images, boxes and faults from label files, image by image."""

    def __init__(self, folder: YoloFolder, root: Path, image_root: Path) -> None:
        self.images: list[LabeledImage] = []
        self.boxes: list[LabeledBox] = []
        self.faults: list[LabelFault] = []
        self.frames: dict[Path, Frame] = {}
        self._folder, self._root, self._image_root = folder, root, image_root
        self._image_of: dict[Path, Path] = {}  # label file → its image

    def read_files(self, paths: Iterable[Path]) -> dict[Path, bytes]:
        """Return the contents of the files that exist; an image without a label file has no objects."""
        contents = {}
        for path in dict.fromkeys(paths):
            try:
                contents[path] = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                text = f"cannot be read ({error.strerror}); check its permissions"
                self.faults.append(LabelFault(_name(self._root, path), "unreadable label file", text))
        return contents

    def read_image(self, source: YoloSource, content: bytes) -> None:
        """Add an image and the labels in the ``content`` of its label file."""
        key = _name(self._image_root, source.image)
        other = self._image_of.setdefault(source.label, source.image)
        if other != source.image and content:
            text = f"shares the label file {_name(self._root, source.label)} with {other.name}; rename one image"
            self.faults.append(LabelFault(key, "shared label file", text))
            return
        try:
            with open_image(source.image) as image:
                frame = Frame(*image.size, exif_orientation(image))
        except DataError as error:
            self.faults.append(LabelFault(key, error.rule, str(error).removeprefix(f"{source.image}: ")))
            return
        self.frames[source.label] = frame
        for number, line in enumerate(content.splitlines(), start=1):
            if line.strip():
                self._read_line(_key(self._root, source.label, number), line, frame)
        self.images.append(LabeledImage(key, source.image, frame.width, frame.height))

    def read_strays(self, sources: Iterable[YoloSource]) -> dict[Path, bytes]:
        """Return the contents of label files that belong to no image, and add a fault for each.

        Args:
            sources: the images whose label folders are searched.
        """
        strays: dict[Path, bytes] = {}
        for labels, images in sorted({(source.label.parent, source.image.parent) for source in sources}):
            names = {path.stem for path in images.iterdir() if is_image(path)}
            others = self.read_files(path for path in sorted(labels.glob("*.txt")) if path.stem not in names)
            # Text files without labels may be lists of images, class names or notes.
            strays |= {path: data for path, data in others.items() if _classes_in(data)}
        for path in strays:
            text = f"no image with this name ({', '.join(IMAGE_SUFFIXES)}); restore the image, or remove the file"
            self.faults.append(LabelFault(_name(self._root, path), "missing image", text))
        return strays

    def _read_line(self, key: str, line: bytes, frame: Frame) -> None:
        try:
            label = parse_line(line)
            class_name = self._class_name(label)
            box = _in_image(label, frame)
        except DataError as error:
            self.faults.append(LabelFault(key, error.rule, str(error)))
            return
        self.boxes.append(LabeledBox(key, len(self.images), class_name, box, movable=not label.is_polygon))

    def _class_name(self, label: YoloLine) -> str:
        names = self._folder.names
        if names is None:
            return str(label.class_index)
        if label.class_index not in names:
            raise DataError(
                f"class {label.class_index} has no name; the named classes are {_ranges(names)}. Correct the line, "
                "or add the name",
                rule="unknown class",
            )
        return names[label.class_index]


def _ranges(names: Mapping[int, str]) -> str:
    return f"0 to {len(names) - 1}" if list(names) == list(range(len(names))) else ", ".join(map(str, names))


def _in_image(label: YoloLine, frame: Frame) -> Box:
    x0, y0, x1, y1 = frame.to_pixels(label.box)
    box = max(x0, 0.0), max(y0, 0.0), min(x1, float(frame.width)), min(y1, float(frame.height))
    if x1 - x0 < MIN_BOX_SIDE or y1 - y0 < MIN_BOX_SIDE:
        raise DataError("box has no area; correct or remove the line", rule="box has no area")
    if box[2] - box[0] < MIN_BOX_SIDE or box[3] - box[1] < MIN_BOX_SIDE:
        raise DataError("box lies outside its image; correct or remove the line", rule="box lies outside its image")
    return box


def _class_names(folder: YoloFolder, contents: Iterable[bytes]) -> list[str]:
    if folder.names is not None:
        return list(dict.fromkeys(folder.names.values()))
    # From the label files of all splits, so that all splits have the same classes.
    return [str(index) for index in sorted(set().union(*map(_classes_in, contents)))]


def _classes_in(content: bytes) -> set[int]:
    """Return the class indices in a label file; empty if the file has no labels."""
    found = set()
    for line in content.splitlines():
        with contextlib.suppress(DataError):
            found.add(parse_line(line).class_index)
    return found


def _companions(folder: YoloFolder, root: Path) -> dict[str, tuple[Path, bytes]]:
    """Return the files to copy besides the label files: data.yaml, classes.txt and lists of images.

    In the copy, all names are relative to data.yaml, which has no ``path``. The copy can therefore be moved, and
    training on it reads the copied labels; an absolute name would point to the original ones.

    Returns:
        Name in the copy → (source, content).
    """
    found = {}
    if (classes := folder.classes_file) is not None:
        found[_name(root, classes)] = classes, classes.read_bytes()
    for path in folder.lists:
        found[_name(root, path)] = path, _list_copy(path, root)
    if folder.content is not None:
        found[folder.source.name] = folder.source, _yaml_copy(folder, root)
    return found


def _list_copy(path: Path, root: Path) -> bytes:
    lines = path.read_bytes().splitlines(keepends=True)
    for index, line in enumerate(lines):
        name = os.fsdecode(line.strip())
        if os.path.isabs(name) and Path(name).is_relative_to(root):
            relative = os.path.relpath(name, path.parent).replace(os.sep, "/")
            lines[index] = line.replace(line.strip(), os.fsencode(f"./{relative}"))
    return b"".join(lines)


def _yaml_copy(folder: YoloFolder, root: Path) -> bytes:
    assert folder.content is not None
    content = {key: value for key, value in folder.content.items() if key != "path"}
    for key in ("train", "val", "validation", "test"):
        if isinstance(content.get(key), list):
            content[key] = [_relative(folder, root, str(entry)) for entry in content[key]]
        elif content.get(key):
            content[key] = _relative(folder, root, str(content[key]))
    if content == folder.content and Path(os.path.abspath(folder.source.parent)) == root:
        return folder.source.read_bytes()
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _relative(folder: YoloFolder, root: Path, entry: str) -> str:
    """Return an entry of data.yaml relative to the copy; unchanged if it names nothing in the data set."""
    image_root = root if folder.image_base == folder.base else folder.image_base
    for name in (entry, entry.removeprefix("../")):
        for base, top in ((folder.base, root), (folder.image_base, image_root)):
            path = Path(os.path.abspath(base / name))
            if os.path.exists(path) and path.is_relative_to(top):
                relative = path.relative_to(top).as_posix()
                return entry if os.path.normpath(entry) == relative else relative
    return entry
