"""From scored boxes to detections: non-maximum suppression and refinement. Knows no network."""

from .nms import greedy_nms, iou_guided_nms, soft_nms
from .refinement import Refined, Stop, refine_boxes, refinement_path

__all__ = ["Refined", "Stop", "greedy_nms", "iou_guided_nms", "refine_boxes", "refinement_path", "soft_nms"]
