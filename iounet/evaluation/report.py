"""An evaluation as files: the table, the results, the correlation plot, the boxes before and after."""

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
    "In percent, with the difference from the first row. AP is the mean over the IoU thresholds 0.50, 0.55 to 0.95, "
    "AP50 to AP90 are those at one threshold, APs, APm and APl those of small, medium and large objects."
)

_DRAWN_ANYWAY = 3
DRAWN_IN_WORDS = (
    f"Boxes with a score below {DRAWN_SCORE} are not drawn; of an image without others, the best {_DRAWN_ANYWAY} are. "
    "A text that would cover another is left out."
)


def write_report(
    evaluation: Evaluation, folder: Path, class_names: list[str], title: str, facts: Mapping[str, str]
) -> dict:
    """Writes table.md, evaluation.json, detections.json, correlation.png, boxes.png, changes.png and report.html.

    Args:
        title, facts: of the page, as :func:`iounet.html_report.write_html` takes them.

    Returns:
        What evaluation.json holds: ``{"table": row → column → percent, "correlation": ..., "calibration": ...}``; None
        where a value is undefined, such as APl without large objects.
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
                "Which score tells the better box",
                pictures=[
                    Picture(
                        folder / "correlation.png",
                        "Candidates before NMS that overlap an object by 0.5 at least.",
                        "True IoU against class score, and against predicted IoU",
                    )
                ],
            ),
            changes_section(
                pictures["changes"], f"Of the detections of a score of at least {DRAWN_SCORE} that show an object."
            ),
            Section(
                "Boxes before and after refinement",
                pictures=[
                    Picture(
                        pictures["boxes"],
                        f"Detections with the predicted IoU before and after. {DRAWN_IN_WORDS}",
                        "Images with their boxes before and after refinement, and the ground truth",
                    )
                ],
            ),
        ],
    )
    return summary


def changes_section(sheet: Image.Image, of_which: str) -> Section:
    """The part of a page that shows the sheet of :func:`iounet.visualization.changes_sheet`.

    Args:
        of_which: which boxes were looked at, as a sentence.
    """
    return Section(
        "Boxes that changed most",
        f"{of_which} Below each box its top left and its bottom right corner, magnified further.",
        pictures=[
            Picture(
                sheet,
                "The boxes whose true IoU refinement raised most, and those whose it lowered most.",
                "Magnified boxes before and after refinement, and the ground truth",
            )
        ],
    )


def without_nan(value: Any) -> Any:
    """The same nested dicts with None for NaN: JSON has none, and Python would write one that other readers refuse."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def draw_examples(examples: list[Example], class_names: list[str]) -> Image.Image:
    """Each image with its boxes before (dashed) and after refinement against ground truth, on one sheet.

    Boxes of a score below DRAWN_SCORE are left out; of an image without others, the best are drawn all the same.
    """
    pictures = []
    for example in examples:
        scores, order = example.before.scores.sort(descending=True, stable=True)  # labels of the best have first choice
        drawn = order[: int((scores >= DRAWN_SCORE).sum()) or _DRAWN_ANYWAY]
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
                paths=torch.stack([before.boxes, after.boxes]),
            )
        )
    return contact_sheet(pictures, columns=2)
