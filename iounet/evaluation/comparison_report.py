"""Summarise a comparison: AP and localisation error of each method, calibration and correlation."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from .calibration import calibration_summary, calibrations_of, measure_calibration
from .coco_ap import AP_COLUMNS, CocoEvaluator
from .comparison import DETECTOR, OWN, Comparison
from .correlation import pearson
from .localization import laece
from .predictions import Found, as_results, joined

PLAIN = "plain detector, greedy NMS"


def comparison_summary(
    measured: Comparison, evaluator: CocoEvaluator, category_ids: Sequence[int], baseline: Found | None
) -> dict[str, Any]:
    """Return the content of comparison.json.

    Args:
        measured: Results of `compare`.
        evaluator: Evaluator of the data set.
        category_ids: The category of label l is `category_ids[l - 1]`.
        baseline: Detections of a detector trained without the added heads, for the first row of the table. None leaves
            this row out.

    Returns:
        A dictionary with these keys:

        - "table": row → `AP_COLUMNS`, "Loc50" and "Loc75" (AP lost to TIDE's localisation errors at these thresholds),
          all in percent, and "ms", milliseconds per image in addition to the detector's,
        - "calibration" and "correlation" of the candidates,
        - "laece" of the final scores of this configuration, and with the other kind of final score,
        - "milliseconds" per image of the detector.
    """

    def ap(found: Found) -> dict[str, float]:
        scores = evaluator(as_results(found, category_ids))
        return {column: scores[column] for column in AP_COLUMNS}

    table: dict[str, dict[str, float]] = {}
    if baseline is not None:
        table[PLAIN] = ap(baseline) | dict.fromkeys(("Loc50", "Loc75", "ms"), math.nan)  # its candidates differ
    for row, found in measured.found.items():
        table[row] = ap(found)
        for threshold, mended in measured.mended.items():
            column = f"{100 * threshold:.0f}"
            table[row][f"Loc{column}"] = ap(mended[row])[f"AP{column}"] - table[row][f"AP{column}"]
        table[row]["ms"] = 1e3 * statistics.median(measured.seconds[row])
    ious, scores, predicted = joined(measured.candidates)
    matched = ious >= 0.5
    detections = [of_image for _, of_image in measured.found[OWN]]
    own_scores, own_ious = (
        torch.cat([getattr(of_image, name) for of_image in detections]) for name in ("scores", "ious")
    )
    matched_ious = torch.cat(measured.matched_ious[OWN])
    confident = (own_scores >= 0.5) & (matched_ious > 0)
    shown = measure_calibration(own_ious[confident], matched_ious[confident])

    return {
        "table": table,
        "calibration": calibration_summary(
            calibrations_of(predicted, ious) | {"detections of score ≥ 0.5 that show an object": shown}
        ),
        "laece": {row: _laece(measured, row) for row in measured.found if row.startswith(OWN)},
        "correlation": {
            "class score, all candidates": pearson(ious, scores),
            "predicted IoU, all candidates": pearson(ious, predicted),
            "predicted IoU, candidates of true IoU ≥ 0.5": pearson(ious[matched], predicted[matched]),
        },
        "milliseconds": {DETECTOR: 1e3 * statistics.median(measured.seconds[DETECTOR])},
    }


def _laece(measured: Comparison, row: str) -> float:
    detections = [of_image for _, of_image in measured.found[row]]
    scores, labels = (torch.cat([getattr(of_image, name) for of_image in detections]) for name in ("scores", "labels"))
    return laece(scores, labels, torch.cat(measured.matched_ious[row]))
