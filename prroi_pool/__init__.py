"""Precise RoI Pooling: the exact mean of a bilinearly interpolated feature map over each bin of each RoI,
differentiable in the features and in the RoI coordinates (Jiang et al., "Acquisition of Localization
Confidence for Accurate Object Detection", ECCV 2018, section 3.3).

The package needs only PyTorch. It compiles its kernels on first use; `python -m prroi_pool` reports their state.
"""

from .functional import prroi_pool2d
from .multiscale import MultiScalePrRoIPool
from .prroi_pool import PrRoIPool2D

__all__ = ["MultiScalePrRoIPool", "PrRoIPool2D", "prroi_pool2d"]
