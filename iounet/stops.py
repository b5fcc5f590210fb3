"""Reasons why refinement stops moving a box."""

from enum import IntEnum


class Stop(IntEnum):
    """Why refinement stopped moving a box.

    Attributes:
        STEPS: 0, all steps were taken.
        CONVERGED: 1, the predicted IoU (or energy) changed by less than ``early_stop``.
        FELL: 2, the predicted IoU (or energy) fell by more than ``-degeneration``.
        COLLAPSED: 3, the next step would have made the box empty or not finite.
        LEFT_IMAGE: 4, the box moved off the image, and is returned as it was before refinement.
        UNPLACED: 5, the box had no area inside the image before refinement, so its IoU cannot be predicted.
    """

    STEPS = 0
    CONVERGED = 1
    FELL = 2
    COLLAPSED = 3
    LEFT_IMAGE = 4
    UNPLACED = 5
