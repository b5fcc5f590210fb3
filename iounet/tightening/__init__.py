"""Label boxes of a data set, corrected by a trained IoU-Net and reviewed by a person."""

from .decisions import Thresholds
from .proposals import Proposal
from .run import TighteningRun

__all__ = ["Proposal", "Thresholds", "TighteningRun"]
