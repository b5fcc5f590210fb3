"""Mixed precision: convolutions and hidden layers may use bfloat16; boxes, scores and IoUs stay in float32.

The branches compute in the dtype of the backbone's maps, except in their last layers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_as(values: Tensor) -> AbstractContextManager:
    """Return an autocast context for values that were computed under autocast, otherwise a null context."""
    if values.dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(values.device.type, values.dtype)
    return nullcontext()


def in_float32(layer: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Return ``layer(values)`` in at least float32, without autocast."""
    with torch.autocast(values.device.type, enabled=False):
        return layer(at_least_float32(values))


def at_least_float32(values: Tensor) -> Tensor:
    """Convert bfloat16 and float16 to float32; return other dtypes unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
