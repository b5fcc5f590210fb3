"""Images and boxes as callers give them, checked and as NumPy arrays: for refiners without torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from . import checks
from .stops import Stop

AnyValues = np.ndarray | Sequence[Any]


@dataclass(frozen=True, eq=False)
class RefinedArrays:
    """Boxes of one image after refinement: :class:`iounet.detections.RefinedDetections`, as NumPy arrays.

    Attributes:
        boxes: float [N, 4], xyxy in pixels of the image.
        labels: int64 [N]; label l is the l-th of the refiner's categories, 0 any other class.
        scores: float [N], class scores.
        ious: float [N], predicted IoUs of ``boxes``.
        ious_before: float [N], predicted IoUs before refinement.
        stops: int64 [N], the :class:`iounet.stops.Stop` of each box: what ended its refinement.
        index: int64 [N], the row of each among the boxes given; 0, 1, ..., N - 1 without NMS.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    ious: np.ndarray
    ious_before: np.ndarray
    stops: np.ndarray
    index: np.ndarray

    def __post_init__(self) -> None:
        checks.check_shapes(**{field.name: getattr(self, field.name).shape for field in fields(self)})

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: np.ndarray | slice) -> RefinedArrays:
        """The boxes that ``index`` (a mask, positions, or a slice) picks, in its order."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True, eq=False)
class Given:
    """An image and the boxes that a caller wants refined.

    Attributes:
        image: float32 [3, H, W], RGB in [0, 1].
        detections: the boxes as they were given, before anything was predicted for them.
        visible: those that have an area inside the image, clipped to it.
    """

    image: np.ndarray
    detections: RefinedArrays
    visible: RefinedArrays


def check_input(
    image: Any,
    boxes: AnyValues,
    labels: AnyValues | None,
    scores: AnyValues | None,
    categories: list[dict[str, Any]],
) -> Given:
    """An image and its boxes, as an OnnxRefiner takes them; warns of boxes that look like another form.

    Raises:
        TypeError, ValueError: they are of another kind or shape, not finite, or labels are out of range or unknown.
    """
    pixels = as_array(image)
    detections = _as_detections(boxes, labels, scores, categories)
    height, width = pixels.shape[1:]
    if len(detections):
        shortest_side = float(_sizes(detections.boxes).min())
        checks.warn_of_other_forms(shortest_side, float(detections.boxes.max()), (height, width))
    clipped = replace(detections, boxes=detections.boxes.clip(0, np.array([width, height] * 2, detections.boxes.dtype)))
    return Given(pixels, detections, clipped[have_area(clipped.boxes)])


def as_array(image: Any) -> np.ndarray:
    """RGB [3, H, W], float32 in [0, 1]; see :class:`iounet.onnx.OnnxRefiner` for what is taken."""
    pil = sys.modules.get("PIL.Image")  # imported already if the caller has such an image
    if pil is not None and isinstance(image, pil.Image):
        checks.check_mode(image.mode)
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise checks.not_an_image(image, "a PIL image or a NumPy array")
    checks.check_array_shape(image.shape)
    floating = image.dtype.kind == "f"
    checks.check_pixel_type(image.dtype, floating=floating)
    if floating and image.size:
        checks.check_pixel_range(float(image.min()), float(image.max()))
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    return pixels if floating else pixels * np.float32(1 / 255)  # rounds as torchvision's to_dtype does


def have_area(boxes: np.ndarray) -> np.ndarray:
    """Whether each box xyxy [N, 4] has a positive width and height: bool [N]."""
    return np.all(_sizes(boxes) > 0, axis=1)


def _as_detections(
    boxes: AnyValues, labels: AnyValues | None, scores: AnyValues | None, categories: list[dict[str, Any]]
) -> RefinedArrays:
    corners = _as_numbers("boxes", boxes)
    corners = corners.astype(np.float64 if corners.dtype == np.float64 else np.float32)
    corners = corners.reshape(0, 4) if corners.size == 0 else corners
    checks.check_shapes(boxes=corners.shape)
    count = len(corners)
    numbers = _as_numbers("labels", [0] * count if labels is None else checks.with_names_as_numbers(labels, categories))
    if numbers.dtype.kind == "f" and numbers.size:
        raise checks.not_integers(numbers.dtype)
    zeros = np.zeros(count, corners.dtype)
    given = RefinedArrays(
        corners,
        numbers.astype(np.int64),
        np.ones(count, corners.dtype) if scores is None else _as_numbers("scores", scores).astype(corners.dtype),
        ious=zeros,
        ious_before=zeros.copy(),
        stops=np.full(count, int(Stop.UNPLACED)),
        index=np.arange(count),
    )
    finite = np.isfinite(corners).all(1)
    if not finite.all():
        row = int(finite.argmin())
        raise checks.not_finite(row, corners[row].tolist())
    if count:
        checks.check_label_range(int(given.labels.min()), int(given.labels.max()), categories)
    return given


def _as_numbers(name: str, values: Any) -> np.ndarray:
    """Raises TypeError unless ``values`` are real numbers; those of Python are float32, as torch has it."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that requires its gradient
        raise checks.not_numbers(name, values, error) from None
    if array.dtype.kind not in "biuf":
        raise checks.not_numbers(name, values, f"of dtype {array.dtype}")
    if array.dtype == np.float64 and not _holds_float64(values):
        with np.errstate(over="ignore"):  # infinite boxes are refused in _as_detections
            return array.astype(np.float32)
    return array


def _holds_float64(values: Any) -> bool:
    """Whether the values, or any in a nested list of them, are NumPy's or torch's of double precision."""
    if isinstance(values, (list, tuple)):
        return any(map(_holds_float64, values))
    return str(getattr(values, "dtype", "")).endswith("float64")


def _sizes(boxes: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # of float32 boxes as wide as numbers reach
        return boxes[:, 2:] - boxes[:, :2]
