"""How good the boxes are: COCO AP, the paper's table, correlation of scores with IoU, and the files that show them."""

from .calibration import Calibration, calibrate
from .coco_ap import AP_COLUMNS, CocoEvaluator, coco_ap, markdown_table
from .correlation import best_iou, correlation_figure, pearson
from .evaluate import Evaluation, Example, evaluate
from .report import draw_examples, write_report
from .reproduction import Reproduction, detect, reproduce
from .reproduction_report import ReproductionReport

__all__ = [
    "AP_COLUMNS",
    "Calibration",
    "CocoEvaluator",
    "Evaluation",
    "Example",
    "Reproduction",
    "ReproductionReport",
    "best_iou",
    "calibrate",
    "coco_ap",
    "correlation_figure",
    "detect",
    "draw_examples",
    "evaluate",
    "markdown_table",
    "pearson",
    "reproduce",
    "write_report",
]
