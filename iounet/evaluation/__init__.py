"""Evaluate boxes: COCO AP, the paper's tables and figures, calibration, comparisons, and reports of them."""

from .basins import measure_basins
from .calibration import Calibration, fit_calibration, measure_calibration
from .coco_ap import AP_COLUMNS, CocoEvaluator, markdown_table
from .comparison import compare, methods
from .comparison_report import comparison_summary
from .correlation import correlation_figure, pearson
from .predictions import Evaluation, Example, predict
from .report import AP_IN_WORDS, DRAWN_IN_WORDS, changes_section, draw_examples, without_nan, write_report
from .reproduction import Reproduction, detect, reproduce
from .reproduction_report import ReproductionReport

__all__ = [
    "AP_COLUMNS",
    "AP_IN_WORDS",
    "Calibration",
    "CocoEvaluator",
    "DRAWN_IN_WORDS",
    "Evaluation",
    "Example",
    "Reproduction",
    "ReproductionReport",
    "changes_section",
    "compare",
    "comparison_summary",
    "correlation_figure",
    "detect",
    "draw_examples",
    "fit_calibration",
    "markdown_table",
    "measure_basins",
    "measure_calibration",
    "methods",
    "pearson",
    "predict",
    "reproduce",
    "without_nan",
    "write_report",
]
