"""What a user should know of a results file before its boxes are refined: what becomes of each class, what is odd."""

from collections.abc import Iterable
from typing import Any

from ..errors import DataError
from ..wording import listed
from .results import DetectionsFile


def check_classes(detections: DetectionsFile, categories: list[dict[str, Any]]) -> None:
    """Raises DataError if the refiner knows none of the classes; ``categories`` are the refiner's."""
    if not detections.results or any(detections.labels.values()):
        return
    by_name = "" if detections.class_names else "match them by name with --annotations, or "
    raise DataError(
        f"{detections.path}: the refiner was trained on none of its classes; {by_name}refine boxes of any class with "
        f"--class-agnostic. Its classes: {listed(_given(detections, id_) for id_ in detections.labels)}. "
        f"The refiner's: {listed(map(_trained, categories))}"
    )


def class_report(detections: DetectionsFile, categories: list[dict[str, Any]], *, class_agnostic: bool) -> str:
    """How many boxes are refined, and as what where that is not plain from the name."""
    labels, names = detections.labels, detections.class_names
    if class_agnostic:
        return f"refined without regard to the class: {_boxes_of(detections, labels)}"
    refined = {id_: categories[label - 1] for id_, label in labels.items() if label}
    unknown = [id_ for id_, label in labels.items() if not label]
    lines = [f"refined, classes matched by {'name' if names else 'id'}: {_boxes_of(detections, refined)}"]
    if names:
        renamed = {id_: category for id_, category in refined.items() if names.get(id_) != category["name"]}
        if renamed:
            pairs = (f"{_given(detections, id_)} as {_trained(category)}" for id_, category in renamed.items())
            lines.append(f"  under another name: {listed(pairs)}")
    elif refined:
        lines.append("  " + listed(f"{id_} as {category['name']}" for id_, category in refined.items()))
    if unknown:
        lines.append(
            f"left as they are, unknown to the refiner: {_boxes_of(detections, unknown)}: "
            f"{listed(_given(detections, id_) for id_ in unknown)}"
        )
    if labels.get(0, labels.get("0")) == 0 and 0 not in names:
        by_name, whose, known = "match them by name with --annotations, or ", "refiner", list(map(_trained, categories))
        if names:
            by_name, whose, known = "", "annotation file", [f"{id_} {name}" for id_, name in names.items()]
        lines.append(
            f"warning: the {whose} has no class 0. If the ids count from 0, each box is refined as an object of the "
            f"wrong class: {by_name}give the {whose}'s ids, {listed(known)}"
        )
    return "\n".join(lines)


def box_report(detections: DetectionsFile) -> str:
    """What is odd about the boxes; "" if nothing is.

    Raises:
        DataError: they are fractions of the image size.
    """
    bboxes = [result["bbox"] for result in detections.results]
    if bboxes and all(min(w, h) > 0 and max(x + w, y + h) <= 1.01 for x, y, w, h in bboxes):
        raise DataError(
            f"{detections.path}: no box reaches beyond the first pixel: these look like fractions of the image size; "
            "multiply x and width by the image's width, y and height by its height, in pixels"
        )
    negative = [row for row, bbox in enumerate(bboxes) if min(bbox[2:]) < 0]
    if not negative:
        return ""
    return (
        f"warning: {len(negative):,} of {len(bboxes):,} boxes have a negative width or height and stay as they are, "
        f"such as entry {negative[0]}, {bboxes[negative[0]]}"
    )


def _boxes_of(detections: DetectionsFile, category_ids: Iterable[Any]) -> str:
    """Such as "1,234 boxes of 5 classes"."""
    ids = set(category_ids)
    number = sum(result["category_id"] in ids for result in detections.results)
    return f"{number:,} box{'es' * (number != 1)} of {len(ids)} class{'es' * (len(ids) != 1)}"


def _given(detections: DetectionsFile, category_id: Any) -> str:
    return f"{category_id} {detections.class_names.get(category_id, '')}".rstrip()


def _trained(category: dict[str, Any]) -> str:
    return f"{category['id']} {category['name']}"
