"""Outputs of torchvision's detectors: Faster R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet, FCOS, SSD.

    detections = detector(images)
    better = adapters.torchvision.refine(refiner, images, detections, class_names=weights.meta["categories"])

``images`` are the detector's input, RGB in [0, 1], or the same images as PIL images or arrays.
"""

from .dicts import refine

__all__ = ["refine"]
