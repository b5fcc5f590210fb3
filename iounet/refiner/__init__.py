"""Other people's boxes: scored and moved one image at a time (`IoURefiner`), or file by file (`RefinementRun`)."""

from ..detections import RefinedDetections
from .refiner import IoURefiner
from .run import RefinementRun

__all__ = ["IoURefiner", "RefinedDetections", "RefinementRun"]
