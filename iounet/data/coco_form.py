"""Conversion of labels in any format to the content of a COCO-format file."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .annotations import id_in, load_json, scan_annotations
from .coco_labels import CocoLabels
from .labels import LabeledBox, LabeledImage, LabelSet


def as_coco(labels: LabelSet) -> tuple[dict[str, Any], Path]:
    """Convert the usable labels to COCO format.

    The usable entries of a COCO-format file are kept unchanged, with their ids and all keys. For other formats,
    category ids count from 1 in the order of the class names, which is the same for all splits of a data set; crowds
    have ``iscrowd`` 1.

    Returns:
        The content of a COCO-format file, and the folder that ``file_name`` is relative to.

    Raises:
        DataError: if the images lie on several drives, or a COCO-format file cannot be read again.
    """
    if isinstance(labels, CocoLabels):
        return _without_faults(labels), labels.image_folder
    return boxes_as_coco(labels)


def boxes_as_coco(labels: LabelSet) -> tuple[dict[str, Any], Path]:
    """Convert the usable labels in any format to COCO format, using only their images, boxes and class names.

    Returns:
        The same values as `as_coco`.

    Raises:
        DataError: if the images lie on several drives.
    """
    try:
        folder = Path(os.path.commonpath([os.path.abspath(image.path.parent) for image in labels.images]))
    except ValueError as error:
        raise DataError(
            f"{labels.source}: the images have no common parent folder ({error}); copy them to one drive"
        ) from None
    names = [os.path.relpath(image.path, folder).replace(os.sep, "/") for image in labels.images]
    boxes_of: list[list[LabeledBox]] = [[] for _ in labels.images]
    for label in labels.boxes:
        boxes_of[label.image].append(label)
    entries = zip(range(1, len(names) + 1), names, labels.images, boxes_of, strict=True)
    return coco_content(labels.class_names, entries), folder


def coco_content(
    class_names: Sequence[str], entries: Iterable[tuple[int, str, LabeledImage, Sequence[LabeledBox]]]
) -> dict[str, Any]:
    """Build the content of a COCO-format file.

    Args:
        class_names: names of the categories 1, 2, ...
        entries: for each image, its id, its ``file_name``, the image, and its boxes with classes in ``class_names``.
    """
    category_ids = {name: category_id for category_id, name in enumerate(class_names, start=1)}
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": category_id, "name": name} for name, category_id in category_ids.items()],
    }
    for image_id, file_name, image, boxes in entries:
        content["images"].append({"id": image_id, "file_name": file_name, "width": image.width, "height": image.height})
        for label in boxes:
            x0, y0, x1, y1 = label.box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[label.class_name],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(label.crowd),
                }
            )
    return content


def _without_faults(labels: CocoLabels) -> dict[str, Any]:
    content = load_json(labels.source)
    bad_categories = {fault.position for fault in scan_annotations(content).faults if fault.section == "categories"}
    image_keys = {image.key for image in labels.images}
    seen: set[str] = set()

    def is_usable_image(item: Any) -> bool:
        key = str(id_in(item))
        first = key not in seen  # a later image with the same id is faulty
        seen.add(key)
        return first and key in image_keys

    kept = set(labels.positions.values())
    return {
        **content,
        "images": [item for item in content["images"] if is_usable_image(item)],
        "annotations": [item for position, item in enumerate(content["annotations"]) if position in kept],
        "categories": [item for position, item in enumerate(content["categories"]) if position not in bad_categories],
    }
