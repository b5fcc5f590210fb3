"""Repair of COCO-format annotation files, limited to faults that need no decision by the user.

Harmless entries, such as boxes that overhang their image, stay unchanged; training clips these boxes.
"""

from collections import Counter
from itertools import count
from typing import Any

from ..errors import DataError
from ..wording import counted
from .annotations import NO_SIZE, Finding, id_in, scan_annotations


def repair(
    content: dict[str, Any], faults: list[Finding], image_sizes: dict[int, tuple[int, int]]
) -> tuple[dict[str, Any], list[Finding]]:
    """Return a copy of an annotation file's content without its faults.

    Unusable images are removed with their annotations, wrong widths and heights are corrected, unusable annotations are
    removed, and annotations without a unique id are renumbered. All other entries and their order stay the same.

    Args:
        content: the content of the file, as returned by `load_json`; not modified.
        faults: all faults that the check found in the content and its images.
        image_sizes: (width, height) in pixels of each usable image file, by its index in ``images``.

    Returns:
        The copy and the changes. The ``rule`` of a change says what was done; its ``text`` says to which entry and why.

    Raises:
        DataError: if a fault needs a decision by the user; the message names it.
    """
    changes: list[Finding] = []
    repeated = _repeated_entries("categories", content, faults, changes)
    images, left_out = _repair_images(content, faults, image_sizes, changes)
    if not images:
        raise DataError("no usable image would remain; see the faults above")
    annotations = list(content["annotations"])
    repaired = {
        **content,
        "images": images,
        "annotations": annotations,
        "categories": [item for position, item in enumerate(content["categories"]) if position not in repeated],
    }
    # Annotations are deleted only at the end, so that positions stay valid. The scan is repeated because each entry is
    # reported only for the first rule that it breaks.
    removed = {position for position, item in enumerate(annotations) if id_in(item, "image_id") in left_out}
    while left := [
        fault
        for fault in scan_annotations(repaired).faults
        if fault.section != "annotations" or fault.position not in removed
    ]:
        if left[0].section != "annotations":
            cure = (
                "; or give the image folder, so that the size is read from the image file"
                if left[0].rule in NO_SIZE
                else ""
            )
            raise DataError(left[0].text + cure)
        _repair_annotations(annotations, left, removed, changes)
    repaired["annotations"] = [item for position, item in enumerate(annotations) if position not in removed]
    return repaired, changes


def _repeated_entries(section: str, content: dict[str, Any], faults: list[Finding], changes: list[Finding]) -> set[int]:
    """Return the positions of entries that repeat an earlier entry exactly, as happens in merged files.

    Raises:
        DataError: if two different entries share an id, which makes annotations that refer to it ambiguous.
    """
    first_of = {id_in(item): item for item in reversed(content[section])}
    positions = set()
    for fault in faults:
        if fault.section == section and fault.rule.startswith("duplicate"):
            if content[section][fault.position] != first_of[fault.id]:
                raise DataError(f"{fault.text}, and correct the annotations, which may refer to either")
            positions.add(fault.position)
            changes.append(Finding("repeated entry left out", section, fault.position, fault.id, fault.text))
    return positions


def _repair_images(
    content: dict[str, Any],
    faults: list[Finding],
    image_sizes: dict[int, tuple[int, int]],
    changes: list[Finding],
) -> tuple[list[dict[str, Any]], set[int]]:
    """Return the images to keep, and the ids of the images left out."""
    repeated = _repeated_entries("images", content, faults, changes)
    # The last fault of each image counts: the fault of the image file comes after those of its entry.
    fault_of = {fault.position: fault for fault in faults if fault.section == "images"}
    num_annotations = Counter(id_in(item, "image_id") for item in content["annotations"])
    images: list[dict[str, Any]] = []
    left_out: set[int] = set()
    for position, item in enumerate(content["images"]):
        fault = fault_of.get(position)
        if position in repeated:
            continue
        if fault is None or (fault.rule in NO_SIZE and position not in image_sizes):
            images.append(item)
        elif position in image_sizes:
            width, height = image_sizes[position]
            images.append({**item, "width": width, "height": height})
            affected = counted(num_annotations[fault.id], "annotation")
            text = (
                f"image {fault.id} ({item['file_name']}): from {item.get('width')} x {item.get('height')} to {width} x "
                f"{height}, the size of the file; check that its boxes fit ({affected}, unchanged)"
            )
            changes.append(Finding("width and height corrected", "images", position, fault.id, text))
        else:
            num_lost = 0
            if fault.id is not None:
                num_lost = num_annotations[fault.id]
                left_out.add(fault.id)
            text = f"{fault.text} (left out with its {counted(num_lost, 'annotation')})"
            changes.append(Finding("image left out", "images", position, fault.id, text))
    return images, left_out


def _repair_annotations(
    annotations: list[Any], faults: list[Finding], removed: set[int], changes: list[Finding]
) -> None:
    """Renumber annotations without a unique id in place, and add all other faulty annotations to ``removed``.

    Raises:
        DataError: if an annotation's ``iscrowd`` is ambiguous.
    """
    without_id = []
    for fault in faults:
        if fault.rule == "iscrowd is neither 0 nor 1":
            raise DataError(fault.text)
        if fault.rule in ("duplicate annotation id", "no usable id") and isinstance(annotations[fault.position], dict):
            without_id.append(fault)
        else:
            removed.add(fault.position)
            changes.append(Finding("annotation removed", "annotations", fault.position, fault.id, fault.text))
    new_ids = count(max(id_in(item) or 0 for item in annotations) + 1)
    for fault in without_id:
        if fault.position not in removed:
            new_id = next(new_ids)
            annotations[fault.position] = {**annotations[fault.position], "id": new_id}
            text = f"{fault.text} (now {new_id})"
            changes.append(Finding("annotation renumbered", "annotations", fault.position, fault.id, text))
