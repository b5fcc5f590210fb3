"""Outputs of torchvision's detectors: Faster R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet, FCOS, SSD.

detections = detector(images)
better = torchvision.refine(refiner, images, detections, class_names=weights.meta["categories"])
"""

from .dicts import refine

__all__ = ["refine"]
