"""Print refined boxes: one table per image for readers, or one line of JSON per image for programs."""

import json
from collections.abc import Callable
from typing import Any

from ..errors import DataError
from ..evaluation.predictions import DRAWN_SCORE
from .read_ahead import read_ahead
from .sources import RefinedImage, Source, times_iou


def print_refined(
    source: Source,
    *,
    batch_size: int = 1,
    rescore: bool = False,
    as_json: bool = False,
    exif: bool = False,
    on_fault: Callable[[Any, DataError], None] | None = None,
) -> None:
    """Refine the boxes of all images and print the boxes of each image as soon as they are refined.

    Args:
        source: the images and boxes.
        batch_size: number of images in a batch.
        rescore: multiply each score by the predicted IoU.
        as_json: print the output of `image_line` instead of `image_table`.
        exif: as in `read_ahead`.
        on_fault: as in `read_ahead`.

    Raises:
        DataError: an image cannot be read, and ``on_fault`` is None.
    """
    show = image_line if as_json else image_table
    for image_ids, images in read_ahead(source.paths, batch_size, exif=exif, on_fault=on_fault):
        for refined in source.refine(image_ids, images):
            boxes = _rows(refined, source.class_names, rescore=rescore)
            print(show(str(source.paths[refined.image_id]), refined, boxes), flush=True)


def _rows(refined: RefinedImage, class_names: dict[Any, str], *, rescore: bool) -> list[dict[str, Any]]:
    """Return the boxes of an image, xyxy in pixels of the image, sorted by descending score."""
    after = refined.after
    columns = (
        *(refined.category_ids, after.scores.tolist(), refined.before.ious.tolist(), after.ious.tolist()),
        *(refined.before.boxes.tolist(), after.boxes.tolist()),
    )
    rows = [
        {
            "category_id": category_id,
            "class": class_names.get(category_id, str(category_id)),
            "score": times_iou(score, iou) if rescore else score,
            "predicted_iou_before": iou_before,
            "predicted_iou": iou,
            "box_before": before,
            "box": box,
        }
        for category_id, score, iou_before, iou, before, box in zip(*columns, strict=True)
    ]
    return sorted(rows, key=lambda row: row["score"], reverse=True)


def image_line(name: str, refined: RefinedImage, boxes: list[dict[str, Any]]) -> str:
    """Format an image as one line of JSON: image, image_id, width, height, and boxes as dicts."""
    height, width = refined.image.shape[1:]
    return json.dumps(
        {"image": name, "image_id": refined.image_id, "width": width, "height": height, "boxes": boxes},
    )


def image_table(name: str, refined: RefinedImage, boxes: list[dict[str, Any]]) -> str:
    """Format a table of the boxes with a score of at least DRAWN_SCORE, and the number of other boxes."""
    height, width = refined.image.shape[1:]
    shown = [box for box in boxes if box["score"] >= DRAWN_SCORE]
    hidden = len(boxes) - len(shown)
    lines = [f"{name} ({width} x {height} pixels)"]
    if shown:
        column = max(5, *(len(box["class"]) for box in shown))
        lines.append(f"  {'class':{column}}  score  predicted IoU       x1      y1      x2      y2")
        for box in shown:
            ious = f"{box['predicted_iou_before']:.2f} -> {box['predicted_iou']:.2f}"  # ASCII for any console
            corners = "".join(f"{value:8.1f}" for value in box["box"])
            lines.append(f"  {box['class']:{column}}  {box['score']:5.2f}  {ious:>13} {corners}")
    if hidden:
        lines.append(f"  not shown: {hidden} with a score below {DRAWN_SCORE} (--json prints all)")
    if not boxes:
        lines.append("  no boxes")
    return "\n".join(lines) + "\n"
