"""Training: boxes for the IoU and energy heads, the training loop, the schedule, checkpoints."""

from .jitter import jitter_boxes, sample_iou_boxes
from .loop import train_steps
from .loss_watch import LossWatch
from .noise import BoxNoise, sample_energy_boxes
from .schedule import learning_rate_schedule

__all__ = [
    "BoxNoise",
    "LossWatch",
    "jitter_boxes",
    "learning_rate_schedule",
    "sample_energy_boxes",
    "sample_iou_boxes",
    "train_steps",
]
