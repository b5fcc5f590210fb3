"""bfloat16 where it costs nothing: in convolutions and hidden layers, never in what says where a box lies.

The backbone decides: the branches compute in the dtype of the maps that it gives them, but for their last layers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_as(values: Tensor) -> AbstractContextManager:
    """Autocast to the dtype of values that were computed under it."""
    if values.dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(values.device.type, values.dtype)
    return nullcontext()


def in_float32(layer: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """``layer(values)`` without autocast; float64 values stay in it."""
    with torch.autocast(values.device.type, enabled=False):
        return layer(at_least_float32(values))


def at_least_float32(values: Tensor) -> Tensor:
    """bfloat16 and float16 as float32; others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
