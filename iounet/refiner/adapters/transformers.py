"""Outputs of ``post_process_object_detection`` of transformers' image processors: DETR, RT-DETR, YOLOS, ...

    detections = processor.post_process_object_detection(outputs, target_sizes=[image.size[::-1] for image in images])
    better = adapters.transformers.refine(refiner, images, detections, class_names=model.config.id2label)

Without ``target_sizes``, boxes are relative to the image and cannot be refined. Outputs of
``post_process_grounded_object_detection`` (Grounding DINO, OWL-ViT) contain class names in ``text_labels``.
"""

from .dicts import refine

__all__ = ["refine"]
