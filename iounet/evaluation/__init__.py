"""How good the boxes are: COCO AP, the paper's table, correlation of scores with IoU, and the files that show them."""

from .coco_ap import AP_COLUMNS, CocoEvaluator, coco_ap, markdown_table
from .correlation import best_iou, correlation_figure, pearson
from .evaluate import Evaluation, Example, evaluate
from .report import draw_examples, write_report

__all__ = [
    "AP_COLUMNS",
    "CocoEvaluator",
    "Evaluation",
    "Example",
    "best_iou",
    "coco_ap",
    "correlation_figure",
    "draw_examples",
    "evaluate",
    "markdown_table",
    "pearson",
    "write_report",
]
