"""Refine the boxes of any detector: images in memory with `IoURefiner`, image and result files with `RefinementRun`."""

from ..detections import RefinedDetections
from .refiner import IoURefiner
from .run import RefinementRun

__all__ = ["IoURefiner", "RefinedDetections", "RefinementRun"]
