"""Annotation files in COCO form, repaired as far as no decision is needed.

What training copes with is not touched: a box that overhangs its image is clipped when it is read.
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
    """A copy of an annotation file's content without its faults; all else in it, and its order, stays.

    Images that cannot be used are left out with their annotations, wrong widths and heights are corrected,
    annotations that cannot be used are removed, and those without an id of their own numbered anew.

    Args:
        content: of the file, as `load_json` returns it; not changed.
        faults: all that the check found in it and its images.
        image_sizes: (width, height) in pixels of each image file that can be used, by its index in ``images``.

    Returns:
        The copy, and the changes: the ``rule`` of a change says what was done, its ``text`` to what and why.

    Raises:
        DataError: a fault needs a decision that a program cannot take; it is named.
    """
    changes: list[Finding] = []
    repeated = _repeated_entries("categories", content, faults, changes)
    images, left_out = _repair_images(content, faults, image_sizes, changes)
    if not images:
        raise DataError("no image would be left; see the faults for the reasons")
    annotations = list(content["annotations"])
    repaired = {
        **content,
        "images": images,
        "annotations": annotations,
        "categories": [item for position, item in enumerate(content["categories"]) if position not in repeated],
    }
    # Removed annotations keep their positions until the end, so that positions mean the same throughout. Again and
    # again, because an entry is reported for the first rule that it breaks only.
    removed = {position for position, item in enumerate(annotations) if id_in(item, "image_id") in left_out}
    while left := [
        fault
        for fault in scan_annotations(repaired).faults
        if fault.section != "annotations" or fault.position not in removed
    ]:
        if left[0].section != "annotations":
            cure = "; or give the image folder, and it is taken from the file" if left[0].rule in NO_SIZE else ""
            raise DataError(left[0].text + cure)
        _repair_annotations(annotations, left, removed, changes)
    repaired["annotations"] = [item for position, item in enumerate(annotations) if position not in removed]
    return repaired, changes


def _repeated_entries(section: str, content: dict[str, Any], faults: list[Finding], changes: list[Finding]) -> set[int]:
    """The positions of entries that only say again what an earlier one says, as when files were put together.

    Raises:
        DataError: two different entries share an id, so that nobody knows which of them an annotation means.
    """
    first_of = {id_in(item): item for item in reversed(content[section])}
    positions = set()
    for fault in faults:
        if fault.section == section and fault.rule.startswith("duplicate"):
            if content[section][fault.position] != first_of[fault.id]:
                raise DataError(f"{fault.text}, and correct the annotations, which may mean either")
            positions.add(fault.position)
            changes.append(Finding("repeated entry left out", section, fault.position, fault.id, fault.text))
    return positions


def _repair_images(
    content: dict[str, Any],
    faults: list[Finding],
    image_sizes: dict[int, tuple[int, int]],
    changes: list[Finding],
) -> tuple[list[dict[str, Any]], set[int]]:
    """The images that stay, and the ids of those left out."""
    repeated = _repeated_entries("images", content, faults, changes)
    # Of several faults the last one: the file's own, which comes after those of its entry.
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
            text = (
                f"image {fault.id} ({item['file_name']}): from {item.get('width')} x {item.get('height')} to {width} x "
                f"{height} as in the file; its boxes ({num_annotations[fault.id]}) are as they were: see that they fit"
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
    """Renumbers, in place, annotations without an id of their own; all others at fault become ``removed``.

    Raises:
        DataError: it cannot be known whether an annotation is a crowd.
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
