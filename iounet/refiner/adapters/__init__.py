"""Refine detections in the objects of other libraries: one module a library, each with a function ``refine``.

    from iounet.refiner import adapters

    better = adapters.ultralytics.refine(refiner, results)

Every ``refine``

- returns a new object of the same type and leaves the given one unchanged. Everything else that the object holds
  (masks, keypoints, track ids, metadata) stays with its box. Devices and dtypes stay, too;
- matches classes by name, without regard to case, spaces, "-" and "_". ``class_names`` gives the name of each class
  number: a list, or a dict such as ``model.config.id2label``;
- leaves boxes of classes that the refiner was not trained on as they are. ``class_agnostic=True`` refines all boxes
  without regard to their class;
- with ``nms`` ("greedy", "soft" or "iou_guided") first suppresses boxes that show the same object, as
  :meth:`iounet.IoURefiner.refine` does; the remaining boxes are sorted by falling score. Boxes of unknown classes
  take no part in NMS and are kept.

The adapters import none of these libraries.
"""

from . import detectron2, fiftyone, supervision, torchvision, transformers, ultralytics

__all__ = ["detectron2", "fiftyone", "supervision", "torchvision", "transformers", "ultralytics"]
