"""Count the resources that the process holds."""

import gc
import os

import torch


def alive():
    """Number of live tensors and of open files; both vary less than resident memory."""
    gc.collect()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return tensors, len(os.listdir("/proc/self/fd"))
