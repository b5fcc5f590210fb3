"""Dicts with boxes, labels and scores of an image, the form of torchvision's and transformers' detectors."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from ..refiner import IoURefiner
from .by_name import ClassNames, Found, Outcome, names_of, refine_by_name

Detections = TypeVar("Detections", dict[str, Any], list[dict[str, Any]])


def refine(
    refiner: IoURefiner,
    image: Any,
    detections: Detections,
    *,
    class_names: ClassNames | None = None,
    nms: str | None = None,
    class_agnostic: bool = False,
) -> Detections:
    """Refines the boxes of an image, or of each of a list of images; those of one size as a batch.

    Args:
        image: RGB, as :class:`iounet.IoURefiner` takes it; a list of images if ``detections`` is a list.
        detections: ``boxes`` [N, 4], xyxy in pixels of the image, ``labels`` [N] and ``scores`` [N], in tensors.
        class_names: name of each label. None: the detections' own ``text_labels``, if they have them.
        nms, class_agnostic: see :mod:`iounet.refiner.adapters`.

    Returns:
        The same with other ``boxes``, and with the predicted IoUs ``ious`` and, before refinement, ``ious_before``: NaN
        for boxes that are left as they are.

    Raises:
        DataError: there are no class names, or the refiner knows none of them.
        ValueError: another number of images than of detections.
    """
    if isinstance(detections, dict):
        options: Any = {"class_names": class_names, "nms": nms, "class_agnostic": class_agnostic}
        return refine(refiner, [image], [detections], **options)[0]
    is_list = isinstance(image, Sequence) or getattr(image, "ndim", 0) == 4
    if not is_list or len(image) != len(detections):
        raise ValueError(f"detections of {len(detections)} images need a list of these {len(detections)} images")
    found = [
        Found(of_image, given["boxes"], _names(given, class_names, refiner, class_agnostic), given["scores"])
        for of_image, given in zip(image, detections, strict=True)
    ]
    outcomes = refine_by_name(refiner, found, nms=nms, class_agnostic=class_agnostic)
    return [_replaced(given, outcome) for given, outcome in zip(detections, outcomes, strict=True)]


def _names(
    given: dict[str, Any], class_names: ClassNames | None, refiner: IoURefiner, class_agnostic: bool
) -> Sequence[str]:
    if class_names is None and given.get("text_labels") is not None:
        return given["text_labels"]
    return names_of(given["labels"].tolist(), class_names, refiner, class_agnostic=class_agnostic)


def _replaced(given: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    count = len(given["boxes"])
    return {key: _rows(value, outcome.rows, count) for key, value in given.items()} | {
        "boxes": outcome.boxes.to(given["boxes"]),
        "scores": outcome.scores.to(given["scores"]),
        "ious": outcome.ious,
        "ious_before": outcome.ious_before,
    }


def _rows(value: Any, index: torch.Tensor, count: int) -> Any:
    """What belongs to the boxes that are left; what belongs to no box stays."""
    if isinstance(value, torch.Tensor) and value.shape[:1] == (count,):
        return value[index.to(value.device)]
    if isinstance(value, list) and len(value) == count:
        return [value[row] for row in index.tolist()]
    return value
