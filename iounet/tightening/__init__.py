"""Correct the label boxes of a data set with a trained IoU-Net, and review the changes."""

from .decisions import Thresholds
from .proposals import Proposal
from .run import TighteningRun

__all__ = ["Proposal", "Thresholds", "TighteningRun"]
