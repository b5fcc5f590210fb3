"""How good the boxes are: COCO AP, the paper's table, correlation of scores with IoU, and the files that show them."""

from .calibration import Calibration, calibrate
from .coco_ap import AP_COLUMNS, CocoEvaluator, markdown_table
from .correlation import correlation_figure, pearson
from .predictions import DRAWN_SCORE, Evaluation, Example, predict
from .report import AP_IN_WORDS, changes_section, draw_examples, without_nan, write_report
from .reproduction import Reproduction, detect, reproduce
from .reproduction_report import ReproductionReport

__all__ = [
    "AP_COLUMNS",
    "AP_IN_WORDS",
    "Calibration",
    "CocoEvaluator",
    "DRAWN_SCORE",
    "Evaluation",
    "Example",
    "Reproduction",
    "ReproductionReport",
    "calibrate",
    "changes_section",
    "correlation_figure",
    "detect",
    "draw_examples",
    "markdown_table",
    "pearson",
    "predict",
    "reproduce",
    "without_nan",
    "write_report",
]
