"""IoU-Net (Jiang et al., ECCV 2018): boxes ranked by how well they fit, and moved to where they fit better."""

from .build import build_detector
from .config import get_cfg
from .detections import Detections
from .refiner import IoURefiner

__all__ = ["Detections", "IoURefiner", "build_detector", "get_cfg"]
