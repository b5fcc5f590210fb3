"""Messages about a results file before its boxes are refined: how classes were matched, and which boxes look wrong."""

from collections.abc import Iterable
from typing import Any

from ..errors import DataError
from ..wording import listed
from .results import DetectionsFile


def check_classes(detections: DetectionsFile, categories: list[dict[str, Any]]) -> None:
    """Raise DataError if the refiner, whose classes are ``categories``, knows none of the classes of the file."""
    if not detections.results or any(detections.labels.values()):
        return
    by_name = "" if detections.class_names else "match them by name with --annotations, or "
    raise DataError(
        f"{detections.path}: the refiner knows none of the classes in this file; {by_name}refine boxes of any class "
        f"with --class-agnostic. Classes in the file: {listed(_given(detections, id_) for id_ in detections.labels)}. "
        f"Classes of the refiner: {listed(map(_trained, categories))}"
    )


def class_report(detections: DetectionsFile, categories: list[dict[str, Any]], *, class_agnostic: bool) -> str:
    """Summarise how many boxes are refined, as which classes, and how many are left unchanged."""
    labels, names = detections.labels, detections.class_names
    if class_agnostic:
        return f"refined regardless of class: {_boxes_of(detections, labels)}"
    refined = {id_: categories[label - 1] for id_, label in labels.items() if label}
    unknown = [id_ for id_, label in labels.items() if not label]
    lines = [f"refined, classes matched by {'name' if names else 'id'}: {_boxes_of(detections, refined)}"]
    if names:
        renamed = {id_: category for id_, category in refined.items() if names.get(id_) != category["name"]}
        if renamed:
            pairs = (f"{_given(detections, id_)} as {_trained(category)}" for id_, category in renamed.items())
            lines.append(f"  matched under a different name: {listed(pairs)}")
    elif refined:
        lines.append("  " + listed(f"{id_} as {category['name']}" for id_, category in refined.items()))
    if unknown:
        lines.append(
            f"unchanged, class unknown to the refiner: {_boxes_of(detections, unknown)}: "
            f"{listed(_given(detections, id_) for id_ in unknown)}"
        )
    if labels.get(0, labels.get("0")) == 0 and 0 not in names:
        by_name, whose = "match classes by name with --annotations, or ", "refiner"
        known = list(map(_trained, categories))
        if names:
            by_name, whose, known = "", "annotation file", [f"{id_} {name}" for id_, name in names.items()]
        lines.append(
            f"warning: the {whose} has no class 0. If the ids in this file count from 0, every box is refined as an "
            f"object of the wrong class; {by_name}use the {whose}'s ids: {listed(known)}"
        )
    return "\n".join(lines)


def box_report(detections: DetectionsFile) -> str:
    """Return a warning about boxes with a negative width or height; "" if there are none.

    Raises:
        DataError: the boxes look like fractions of the image size.
    """
    bboxes = [result["bbox"] for result in detections.results]
    if bboxes and all(min(w, h) > 0 and max(x + w, y + h) <= 1.01 for x, y, w, h in bboxes):
        raise DataError(
            f"{detections.path}: all boxes lie within the first pixel and look like fractions of the image size; "
            "multiply x and width by the image's width in pixels, and y and height by its height"
        )
    negative = [row for row, bbox in enumerate(bboxes) if min(bbox[2:]) < 0]
    if not negative:
        return ""
    return (
        f"warning: {len(negative):,} of {len(bboxes):,} boxes have a negative width or height and are left unchanged, "
        f"such as entry {negative[0]}: {bboxes[negative[0]]}"
    )


def _boxes_of(detections: DetectionsFile, category_ids: Iterable[Any]) -> str:
    """Return a phrase such as "1,234 boxes of 5 classes"."""
    ids = set(category_ids)
    number = sum(result["category_id"] in ids for result in detections.results)
    return f"{number:,} box{'es' * (number != 1)} of {len(ids)} class{'es' * (len(ids) != 1)}"


def _given(detections: DetectionsFile, category_id: Any) -> str:
    return f"{category_id} {detections.class_names.get(category_id, '')}".rstrip()


def _trained(category: dict[str, Any]) -> str:
    return f"{category['id']} {category['name']}"
