"""Write an evaluation: the table, the results, the correlation figure, and pictures of boxes before and after."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..files import write_text
from ..html_report import Picture, Section, write_html
from ..visualization import changes_sheet, contact_sheet, draw_refinement
from .calibration import calibration_summary, calibrations_of
from .coco_ap import markdown_table
from .correlation import correlation_figure
from .predictions import DRAWN_SCORE, Evaluation, Example

AP_IN_WORDS = (
    "In percent, with the difference from the first row. AP is the mean over the IoU thresholds 0.50, 0.55, …, 0.95. "
    "AP50 to AP90 are at a single threshold. APs, APm and APl are for small, medium and large objects."
)

_DRAWN_ANYWAY = 3
DRAWN_IN_WORDS = (
    f"Only boxes with a score of at least {DRAWN_SCORE} are drawn, or the {_DRAWN_ANYWAY} best boxes if an image has "
    "none. A text that would cover another is left out."
)


def write_report(
    evaluation: Evaluation, folder: Path, class_names: list[str], title: str, facts: Mapping[str, str]
) -> dict:
    """Write table.md, evaluation.json, detections.json, correlation.png, boxes.png, changes.png and report.html.

    Args:
        evaluation: The evaluation.
        folder: Where the files go. It is created if needed.
        class_names: Label l is `class_names[l - 1]`.
        title: Title of the page, as in `iounet.html_report.write_html`.
        facts: Facts of the page, as in `iounet.html_report.write_html`.

    Returns:
        The content of evaluation.json: `{"table": row → column → percent, "correlation": ..., "calibration": ...}`.
            Undefined values, such as APl without large objects, are None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    correlation = correlation_figure(
        evaluation.ious, evaluation.scores, evaluation.predicted_ious, folder / "correlation.png"
    )
    calibration = calibration_summary(calibrations_of(evaluation.predicted_ious, evaluation.ious))
    summary = without_nan({"table": evaluation.table, "correlation": correlation, "calibration": calibration})
    write_text(folder / "table.md", markdown_table(evaluation.table) + "\n")
    write_text(folder / "evaluation.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    write_text(folder / "detections.json", json.dumps(evaluation.results))
    pictures = {
        "boxes": draw_examples(evaluation.examples, class_names),
        "changes": changes_sheet(evaluation.changes),
    }
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    write_html(
        folder / "report.html",
        title,
        facts=facts,
        sections=[
            Section("Average precision", AP_IN_WORDS, table=evaluation.table),
            Section(
                "How well each score predicts the IoU",
                pictures=[
                    Picture(
                        folder / "correlation.png",
                        "Candidates before NMS whose IoU with an object is at least 0.5.",
                        "Class score and predicted IoU against the true IoU",
                    )
                ],
            ),
            changes_section(
                pictures["changes"],
                f"Chosen from the detections with a score of at least {DRAWN_SCORE} and an IoU of at least 0.5 before "
                "refinement.",
            ),
            Section(
                "Boxes before and after refinement",
                pictures=[
                    Picture(
                        pictures["boxes"],
                        f"Detections with their predicted IoU before → after. {DRAWN_IN_WORDS}",
                        "Images with their boxes before and after refinement, and the ground truth",
                    )
                ],
            ),
        ],
    )
    return summary


def changes_section(sheet: Image.Image, of_which: str) -> Section:
    """Make the section of a page that shows a sheet of `iounet.visualization.changes_sheet`.

    Args:
        sheet: The sheet.
        of_which: A sentence that says from which detections the boxes were chosen.
    """
    return Section(
        "Boxes that changed most",
        f"{of_which} The two pictures below each box magnify its top left and bottom right corners.",
        pictures=[
            Picture(
                sheet,
                "The boxes whose true IoU rose most, and those whose true IoU fell most.",
                "Magnified boxes before and after refinement, and the ground truth",
            )
        ],
    )


def without_nan(value: Any) -> Any:
    """Replace NaN with None in nested dictionaries. JSON has no NaN, and most parsers reject Python's `NaN`."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def draw_examples(examples: list[Example], class_names: list[str]) -> Image.Image:
    """Draw images with their boxes before (dashed) and after refinement and the ground truth, on one sheet.

    Draws the boxes with a score of at least `DRAWN_SCORE`, or the best few boxes if an image has none.
    """
    pictures = []
    for example in examples:
        scores, order = example.before.scores.sort(descending=True, stable=True)  # texts of the best boxes come first
        drawn = order[: int((scores >= DRAWN_SCORE).sum()) or _DRAWN_ANYWAY]
        before, after = example.before[drawn], example.after[drawn]
        pictures.append(
            draw_refinement(
                example.image,
                before.boxes,
                after.boxes,
                example.ground_truth["boxes"] if example.ground_truth else None,
                labels=after.labels,
                class_names=dict(enumerate(["", *class_names])),  # 0: class unknown to the refiner
                before_ious=before.ious,
                after_ious=after.ious,
                paths=torch.stack([before.boxes, after.boxes]),
            )
        )
    return contact_sheet(pictures, columns=2)
