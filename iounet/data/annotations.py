"""Strict reading of COCO-format annotation files.

pycocotools reads the same files without checking them, so a fault shows up hours later as a KeyError or a NaN.
This module defines all the rules. `read_annotations` raises an error at the first fault;
``python -m iounet.data.check`` lists every fault.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from ..errors import DataError, check_choice
from ..files import read_json
from .bbox import bbox_fault, is_finite_number

# In an image 16,000 pixels wide, float32 coordinates at the far end are 1/1024 pixel apart. A box narrower than a few
# of these steps may round to zero width, which torchvision's detectors refuse.
MIN_BOX_SIDE = 0.01

# Largest width or height of an image in pixels: the range of int32. JSON integers may exceed the range of float.
_LARGEST_SIDE = 2**31 - 1

# Number of bad annotations that an error lists before "and N more".
_NUM_LISTED = 5

# Faults of an image's entry that can be corrected from the image file.
NO_SIZE = frozenset({"no usable width", "no usable height"})

# Rules about the box itself. With bad_annotations="skip", annotations that break them are left out.
_BOX_RULES = frozenset(
    f"box {rule}" for rule in ("is not four numbers", "is not finite", "has no area", "lies outside its image")
)


@dataclass(frozen=True)
class Finding:
    """A fault or a note about one entry of an annotation file.

    Attributes:
        rule: short name of the rule, the same for all entries that break it.
        section: the list that contains the entry: ``"images"``, ``"annotations"`` or ``"categories"``.
        position: index of the entry in that list.
        id: id of the entry; None if it has no usable id.
        text: which entry it is, what is wrong, and how to correct it.
    """

    rule: str
    section: str
    position: int
    id: int | None
    text: str


@dataclass(frozen=True)
class Annotations:
    """A checked annotation file: I images and their M objects, as columns grouped by image.

    Forked loading processes share the memory of these arrays. They could not share COCO's 860,000 annotations as Python
    objects: reference counting writes to each object, which copies its memory page.

    Attributes:
        images: ``{"id", "file_name", "width", "height"}`` of each image, in file order.
        categories: ``{"id", "name"}`` of each category, sorted by id.
        bboxes: float64 ``[M, 4]``, ``[x, y, w, h]`` in pixels of the stored image, unchanged from the file. Each box
            has a positive area and lies at least partly in its image; it may overhang the image.
        labels: int64 ``[M]``, 1 + the category's index in ``categories``; 0 is the background.
        areas: float64 ``[M]``, pixels: the file's ``area`` if it has one, otherwise ``w * h``.
        crowd: bool ``[M]``, whether the box stands for a group of objects (``iscrowd``).
        first: int64 ``[I + 1]``: image i has the objects ``first[i]:first[i + 1]``, in file order.
        skipped: rule → number of annotations left out because they break it.
        clipped: number of boxes that overhang their image.
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


@dataclass(frozen=True)
class Scan:
    """All faults of an annotation file, and its usable entries.

    Attributes:
        faults: faults of images, then of categories, then of annotations; each group in file order.
        usable: the file without faulty entries and without the annotations that refer to them. Annotations whose only
            fault is a duplicate id are included, since nothing refers to an annotation.
        positions: int64 ``[M]``, the index of each object of ``usable`` in the file's ``annotations``.
        overhanging: bool ``[M]``, whether the box overhangs its image.
    """

    faults: list[Finding]
    usable: Annotations
    positions: np.ndarray
    overhanging: np.ndarray


def read_annotations(
    path: str | Path, *, bad_annotations: str = "error", content: dict[str, Any] | None = None
) -> Annotations:
    """Read and check a COCO-format annotation file.

    Args:
        path: JSON with ``images``, ``annotations`` and ``categories``. Ids may have gaps; 0 is allowed.
        bad_annotations: what to do with an annotation whose ``bbox`` is not four finite numbers, has no area, or lies
            outside its image: ``"error"`` to raise an error, ``"skip"`` to leave it out and count it.
        content: the content of the file, as returned by `load_json`, if it has already been read; ``path`` is then
            used in messages only.

    Raises:
        DataError: if the file cannot be used. The message names the file and the entry and says how to correct it.
        OptionError: if ``bad_annotations`` is not one of these values.
    """
    check_choice("bad_annotations", bad_annotations, ("error", "skip"))
    content = load_json(path) if content is None else content
    scan = scan_annotations(content)
    bad_boxes = [fault for fault in scan.faults if fault.rule in _BOX_RULES]
    if len(bad_boxes) < len(scan.faults):
        first = next(fault for fault in scan.faults if fault.rule not in _BOX_RULES)
        count = len(scan.faults)
        more = f" (1 of {count} faults; to list them, run `python -m iounet.data.check {path}`)" if count > 1 else ""
        raise DataError(f"{path}: {first.text}{more}", first.rule)
    if bad_boxes and bad_annotations == "error":
        raise DataError(_bad_annotations_message(path, bad_boxes, len(content["annotations"])))
    return scan.usable


def load_json(path: str | Path, needed: tuple[str, ...] = ("images", "annotations", "categories")) -> dict[str, Any]:
    """Read a COCO-format file and check that it has the ``needed`` lists, but not their entries.

    Raises:
        DataError: if the file cannot be read, is not JSON, or lacks one of these lists, or if ``images`` or
            ``categories`` is needed and empty.
    """
    content = read_json(path, "annotation file")
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DataError(f"{path}: not a COCO-format file: expected a JSON object, found a value of type {kind}")
    for key in needed:
        if not isinstance(content.get(key), list):
            raise DataError(
                f"{path}: not a COCO-format file: it has no list '{key}'; give the annotations of a detection data set"
            )
        if key != "annotations" and not content[key]:
            raise DataError(
                f"{path}: the list '{key}' is empty, so there is nothing to train on; check how the file was made"
            )
    return content


def scan_annotations(content: dict[str, Any]) -> Scan:
    """Check every entry of a file's content, as returned by `load_json`, against every rule.

    Each entry is reported for the first rule that it breaks, except that an annotation with a duplicate id may be
    reported for another rule as well. An annotation is not reported for referring to a faulty image or category.
    """
    faults: list[Finding] = []
    images = _scan_images(content["images"], faults)
    categories = _scan_categories(content["categories"], faults)
    return _scan_objects(content, images, categories, faults)


def id_in(item: Any, key: str = "id") -> int | None:
    """Return the integer value of an entry's key; None if it has none, or if the entry is not a JSON object."""
    value = item.get(key) if isinstance(item, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _field(item: Any, key: str, kind: type, what: str) -> Any:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = {int: "an integer", str: "a string"}[kind]
        raise DataError(
            f"{what}: '{key}' must be {expected}, found {value!r}; correct the file", rule=f"no usable {key}"
        )
    return value


def _fault(error: DataError, section: str, position: int, item: Any) -> Finding:
    return Finding(error.rule, section, position, id_in(item), str(error))


def _scan_images(items: list, faults: list[Finding]) -> dict[int, dict[str, Any]]:
    """Return the usable images by id and append the faults of the others to ``faults``."""
    images: dict[int, dict[str, Any]] = {}
    seen: dict[int, dict[str, Any]] = {}
    for position, item in enumerate(items):
        try:
            image_id = _field(item, "id", int, f"entry {position} of 'images'")
            if image_id in seen:
                raise DataError(
                    f"image id {image_id} of {item.get('file_name')} is already used by "
                    f"{seen[image_id].get('file_name')}; give each image a unique id",
                    rule="duplicate image id",
                )
            seen[image_id] = item
            images[image_id] = _read_image_entry(item, image_id)
        except DataError as error:
            faults.append(_fault(error, "images", position, item))
    return images


def _read_image_entry(item: dict[str, Any], image_id: int) -> dict[str, Any]:
    name = _field(item, "file_name", str, f"image {image_id}")
    what = f"image {image_id} ({name})"
    if _leaves_folder(name):
        raise DataError(
            f"{what}: file_name points outside the image folder; make it relative to that folder",
            rule="leaves the image folder",
        )
    size = {key: _field(item, key, int, what) for key in ("width", "height")}
    for key, pixels in size.items():
        if not 0 < pixels <= _LARGEST_SIDE:
            raise DataError(f"{what}: '{key}' is {pixels}; give the size of the image in pixels", f"no usable {key}")
    return {"id": image_id, "file_name": name, **size}


def _leaves_folder(file_name: str) -> bool:
    # Parsed as a Windows path on every system, because Windows paths have both separators and drives.
    path = PureWindowsPath(file_name)
    return bool(path.anchor) or not path.parts or ".." in path.parts


def _scan_categories(items: list, faults: list[Finding]) -> list[dict[str, Any]]:
    names: dict[int, str] = {}
    seen: dict[int, dict[str, Any]] = {}
    for position, item in enumerate(items):
        try:
            category_id = _field(item, "id", int, f"entry {position} of 'categories'")
            if category_id in seen:
                raise DataError(
                    f"category id {category_id} of {item.get('name')} is already used by "
                    f"{seen[category_id].get('name')}; give each category a unique id",
                    rule="duplicate category id",
                )
            seen[category_id] = item
            names[category_id] = _field(item, "name", str, f"category {category_id}")
        except DataError as error:
            faults.append(_fault(error, "categories", position, item))
    return [{"id": category_id, "name": names[category_id]} for category_id in sorted(names)]


def _scan_objects(
    content: dict[str, list], images: dict[int, dict[str, Any]], categories: list, faults: list[Finding]
) -> Scan:
    index_of = {image_id: index for index, image_id in enumerate(images)}
    label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
    listed = {key: {id_in(item) for item in content[key]} for key in ("images", "categories")}
    known = ", ".join(map(str, [*label_of][:10])) + (", ..." if len(label_of) > 10 else "")
    seen: set[int] = set()
    broken: Counter[str] = Counter()
    positions, image_of, bboxes, labels, areas, crowd = [], [], [], [], [], []
    for position, item in enumerate(content["annotations"]):
        try:
            annotation_id = _field(item, "id", int, f"entry {position} of 'annotations'")
            image_id = _field(item, "image_id", int, f"annotation {annotation_id}")
            what = f"annotation {annotation_id} of image {image_id}"
            if annotation_id in seen:
                text = f"{what}: an earlier annotation has the same id; give each annotation a unique id"
                faults.append(Finding("duplicate annotation id", "annotations", position, annotation_id, text))
            seen.add(annotation_id)
            if image_id not in listed["images"]:
                raise DataError(
                    f"annotation {annotation_id}: image_id {image_id} is not in 'images'; add the image, or remove the "
                    "annotation",
                    rule="unknown image",
                )
            category_id = _field(item, "category_id", int, what)
            if category_id not in listed["categories"]:
                name = images[image_id]["file_name"] if image_id in images else "unusable"
                raise DataError(
                    f"{what} ({name}): category_id {category_id} is not in 'categories' ({known}); "
                    "add the category, or correct the annotation",
                    rule="unknown category",
                )
            if image_id not in images or category_id not in label_of:
                continue
            image, bbox = images[image_id], item.get("bbox")
            rule = _broken_rule(bbox, image["width"], image["height"])
            if rule is not None:
                broken[rule] += 1
                raise DataError(
                    f"{what} ({image['file_name']}): bbox {rule}: [x, y, w, h] = {bbox} in an image "
                    f"{image['width']} wide and {image['height']} high; correct it, or remove the annotation",
                    rule=f"box {rule}",
                )
            if item.get("iscrowd") not in (0, 1, None):
                raise DataError(
                    f"{what}: iscrowd is {item['iscrowd']!r}; write 0, or 1 for a group of objects, "
                    "which training skips",
                    rule="iscrowd is neither 0 nor 1",
                )
        except DataError as error:
            faults.append(_fault(error, "annotations", position, item))
            continue
        area = item.get("area")
        positions.append(position)
        image_of.append(index_of[image_id])
        bboxes.append(bbox)
        labels.append(label_of[category_id])
        areas.append(area if is_finite_number(area) else bbox[2] * bbox[3])
        crowd.append(bool(item.get("iscrowd")))

    image_index = np.array(image_of, dtype=np.int64)
    by_image = np.argsort(image_index, kind="stable")
    image_index = image_index[by_image]
    boxes = np.array(bboxes, dtype=np.float64).reshape(-1, 4)[by_image]
    sizes = np.array([(image["width"], image["height"]) for image in images.values()], dtype=np.float64)
    beyond = (boxes[:, :2] < 0) | (boxes[:, :2] + boxes[:, 2:] > sizes.reshape(-1, 2)[image_index])
    overhanging = np.asarray(beyond.any(axis=1))
    usable = Annotations(
        images=list(images.values()),
        categories=categories,
        bboxes=boxes,
        labels=np.array(labels, dtype=np.int64)[by_image],
        areas=np.array(areas, dtype=np.float64)[by_image],
        crowd=np.array(crowd, dtype=bool)[by_image],
        first=np.searchsorted(image_index, np.arange(len(images) + 1)),
        skipped=dict(broken),
        clipped=int(overhanging.sum()),
    )
    return Scan(faults, usable, np.array(positions, dtype=np.int64)[by_image], overhanging)


def _broken_rule(bbox: Any, width: int, height: int) -> str | None:
    if fault := bbox_fault(bbox):
        return fault
    x, y, w, h = bbox
    if min(w, h) < MIN_BOX_SIDE:
        return "has no area"
    if min(x + w, width) - max(x, 0) < MIN_BOX_SIDE or min(y + h, height) - max(y, 0) < MIN_BOX_SIDE:
        return "lies outside its image"
    return None


def _bad_annotations_message(path: str | Path, bad_boxes: list[Finding], total: int) -> str:
    count = len(bad_boxes)
    them = "it" if count == 1 else "them"
    lines = [
        f"{path}: {count} of {total} annotations cannot be used. To write a repaired copy, run "
        f"`python -m iounet.data.check {path} --fix repaired.json`; to leave {them} out, set DATA.BAD_ANNOTATIONS to "
        "skip (in Python: bad_annotations='skip')."
    ]
    lines += [f"  {fault.text}" for fault in bad_boxes[:_NUM_LISTED]]
    if count > _NUM_LISTED:
        lines.append(f"  and {count - _NUM_LISTED} more; to list them, run `python -m iounet.data.check {path}`")
    return "\n".join(lines)
