"""What training needs beside the network: the IoU head's training boxes, the loop, the schedule, checkpoints."""

from .jitter import jitter_boxes, sample_iou_boxes
from .loop import NonFiniteLossError, train_steps
from .schedule import learning_rate_schedule

__all__ = ["NonFiniteLossError", "jitter_boxes", "sample_iou_boxes", "train_steps", "learning_rate_schedule"]
