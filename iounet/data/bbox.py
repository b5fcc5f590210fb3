"""What a bounding box of a JSON file must be, whoever reads it."""

import sys
from typing import Any

import numpy as np


def is_finite_number(value: Any, largest: float = sys.float_info.max) -> bool:
    """Whether a value is a number, not a bool, of a magnitude of at most ``largest``."""
    if isinstance(value, np.generic):
        value = value.item()  # compared with a limit beyond its own range, numpy's float32 would warn
    # By comparison: math.isfinite raises on integers beyond the range of floats, which JSON has.
    return _is_number(value) and abs(value) <= largest


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def bbox_fault(bbox: Any, largest: float = sys.float_info.max) -> str | None:
    """What keeps a bbox from being four finite numbers, as words that follow "bbox": None if nothing does."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        return "is not four numbers"
    return None if all(is_finite_number(value, largest) for value in bbox) else "is not finite"
