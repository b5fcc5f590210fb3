"""Outputs of torchvision's detectors: Faster R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet, FCOS, SSD.

    detections = detector(images)
    better = adapters.torchvision.refine(refiner, images, detections, class_names=weights.meta["categories"])

The images are those that the detector takes, RGB in [0, 1], or the same as PIL images or arrays.
"""

from .dicts import refine

__all__ = ["refine"]
