"""Refine detections in the objects of other libraries: one module per library, each with a function ``refine``.

    from iounet.refiner import adapters

    better = adapters.ultralytics.refine(refiner, results)

Every ``refine``:

- returns a new object of the same type and does not change the given object. Masks, keypoints, track ids and metadata
  stay with their boxes; devices and dtypes do not change;
- matches classes by name, ignoring case, spaces, "-" and "_". ``class_names`` maps class numbers to names: a list, or a
  dict such as ``model.config.id2label``;
- does not change boxes of classes that the refiner was not trained on. ``class_agnostic=True`` refines all boxes
  regardless of their class;
- with ``nms`` ("greedy", "soft" or "iou_guided"), suppresses duplicate boxes first, as `iounet.IoURefiner.refine` does,
  and sorts the kept boxes by descending score. Boxes of unknown classes are excluded from NMS and kept.

Importing the adapters does not import these libraries.
"""

from . import detectron2, fiftyone, supervision, torchvision, transformers, ultralytics

__all__ = ["detectron2", "fiftyone", "supervision", "torchvision", "transformers", "ultralytics"]
