"""From scored boxes to detections: non-maximum suppression and refinement, independent of any network."""

from ..nms_options import NMSOptions
from ..stops import Stop
from .nms import greedy_nms, iou_guided_nms, soft_nms, suppress
from .postprocessing import FINAL_SCORES, Postprocessing, Refine, postprocess, suppress_each
from .refinement import Refined, RefinementOptions, refine_boxes, refinement_path

__all__ = [
    "FINAL_SCORES",
    "NMSOptions",
    "Postprocessing",
    "Refine",
    "Refined",
    "RefinementOptions",
    "Stop",
    "greedy_nms",
    "iou_guided_nms",
    "postprocess",
    "refine_boxes",
    "refinement_path",
    "soft_nms",
    "suppress",
    "suppress_each",
]
