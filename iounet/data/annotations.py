"""COCO-form annotation files, read strictly: what is wrong is said here, not by a crash in training.

pycocotools reads the same files without looking at them; its errors come hours later, as a KeyError or a NaN.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from .errors import DataError

# In an image 16,000 pixels wide, the float32 coordinates at the far end are 1/1024 pixel apart: a box
# narrower than a few of these may have no width left once it is a tensor, and torchvision's detectors refuse
# such a box.
MIN_BOX_SIDE = 0.01

# How many bad annotations an error lists before it says "and N more".
_NUM_LISTED = 5


@dataclass(frozen=True)
class AnnotationFile:
    """A checked annotation file: I images and their M objects, the objects in columns grouped by image.

    Columns, because loading processes share an array by fork; of 860,000 Python objects (COCO) each process
    would soon own a copy, since counting references writes to them.

    Attributes:
        images: ``{"id", "file_name", "width", "height"}`` of each image, in file order.
        categories: ``{"id", "name"}`` of each category, sorted by id.
        bboxes: float64 ``[M, 4]``, ``[x, y, w, h]`` in pixels of the image as stored, as the file gives them:
            with area and at least partly in the image, but they may overhang it.
        labels: int64 ``[M]``, the category's place, from 1, in ``categories``; 0 is the background's.
        areas: float64 ``[M]``, pixels: of the segmentation where the file gives one, otherwise ``w * h``.
        crowd: bool ``[M]``, whether the box stands for a group of objects (``iscrowd``).
        first: int64 ``[I + 1]``: image i has the objects ``first[i]:first[i + 1]``, in file order.
        skipped: what was left out: rule broken -> number of annotations.
        clipped: how many boxes overhang their image.
    """

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    bboxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    first: np.ndarray
    skipped: dict[str, int]
    clipped: int


def read_annotations(path: str | Path, *, bad_annotations: str = "error") -> AnnotationFile:
    """Reads and checks a COCO-form annotation file.

    Args:
        path: JSON with ``images``, ``annotations`` and ``categories``. Ids may have gaps; 0 is allowed.
        bad_annotations: what to do about a ``bbox`` that is not four finite numbers, has no area, or lies
            outside its image: ``"error"``, or ``"skip"`` to leave such annotations out and count them.

    Raises:
        DataError: the file cannot be used; the message names the file, the item and the cure.
    """
    if bad_annotations not in ("error", "skip"):
        raise DataError(f"DATA.BAD_ANNOTATIONS (bad_annotations) is {bad_annotations!r}; make it 'error' or 'skip'")
    try:
        content = _load_json(Path(path))
        images = _read_images(content["images"])
        categories = _read_categories(content["categories"])
        return _read_objects(content["annotations"], images, categories, skip_bad=bad_annotations == "skip")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error.__cause__


def read_image_list(path: str | Path) -> list[dict[str, Any]]:
    """The ``images`` of a COCO-form file, checked, whatever else it holds: test sets come without annotations.

    Raises:
        DataError: as `read_annotations`.
    """
    try:
        return _read_images(_load_json(Path(path), needed=("images",))["images"])
    except DataError as error:
        raise DataError(f"{path}: {error}") from error.__cause__


def _load_json(path: Path, needed: tuple[str, ...] = ("images", "annotations", "categories")) -> dict[str, list]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError("no such annotation file; check the path") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); check the path and its permissions") from error
    except ValueError as error:  # not JSON, or not text at all
        raise DataError(f"is not JSON ({error}); it may be truncated: copy or download it again") from error
    if not isinstance(content, dict):
        raise DataError(f"is not of COCO form: expected a JSON object, found a {type(content).__name__}")
    for key in needed:
        if not isinstance(content.get(key), list):
            raise DataError(f"is not of COCO form: it has no list '{key}'; give the annotation file of a detection set")
    for key in needed:
        if key != "annotations" and not content[key]:
            raise DataError(f"its list '{key}' is empty, so there is nothing to learn; check how the file was made")
    return content


def _field(item: Any, key: str, kind: type, what: str) -> Any:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = {int: "an integer", str: "a string"}[kind]
        raise DataError(f"{what} needs '{key}' to be {expected}, found {value!r}; repair the file")
    return value


def _read_images(items: list) -> list[dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    for position, item in enumerate(items):
        image_id = _field(item, "id", int, f"entry {position} of 'images'")
        name = _field(item, "file_name", str, f"image {image_id}")
        what = f"image {image_id} ({name})"
        width, height = (_field(item, key, int, what) for key in ("width", "height"))
        if width <= 0 or height <= 0:
            raise DataError(f"{what} has width {width} and height {height}; give the size of the image in pixels")
        if image_id in images:
            raise DataError(f"{what} has the id of {images[image_id]['file_name']}; give each image its own")
        if _leaves_folder(name):
            raise DataError(f"{what} lies outside the image folder; make file_name relative to that folder")
        images[image_id] = {"id": image_id, "file_name": name, "width": width, "height": height}
    return list(images.values())


def _leaves_folder(file_name: str) -> bool:
    # Read as a Windows path on every system, because that knows both separators and drives.
    path = PureWindowsPath(file_name)
    return bool(path.anchor) or not path.parts or ".." in path.parts


def _read_categories(items: list) -> list[dict[str, Any]]:
    names: dict[int, str] = {}
    for position, item in enumerate(items):
        category_id = _field(item, "id", int, f"entry {position} of 'categories'")
        name = _field(item, "name", str, f"category {category_id}")
        if category_id in names:
            raise DataError(f"category {category_id} ({name}) has the id of {names[category_id]}; give each its own")
        names[category_id] = name
    return [{"id": category_id, "name": names[category_id]} for category_id in sorted(names)]


def _read_objects(items: list, images: list, categories: list, *, skip_bad: bool) -> AnnotationFile:
    position_of = {image["id"]: position for position, image in enumerate(images)}
    label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
    seen: set[int] = set()
    broken: Counter[str] = Counter()
    listed: list[str] = []
    positions, bboxes, labels, areas, crowd = [], [], [], [], []
    for entry, item in enumerate(items):
        annotation_id = _field(item, "id", int, f"entry {entry} of 'annotations'")
        image_id = _field(item, "image_id", int, f"annotation {annotation_id}")
        what = f"annotation {annotation_id} of image {image_id}"
        if annotation_id in seen:
            raise DataError(f"{what} has the id of an earlier annotation; give each its own")
        seen.add(annotation_id)
        if image_id not in position_of:
            raise DataError(f"{what}: 'images' has no such image; add it, or remove the annotation")
        image = images[position_of[image_id]]
        what += f" ({image['file_name']})"
        category_id = _field(item, "category_id", int, what)
        if category_id not in label_of:
            known = ", ".join(map(str, [*label_of][:10])) + (", ..." if len(label_of) > 10 else "")
            raise DataError(
                f"{what} has category_id {category_id}, unknown to 'categories' ({known}); "
                "add the category, or correct the annotation"
            )
        bbox, area = item.get("bbox"), item.get("area")
        rule = _broken_rule(bbox, image["width"], image["height"])
        if rule is not None:
            broken[rule] += 1
            if len(listed) < _NUM_LISTED:
                size = f"{image['width']} wide, {image['height']} high"
                listed.append(f"  {what}: bbox {rule}: [x, y, w, h] = {bbox}, image {size}")
            continue
        positions.append(position_of[image_id])
        bboxes.append(bbox)
        labels.append(label_of[category_id])
        areas.append(area if _is_number(area) and math.isfinite(area) else bbox[2] * bbox[3])
        crowd.append(bool(item.get("iscrowd", 0)))
    if broken and not skip_bad:
        raise DataError(_bad_annotations_message(broken.total(), len(items), listed))

    image_of = np.array(positions, dtype=np.int64)
    boxes = np.array(bboxes, dtype=np.float64).reshape(-1, 4)
    sizes = np.array([(image["width"], image["height"]) for image in images])[image_of]
    overhanging = (boxes[:, :2] < 0) | (boxes[:, :2] + boxes[:, 2:] > sizes)
    by_image = np.argsort(image_of, kind="stable")
    return AnnotationFile(
        images=images,
        categories=categories,
        bboxes=boxes[by_image],
        labels=np.array(labels, dtype=np.int64)[by_image],
        areas=np.array(areas, dtype=np.float64)[by_image],
        crowd=np.array(crowd, dtype=bool)[by_image],
        first=np.searchsorted(image_of[by_image], np.arange(len(images) + 1)),
        skipped=dict(broken),
        clipped=int(overhanging.any(axis=1).sum()),
    )


def _broken_rule(bbox: Any, width: int, height: int) -> str | None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return "is not four numbers"
    if not all(map(math.isfinite, bbox)):
        return "is not finite"
    x, y, w, h = bbox
    if min(w, h) < MIN_BOX_SIDE:
        return "has no area"
    if min(x + w, width) - max(x, 0) < MIN_BOX_SIDE or min(y + h, height) - max(y, 0) < MIN_BOX_SIDE:
        return "lies outside its image"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bad_annotations_message(count: int, total: int, listed: list[str]) -> str:
    lines = [f"{count} of {total} annotations cannot be used:", *listed]
    if count > len(listed):
        lines.append(f"  and {count - len(listed)} more")
    them = "it" if count == 1 else f"these {count}"
    lines.append(f"Repair the file, or set DATA.BAD_ANNOTATIONS to 'skip' to leave {them} out.")
    return "\n".join(lines)
