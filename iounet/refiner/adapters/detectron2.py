"""``Instances`` of detectron2.

    instances = predictor(image[..., ::-1])["instances"]  # image: RGB
    better = adapters.detectron2.refine(refiner, image, instances, class_names=metadata.thing_classes)

``metadata`` is ``MetadataCatalog.get(name)`` of the data set on which the detector was trained.
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
    """Refine the boxes of detectron2's ``Instances``.

    Args:
        refiner: the refiner.
        image: RGB image, as `iounet.IoURefiner` describes. detectron2's predictors take BGR.
        instances: detections with ``pred_boxes``, ``scores`` and ``pred_classes``.
        class_names: names of the classes, such as ``thing_classes`` of the data set's metadata.
        nms: as in `iounet.refiner.adapters`.
        class_agnostic: as in `iounet.refiner.adapters`.

    Returns:
        New ``Instances`` with refined ``pred_boxes`` and the predicted IoUs ``pred_ious`` (after refinement) and
            ``pred_ious_before``, which are NaN for boxes of unknown classes.

    Raises:
        DataError: the size of the image differs from ``image_size``, or class names are missing or unknown to the
            refiner.
    """
    pixels = as_tensor(image)
    if tuple(instances.image_size) != tuple(pixels.shape[1:]):
        raise DataError(
            f"the instances belong to an image of {tuple(instances.image_size)} pixels (height, width), but the given "
            f"image has {tuple(pixels.shape[1:])}; pass the image in which they were found"
        )
    names = names_of(instances.pred_classes.tolist(), class_names, refiner, class_agnostic=class_agnostic)
    found = Found(pixels, instances.pred_boxes.tensor, names, instances.scores)
    (outcome,) = refine_by_name(refiner, [found], nms=nms, class_agnostic=class_agnostic)
    # Fields that are lists cannot be indexed by a tensor, so fields are indexed only if NMS was applied.
    fields = (instances if nms is None else instances[outcome.rows]).get_fields()
    changed = {
        "pred_boxes": type(instances.pred_boxes)(outcome.boxes),
        "scores": outcome.scores.to(instances.scores),
        "pred_ious": outcome.ious,
        "pred_ious_before": outcome.ious_before,
    }
    return type(instances)(instances.image_size, **fields | changed)
