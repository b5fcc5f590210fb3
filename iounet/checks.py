"""Validation rules and error messages for the images, boxes, labels and scores that refiners take.

The rules use only shapes, dtypes and extreme values, so they apply to NumPy arrays and to tensors on any device.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .categories import match_names

_FORMS = {
    "boxes": "[N, 4], xyxy in pixels ([] for no boxes)",
    "labels": "[N], integers or class names",
    "scores": "[N]",
}


class BoxWarning(UserWarning):
    """Boxes seem to be in another format than xyxy in pixels."""


def can_resize(size: tuple[int, int], min_size: int, max_size: int) -> bool:
    """Whether both sides of an image have at least one pixel after resizing; an image of 5000 × 1 pixels does not.

    Args:
        size: (height, width) in pixels.
        min_size: Target length of the shorter side.
        max_size: Maximum length of the longer side.
    """
    shorter, longer = sorted(size)
    return shorter > 0 and shorter * min(min_size / shorter, max_size / longer) >= 1  # as torchvision computes it


def not_an_image(image: Any, taken: str) -> TypeError:
    """The error for an image of a type other than those described by `taken`."""
    cure = "; open the file with PIL.Image.open" if isinstance(image, (str, Path)) else ""
    return TypeError(f"an image must be {taken}, not {type(image).__name__}{cure}")


def check_mode(mode: str) -> None:
    """Raise `ValueError` if this PIL mode has more than 8 bits per channel."""
    if mode.startswith(("I", "F")):
        raise ValueError(f"the image has more than 8 bits per channel (PIL mode {mode}); convert it to 8 bits")


def check_array_shape(shape: Sequence[int]) -> None:
    """Raise `ValueError` unless an array of this shape can be an image."""
    if len(shape) != 3 or shape[2] != 3:
        raise ValueError(f"an image array must be RGB of shape [H, W, 3], got {list(shape)}")


def check_pixel_type(dtype: Any, *, floating: bool) -> None:
    """Raise `ValueError` unless this dtype of torch or NumPy is uint8 or floating point."""
    if not floating and _plain(dtype) != "uint8":
        raise ValueError(f"an image must be uint8, or floating point in [0, 1]; got {_plain(dtype)}")


def check_pixel_range(lowest: float, highest: float) -> None:
    """Raise `ValueError` unless floating-point pixels lie in [0, 1]."""
    if not 0 <= lowest <= highest <= 1:
        raise ValueError(
            f"floating-point pixels must lie in [0, 1], got {lowest:g} to {highest:g}; divide by 255, and do not "
            "normalise the image"
        )


def not_numbers(name: str, values: Any, reason: Any) -> TypeError:
    """The error for boxes, labels or scores (`name`) that are not numbers."""
    given = "None" if values is None else f"{type(values).__name__} ({reason})"
    return TypeError(f"{name} must be a tensor, array or list {_FORMS[name]}; got {given}")


def check_shapes(**shapes: Sequence[int]) -> None:
    """Raise `ValueError` unless `boxes` has shape [N, 4] and every other column has shape [N]."""
    boxes = list(shapes.pop("boxes"))
    if len(boxes) != 2 or boxes[1] != 4:
        raise ValueError(f"Detections.boxes must have shape [N, 4], got {boxes}")
    for name, shape in shapes.items():
        if list(shape) != boxes[:1]:
            raise ValueError(f"Detections.{name} must have shape {boxes[:1]} to match boxes, got {list(shape)}")


def not_finite(row: int, box: list[float]) -> ValueError:
    """The error for the first box that is not finite."""
    return ValueError(f"box {row} is not finite: {box}")


def with_names_as_numbers(labels: Any, categories: list[dict[str, Any]]) -> Any:
    """Replace class names in labels by their numbers.

    Args:
        labels: Labels. A list, a tuple, or an array of strings or objects may contain names; anything else is returned
            unchanged.
        categories: `{"id", "name"}` of each class in label order.

    Raises:
        ValueError: A name is not the name of a class.
    """
    labels = labels.tolist() if getattr(getattr(labels, "dtype", None), "kind", "") in ("U", "O") else labels
    if not isinstance(labels, (list, tuple)) or not any(isinstance(label, str) for label in labels):
        return labels
    names = [label if isinstance(label, str) else "" for label in labels]
    by_name = match_names(names, categories)
    unknown = dict.fromkeys(name for name, found in zip(names, by_name, strict=True) if name and not found)
    if unknown:
        raise ValueError(
            f"unknown class names in labels: {', '.join(map(repr, unknown))}; the classes are {_names(categories)}; "
            "use 0 for a class that the refiner was not trained on"
        )
    return [found or label for label, found in zip(labels, by_name, strict=True)]


def not_integers(dtype: Any) -> TypeError:
    """The error for floating-point labels."""
    return TypeError(f"labels must be integers, got {_plain(dtype)}")


def check_label_range(lowest: int, highest: int, categories: list[dict[str, Any]]) -> None:
    """Raise `ValueError` unless labels lie in 0..C."""
    if not 0 <= lowest <= highest <= len(categories):
        raise ValueError(
            f"labels must lie in 1..{len(categories)} for the classes {_names(categories)}, or be 0 for any other "
            f"class; got {lowest}..{highest}"
        )


def warn_of_other_forms(shortest_side: float, furthest: float, size: tuple[int, int]) -> None:
    """Warn about boxes that look like `[x, y, width, height]` or like fractions of the image size.

    The text does not depend on the image, so Python shows each warning once.

    Args:
        shortest_side: The smallest of all widths and heights; negative if a box is reversed.
        furthest: The largest of all coordinates.
        size: (height, width) of the image.
    """
    if shortest_side < 0:
        warnings.warn(
            "boxes with x2 < x1 or y2 < y1 are not refined; if they are [x, y, width, height], convert them with "
            'torchvision.ops.box_convert(boxes, "xywh", "xyxy")',
            BoxWarning,
            stacklevel=2,
        )
    elif max(size) > 2 and furthest <= 1.01 and shortest_side > 0:
        warnings.warn(
            "all boxes lie within the first pixel and look like fractions of the image size; multiply x by the width "
            "and y by the height of the image in pixels",
            BoxWarning,
            stacklevel=2,
        )


def _plain(dtype: Any) -> str:
    """The name of a dtype of torch or NumPy, such as `uint8`."""
    return str(dtype).removeprefix("torch.")


def _names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    return [category["name"] for category in categories]
