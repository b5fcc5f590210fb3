"""Why refinement moves a box no further."""

from enum import IntEnum


class Stop(IntEnum):
    """Why a box is moved no further."""

    STEPS = 0  # all steps were taken
    CONVERGED = 1  # its predicted IoU changed by less than early_stop
    FELL = 2  # its predicted IoU fell by more than -degeneration
    COLLAPSED = 3  # the next step would have left it without area, or not finite
    LEFT_IMAGE = 4  # it was moved off its image, and is returned where it was before refinement
    UNPLACED = 5  # it had no area inside its image to begin with, so nothing can be predicted for it
