"""Detections as dicts with boxes, labels and scores: the output of torchvision's and transformers' detectors."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from ...wording import counted
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
    """Refine the boxes of an image or of a list of images; images of equal size are processed as a batch.

    Args:
        refiner: the refiner.
        image: RGB image, as `iounet.IoURefiner` describes; a list of images if ``detections`` is a list.
        detections: dict, or list of dicts, of the tensors ``boxes`` [N, 4], xyxy in pixels of the image, ``labels`` [N]
            and ``scores`` [N].
        class_names: name of each label; None uses the detections' ``text_labels``, if they have any.
        nms: as in `iounet.refiner.adapters`.
        class_agnostic: as in `iounet.refiner.adapters`.

    Returns:
        New dicts with refined ``boxes`` and the predicted IoUs ``ious`` (after refinement) and ``ious_before``, which
            are NaN for boxes of unknown classes.

    Raises:
        DataError: class names are missing or unknown to the refiner.
        ValueError: the numbers of images and detections differ.
    """
    if isinstance(detections, dict):
        options: Any = {"class_names": class_names, "nms": nms, "class_agnostic": class_agnostic}
        return refine(refiner, [image], [detections], **options)[0]
    is_list = isinstance(image, Sequence) or getattr(image, "ndim", 0) == 4
    if not is_list or len(image) != len(detections):
        number = counted(len(detections), "dict")
        raise ValueError(f"detections is a list of {number}; pass a list of images with one image per dict")
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
    """Index values that have one entry per box by the kept boxes; return other values unchanged."""
    if isinstance(value, torch.Tensor) and value.shape[:1] == (count,):
        return value[index.to(value.device)]
    if isinstance(value, list) and len(value) == count:
        return [value[row] for row in index.tolist()]
    return value
