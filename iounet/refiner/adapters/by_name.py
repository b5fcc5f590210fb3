"""Shared by the adapters: refine boxes whose classes are given by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...categories import match_names
from ...detections import RefinedDetections
from ...errors import DataError
from ..inputs import AnyImage
from ..refiner import IoURefiner

ClassNames = Sequence[str] | Mapping[int, str]


@dataclass(frozen=True)
class Found:
    """An image and the boxes that a detector found in it.

    Attributes:
        image: RGB image, as `iounet.IoURefiner` describes.
        boxes ([N, 4]): xyxy in pixels of the image.
        names: class name of each box.
        scores ([N]): class scores; None means 1 for all.
    """

    image: AnyImage
    boxes: Tensor | np.ndarray
    names: Sequence[str]
    scores: Tensor | np.ndarray | None


class Outcome(NamedTuple):
    """The M boxes that an adapter returns in its library's object: all given boxes, or the boxes that NMS keeps.

    Attributes:
        boxes (Tensor[M, 4]): xyxy in pixels of the image, on the device of the given boxes, in float64 if they are
            float64, otherwise in float32.
        scores (Tensor[M]): scores, which soft-NMS and IoU-guided NMS change.
        ious (Tensor[M]): predicted IoUs after refinement; NaN for boxes of unknown classes, which are not refined.
        ious_before (Tensor[M]): predicted IoUs before refinement, or NaN.
        rows (Tensor[M]): int64, row of each box among the given boxes.
    """

    boxes: Tensor
    scores: Tensor
    ious: Tensor
    ious_before: Tensor
    rows: Tensor


def names_of(
    classes: Iterable[int], class_names: ClassNames | None, refiner: IoURefiner, *, class_agnostic: bool
) -> list[str]:
    """Return the name of each class number; "" if ``class_names`` has none, or with ``class_agnostic``.

    Raises:
        DataError: ``class_names`` are missing or unknown to the refiner, and ``class_agnostic`` is False.
    """
    classes = list(classes)
    if class_agnostic or not classes:
        return [""] * len(classes)
    if class_names is None:
        raise DataError(
            "the detections have no class names; pass class_names, such as torchvision's weights.meta['categories'], "
            "transformers' model.config.id2label or detectron2's thing_classes, or refine boxes of any class with "
            "class_agnostic=True"
        )
    name_of = dict(class_names) if isinstance(class_names, Mapping) else dict(enumerate(class_names))
    if not any(match_names(name_of.values(), refiner.categories)):
        given = ", ".join(list(name_of.values())[:10]) + (", ..." if len(name_of) > 10 else "")
        known = ", ".join(category["name"] for category in refiner.categories)
        raise DataError(
            f"none of the detector's classes ({given}) is a class of the refiner ({known}); rename them with "
            "class_names, or refine boxes of any class with class_agnostic=True"
        )
    return [name_of.get(int(number), "") for number in classes]


def refine_by_name(
    refiner: IoURefiner, found: Sequence[Found], *, nms: str | None, class_agnostic: bool
) -> list[Outcome]:
    """Refine the boxes of several images; images of equal size are processed as a batch.

    Args:
        refiner: the refiner.
        found: images and boxes.
        nms: as in `iounet.IoURefiner.refine`.
        class_agnostic: refine all boxes regardless of their class; otherwise, boxes of classes that the refiner does
            not know are left unchanged and excluded from NMS.

    Raises:
        TypeError, ValueError: as in `iounet.IoURefiner.refine`.
    """
    columns = [_columns(of_image, refiner, class_agnostic) for of_image in found]
    refined = refiner.refine_batch(
        [of_image.image for of_image in found],
        [boxes[chosen] for boxes, _, _, chosen in columns],
        [labels[chosen] for _, labels, _, chosen in columns],
        [scores[chosen] for _, _, scores, chosen in columns],
        nms=nms,
    )
    return [
        _with_the_others(of_image, boxes, scores, chosen, by_score=nms is not None)
        for of_image, (boxes, _, scores, chosen) in zip(refined, columns, strict=True)
    ]


def _columns(found: Found, refiner: IoURefiner, class_agnostic: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return boxes, labels and scores of an image, and a mask of the boxes to refine."""
    boxes = torch.as_tensor(found.boxes).detach()
    if found.scores is None:
        scores = boxes.new_ones(len(boxes))
    else:
        scores = torch.as_tensor(found.scores, device=boxes.device).detach()
    labels = torch.tensor(match_names(found.names, refiner.categories), dtype=torch.int64, device=boxes.device)
    if class_agnostic:
        return boxes, torch.zeros_like(labels), scores, torch.ones_like(labels, dtype=torch.bool)
    return boxes, labels, scores, labels > 0


def _with_the_others(
    refined: RefinedDetections, boxes: Tensor, scores: Tensor, chosen: Tensor, *, by_score: bool
) -> Outcome:
    """Combine the refined boxes with the boxes that were not chosen, sorted by row or by descending score."""
    moved = Outcome(
        refined.boxes, refined.scores, refined.ious, refined.ious_before, chosen.nonzero()[:, 0][refined.index]
    )
    rows = (~chosen).nonzero()[:, 0]
    nothing = moved.ious.new_full(rows.shape, torch.nan)
    others = Outcome(boxes[rows].to(moved.boxes), scores[rows].to(moved.scores), nothing, nothing, rows)
    together = Outcome(*(torch.cat(columns) for columns in zip(moved, others, strict=True)))
    order = together.scores.argsort(descending=True, stable=True) if by_score else together.rows.argsort()
    return Outcome(*(column[order] for column in together))
