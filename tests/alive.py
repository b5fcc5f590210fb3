"""What a process holds on to."""

import gc
import os

import torch


def alive():
    """How many tensors there are, and how many files are open: steadier than resident memory."""
    gc.collect()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return tensors, len(os.listdir("/proc/self/fd"))
