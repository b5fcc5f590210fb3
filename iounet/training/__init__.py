"""What training needs beside the network: the IoU head's training boxes, the loop, the schedule, checkpoints."""

from .jitter import jitter_boxes, sample_iou_boxes
from .loop import train_steps
from .schedule import learning_rate_schedule

__all__ = ["jitter_boxes", "learning_rate_schedule", "sample_iou_boxes", "train_steps"]
