"""``Instances`` of detectron2.

    instances = predictor(image[..., ::-1])["instances"]  # image: RGB
    better = adapters.detectron2.refine(refiner, image, instances, class_names=metadata.thing_classes)

``metadata`` is ``MetadataCatalog.get(name)`` of the data set that the detector was trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import DataError
from ..inputs import AnyImage, as_tensor
from ..refiner import IoURefiner
from .by_name import ClassNames, Found, names_of, refine_by_name

if TYPE_CHECKING:
    from detectron2.structures import Instances


def refine(
    refiner: IoURefiner,
    image: AnyImage,
    instances: Instances,
    *,
    class_names: ClassNames | None = None,
    nms: str | None = None,
    class_agnostic: bool = False,
) -> Instances:
    """Refines the boxes of detectron2's ``Instances``.

    Args:
        image: RGB, as :class:`iounet.IoURefiner` takes it. (detectron2's predictors take BGR.)
        instances: with ``pred_boxes``, ``scores`` and ``pred_classes``.
        class_names: ``thing_classes`` of the data set's metadata.
        nms, class_agnostic: see :mod:`iounet.refiner.adapters`.

    Returns:
        The same with other ``pred_boxes``, and with the predicted IoUs ``pred_ious`` and, before refinement,
        ``pred_ious_before``: NaN for boxes that are left as they are.

    Raises:
        DataError: the image is of another size than ``image_size``; there are no class names, or the refiner
            knows none of them.
    """
    pixels = as_tensor(image)
    if tuple(instances.image_size) != tuple(pixels.shape[1:]):
        raise DataError(
            f"the instances are of an image of {tuple(instances.image_size)} pixels (height, width), the image has "
            f"{tuple(pixels.shape[1:])}: give the image in which they were found"
        )
    names = names_of(instances.pred_classes.tolist(), class_names, refiner, class_agnostic=class_agnostic)
    found = Found(pixels, instances.pred_boxes.tensor, names, instances.scores)
    (outcome,) = refine_by_name(refiner, [found], nms=nms, class_agnostic=class_agnostic)
    # Without NMS the fields are not indexed, which those that are lists do not allow.
    fields = (instances if nms is None else instances[outcome.rows]).get_fields()
    changed = {
        "pred_boxes": type(instances.pred_boxes)(outcome.boxes),
        "scores": outcome.scores.to(instances.scores),
        "pred_ious": outcome.ious,
        "pred_ious_before": outcome.ious_before,
    }
    return type(instances)(instances.image_size, **fields | changed)
