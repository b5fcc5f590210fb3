"""Validate the images and boxes that callers pass, and convert them to NumPy arrays, without torch."""

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
    """Boxes of one image after refinement: `iounet.detections.RefinedDetections` as NumPy arrays.

    Attributes:
        boxes: float [N, 4], xyxy in pixels of the image.
        labels: int64 [N]; label l is the l-th of the refiner's categories, 0 is any other class.
        scores: float [N], class scores.
        ious: float [N], predicted IoUs of `boxes`.
        ious_before: float [N], predicted IoUs before refinement.
        stops: int64 [N], why the refinement of each box ended, as `iounet.stops.Stop`.
        index: int64 [N], row of each box in the input; 0, 1, ..., N - 1 without NMS.
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
        """Select boxes by a mask, positions or a slice."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True, eq=False)
class Given:
    """Checked input of a refiner: an image and its boxes.

    Attributes:
        image: float32 [3, H, W], RGB in [0, 1].
        detections: All boxes as given; nothing is predicted for them yet.
        visible: The boxes with an area inside the image, clipped to the image.
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
    """Check the input of `OnnxRefiner` and convert it to arrays; warn about boxes that seem to be in another format.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has the wrong shape, boxes are not finite, or labels are out of range or unknown.
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
    """Convert an image, as `iounet.onnx.OnnxRefiner` accepts it, to RGB [3, H, W], float32 in [0, 1]."""
    pil = sys.modules.get("PIL.Image")  # a caller with a PIL image has imported it
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
    return pixels if floating else pixels * np.float32(1 / 255)  # the same rounding as torchvision's to_dtype


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
    """Convert to an array, Python floats to float32 as in torch; raise `TypeError` unless all are real numbers."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that requires grad
        raise checks.not_numbers(name, values, error) from None
    if array.dtype.kind not in "biuf":
        raise checks.not_numbers(name, values, f"of dtype {array.dtype}")
    if array.dtype == np.float64 and not _holds_float64(values):
        with np.errstate(over="ignore"):  # _as_detections refuses infinite boxes
            return array.astype(np.float32)
    return array


def _holds_float64(values: Any) -> bool:
    """Whether the values, or any element of a nested list, are float64 values of NumPy or torch."""
    if isinstance(values, (list, tuple)):
        return any(map(_holds_float64, values))
    return str(getattr(values, "dtype", "")).endswith("float64")


def _sizes(boxes: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # the width of a huge float32 box overflows to infinity
        return boxes[:, 2:] - boxes[:, :2]
