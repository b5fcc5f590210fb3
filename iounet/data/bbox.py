"""What a bounding box of a JSON file must be, whoever reads it."""

import sys
from numbers import Real
from typing import Any


def is_finite_number(value: Any, largest: float = sys.float_info.max) -> bool:
    """Whether a value is a number, not a bool, of a magnitude of at most ``largest``."""
    # By comparison: math.isfinite raises on integers beyond the range of floats, which JSON has.
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= largest


def bbox_fault(bbox: Any, largest: float = sys.float_info.max) -> str | None:
    """What keeps a bbox from being four finite numbers, as words that follow "bbox": None if nothing does."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return "is not four numbers"
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in bbox):
        return "is not four numbers"
    return None if all(is_finite_number(value, largest) for value in bbox) else "is not finite"
