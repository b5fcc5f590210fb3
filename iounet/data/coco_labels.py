"""Labels in COCO format: one JSON file.

`supervision.DetectionDataset.from_coco` is not used because it stops at the first entry that it cannot read, drops ids
and unknown keys, and writes a newly built file instead of a changed copy.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .annotations import load_json, scan_annotations
from .images import check_image_size, image_path, open_image
from .label_copies import check_moves, digest, read_unchanged, refuse_overwriting, write_files
from .labels import Box, LabeledBox, LabeledImage, LabelFault, LabelSet, repeated_boxes

# Number of images to look for when searching for the image folder.
_NUM_LOOKED_FOR = 20


@dataclass(frozen=True)
class CocoLabels(LabelSet):
    """Labels in COCO format.

    Attributes:
        image_folder: the folder that ``file_name`` is relative to.
        positions: key of a label → its index in the file's ``annotations``.
        digest: digest of the file's content.
    """

    image_folder: Path
    positions: dict[str, int]
    digest: str

    def write_copy(self, output: Path, boxes: Mapping[str, Box]) -> list[Path]:
        check_moves(self, boxes)
        refuse_overwriting([output], [self.source])
        data = read_unchanged(self.source, self.digest)
        if boxes:
            content = json.loads(data)
            for key, box in boxes.items():
                _move(content["annotations"][self.positions[key]], box)
            data = json.dumps(content).encode()
        return write_files({output: data})


def _move(annotation: dict[str, Any], box: Box) -> None:
    x0, y0, x1, y1 = (round(value, 2) for value in box)
    width, height = annotation["bbox"][2:]
    bbox = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
    # Keep an area that is not the area of the box, such as the area of the segmentation.
    if annotation.get("area") == width * height and not annotation.get("segmentation"):
        annotation["area"] = round(bbox[2] * bbox[3], 4)
    annotation["bbox"] = bbox


def read_coco(path: Path, image_folder: Path | None = None) -> CocoLabels:
    """Read the labels of a COCO-format file and collect its faults.

    Args:
        path: the file.
        image_folder: the folder that ``file_name`` is relative to; by default, the one returned by `find_images`.

    Raises:
        DataError: if the file is not in COCO format, or if there is no such folder.
    """
    content = load_json(path)
    scan = scan_annotations(content)
    usable, first = scan.usable, scan.usable.first.tolist()
    folder = image_folder or find_images(path, content["images"])
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image folder; check the path")
    faults = [
        LabelFault(f"{fault.section} {_id_or_position(fault.id, fault.position)}", fault.rule, fault.text)
        for fault in scan.faults
    ]
    images: list[LabeledImage] = []
    boxes: list[LabeledBox] = []
    positions: dict[str, int] = {}
    for index, entry in enumerate(usable.images):
        try:
            image = _open(folder, entry, path)
        except DataError as error:
            faults.append(LabelFault(f"images {entry['id']}", error.rule, str(error)))
            continue
        for row in range(first[index], first[index + 1]):
            position = int(scan.positions[row])
            annotation = content["annotations"][position]
            key = f"annotation {annotation['id']}"
            if key in positions:
                continue  # a duplicate id, already among the faults
            positions[key] = position
            x, y, w, h = usable.bboxes[row].tolist()
            boxes.append(
                LabeledBox(
                    key=key,
                    image=len(images),
                    class_name=usable.categories[usable.labels[row] - 1]["name"],
                    box=(max(x, 0.0), max(y, 0.0), min(x + w, float(image.width)), min(y + h, float(image.height))),
                    crowd=bool(usable.crowd[row]),
                    movable=not annotation.get("segmentation"),
                )
            )
        images.append(image)
    return CocoLabels(
        source=path,
        class_names=list(dict.fromkeys(category["name"] for category in usable.categories)),
        images=images,
        boxes=boxes,
        faults=faults + repeated_boxes(boxes),
        image_folder=folder,
        positions=positions,
        digest=digest(path.read_bytes()),
    )


def _id_or_position(identity: int | None, position: int) -> str:
    return f"at index {position}" if identity is None else str(identity)


def _open(folder: Path, entry: dict[str, Any], annotation_file: Path) -> LabeledImage:
    path = image_path(folder, entry["file_name"])
    with open_image(path) as image:
        width, height = image.size
    check_image_size(path, width, height, entry, annotation_file)
    return LabeledImage(str(entry["id"]), path, width, height)


def find_images(path: Path, entries: list[Any]) -> Path:
    """Return the image folder of a COCO-format file: the first usual folder near it that has any of its images.

    Args:
        path: the file.
        entries: the file's ``images``.

    Raises:
        DataError: if none of these folders has any of the images.
    """
    stated = [entry.get("file_name") for entry in entries if isinstance(entry, dict)]
    names = [name for name in stated if isinstance(name, str)]
    near = [path.parent, path.parent / "images", path.parent.parent / "images"]
    # COCO's own annotations/instances_train2017.json belongs to train2017.
    near += [folder / path.stem.removeprefix("instances_") for folder in (path.parent.parent, path.parent)]
    for folder in near:
        if any(os.path.isfile(folder / name) for name in names[:_NUM_LOOKED_FOR]):
            return folder
    sample = names[0] if names else "file_name"
    searched = ", ".join(dict.fromkeys(map(str, near)))
    raise DataError(
        f"{path}: image folder not found: no images such as {sample} in {searched}; "
        "give the folder that file_name is relative to (--images, or DATA.TRAIN_IMAGES and DATA.VAL_IMAGES)"
    )
