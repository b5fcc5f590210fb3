"""An evaluation as files: the table, the results, the correlation plot, the boxes before and after."""

import json
import math
from pathlib import Path

from PIL import Image

from ..visualization import contact_sheet, draw_refinement
from .coco_ap import markdown_table
from .correlation import correlation_figure
from .evaluate import Evaluation, Example

# Boxes of a lower score clutter a picture without being detections that anybody would use.
DRAWN_SCORE = 0.5


def write_report(evaluation: Evaluation, folder: Path, class_names: list[str]) -> dict:
    """Writes table.md, evaluation.json, detections.json, correlation.png and boxes.png into a folder.

    Returns:
        What evaluation.json holds: ``{"table": row → column → percent, "correlation": ...}``; None where a value is
        undefined, such as APl without large objects.
    """
    folder.mkdir(parents=True, exist_ok=True)
    correlation = correlation_figure(
        evaluation.ious, evaluation.scores, evaluation.predicted_ious, folder / "correlation.png"
    )
    summary = without_nan({"table": evaluation.table, "correlation": correlation})
    (folder / "table.md").write_text(markdown_table(evaluation.table) + "\n")
    (folder / "evaluation.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    (folder / "detections.json").write_text(json.dumps(evaluation.results))
    draw_examples(evaluation.examples, class_names).save(folder / "boxes.png")
    return summary


def without_nan(value):
    """The same nested dicts with None for NaN: JSON has none, and Python would write one that other readers refuse."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def draw_examples(examples: list[Example], class_names: list[str]) -> Image.Image:
    """Each image with its boxes before (dashed) and after refinement against ground truth, on one sheet."""
    pictures = []
    for example in examples:
        drawn = example.before.scores >= DRAWN_SCORE
        before, after = example.before[drawn], example.after[drawn]
        pictures.append(
            draw_refinement(
                example.image,
                before.boxes,
                after.boxes,
                example.ground_truth["boxes"] if example.ground_truth else None,
                labels=after.labels,
                class_names=dict(enumerate(["", *class_names])),  # 0: of a class unknown to the refiner
                before_ious=before.ious,
                after_ious=after.ious,
            )
        )
    return contact_sheet(pictures, columns=3)
