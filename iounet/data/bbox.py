"""The rules for a bounding box in a JSON file, shared by all readers."""

import sys
from typing import Any

import numpy as np


def is_finite_number(value: Any, largest: float = sys.float_info.max) -> bool:
    """Return whether a value is a number (not a bool) with a magnitude of at most ``largest``."""
    if isinstance(value, np.generic):
        value = value.item()  # NumPy warns when it compares a float32 with a limit beyond its range
    # math.isfinite is not used because it raises an error for JSON integers beyond the range of float.
    return _is_number(value) and abs(value) <= largest


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def bbox_fault(bbox: Any, largest: float = sys.float_info.max) -> str | None:
    """Return why a bbox is not four finite numbers, worded to follow "bbox"; None if it is valid."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        return "is not four numbers"
    return None if all(is_finite_number(value, largest) for value in bbox) else "is not finite"
