"""The rules for images, boxes, labels and scores that refiners take, and the error messages for broken rules.

The rules look at shapes, dtypes and limits alone, so that one rule serves tensors on any device and NumPy arrays.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .categories import match_names

_FORMS = {
    "boxes": "[N, 4], xyxy in pixels; [] if there are none",
    "labels": "[N], integers or class names",
    "scores": "[N]",
}


class BoxWarning(UserWarning):
    """Boxes that look as if they were in another form than xyxy in pixels."""


def can_resize(size: tuple[int, int], min_size: int, max_size: int) -> bool:
    """Whether an image keeps its shape when it is resized for the network; 5000 × 1 pixels do not.

    Args:
        size: (height, width) in pixels.
        min_size, max_size: the shorter side is scaled to ``min_size``, but the longer one at most to ``max_size``.
    """
    shorter, longer = sorted(size)
    return shorter > 0 and shorter * min(min_size / shorter, max_size / longer) >= 1  # as torchvision has it


def not_an_image(image: Any, taken: str) -> TypeError:
    """The error for an object of another kind than those ``taken``."""
    cure = "; open the file with PIL.Image.open" if isinstance(image, (str, Path)) else ""
    return TypeError(f"an image is {taken}, not {type(image).__name__}{cure}")


def check_mode(mode: str) -> None:
    """Raises ValueError if the pixels of a PIL image of this mode do not fit into 8 bits."""
    if mode.startswith(("I", "F")):
        raise ValueError(f"the image has pixels of more than 8 bits (PIL mode {mode}); convert it to 8 bits")


def check_array_shape(shape: Sequence[int]) -> None:
    """Raises ValueError unless an array of this shape can be an image."""
    if len(shape) != 3 or shape[2] != 3:
        raise ValueError(f"an array must be an RGB image of shape [H, W, 3], got {list(shape)}")


def check_pixel_type(dtype: Any, *, floating: bool) -> None:
    """Raises ValueError unless pixels of this dtype, of torch or NumPy, are uint8 or floating point."""
    if not floating and _plain(dtype) != "uint8":
        raise ValueError(f"an image must be uint8, or floating point in [0, 1]; got {_plain(dtype)}")


def check_pixel_range(lowest: float, highest: float) -> None:
    """Raises ValueError unless pixels of floating point lie in [0, 1]."""
    if not 0 <= lowest <= highest <= 1:
        raise ValueError(
            f"an image of floating point must lie in [0, 1], got {lowest:g} to {highest:g}: divide by 255, and leave "
            "normalising to the refiner"
        )


def not_numbers(name: str, values: Any, reason: Any) -> TypeError:
    """The error for boxes, labels or scores (``name``) that are no numbers."""
    given = "None" if values is None else f"{type(values).__name__} ({reason})"
    return TypeError(f"{name} must be a tensor, an array or a list {_FORMS[name]}; got {given}")


def check_shapes(**shapes: Sequence[int]) -> None:
    """Raises ValueError unless ``boxes`` has shape [N, 4] and every other column [N]."""
    boxes = list(shapes.pop("boxes"))
    if len(boxes) != 2 or boxes[1] != 4:
        raise ValueError(f"Detections.boxes must have shape [N, 4], got {boxes}")
    for name, shape in shapes.items():
        if list(shape) != boxes[:1]:
            raise ValueError(f"Detections.{name} must have shape {boxes[:1]} as boxes has, got {list(shape)}")


def not_finite(row: int, box: list[float]) -> ValueError:
    """The error for the first box that is not finite."""
    return ValueError(f"box {row} is not finite: {box}")


def with_names_as_numbers(labels: Any, categories: list[dict[str, Any]]) -> Any:
    """The same labels, but class names as numbers.

    Args:
        labels: those of a list, a tuple, or an array of strings or objects may be names; others are returned as given.

    Raises:
        ValueError: a name that is none of the classes'.
    """
    labels = labels.tolist() if getattr(getattr(labels, "dtype", None), "kind", "") in ("U", "O") else labels
    if not isinstance(labels, (list, tuple)) or not any(isinstance(label, str) for label in labels):
        return labels
    names = [label if isinstance(label, str) else "" for label in labels]
    by_name = match_names(names, categories)
    unknown = dict.fromkeys(name for name, found in zip(names, by_name, strict=True) if name and not found)
    if unknown:
        raise ValueError(
            f"labels names {', '.join(map(repr, unknown))}, but the classes are {_names(categories)}; give 0 for a "
            "class that the refiner was not trained on"
        )
    return [found or label for label, found in zip(labels, by_name, strict=True)]


def not_integers(dtype: Any) -> TypeError:
    """The error for labels of floating point."""
    return TypeError(f"labels must be integers, got {_plain(dtype)}")


def check_label_range(lowest: int, highest: int, categories: list[dict[str, Any]]) -> None:
    """Raises ValueError unless labels lie in 0..C."""
    if not 0 <= lowest <= highest <= len(categories):
        raise ValueError(
            f"labels must lie in 1..{len(categories)}, which stand for the classes {_names(categories)}, or be 0 for "
            f"any other class; got {lowest}..{highest}"
        )


def warn_of_other_forms(shortest_side: float, furthest: float, size: tuple[int, int]) -> None:
    """Warns of boxes that look like ``[x, y, width, height]`` or like fractions of the image size.

    Always in the same words, so that Python shows a warning once, not for each image.

    Args:
        shortest_side: the smallest of all widths and heights; negative if a box is reversed.
        furthest: the largest of all coordinates.
        size: (height, width) of the image.
    """
    if shortest_side < 0:
        warnings.warn(
            "some boxes have x2 < x1 or y2 < y1 and stay as they are; if they are [x, y, width, height], convert them "
            'with torchvision.ops.box_convert(boxes, "xywh", "xyxy")',
            BoxWarning,
            stacklevel=2,
        )
    elif max(size) > 2 and furthest <= 1.01 and shortest_side > 0:
        warnings.warn(
            "no box reaches beyond the first pixel: these look like fractions of the image size; multiply x by the "
            "width and y by the height in pixels",
            BoxWarning,
            stacklevel=2,
        )


def _plain(dtype: Any) -> str:
    """``uint8``, of torch.uint8 and of NumPy's."""
    return str(dtype).removeprefix("torch.")


def _names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    return [category["name"] for category in categories]
