"""A run: training, resuming, calibration, evaluation, the run folder, signals and processes."""

from .calibrating import calibrate
from .evaluating import evaluate, evaluate_and_report
from .processes import Process, init_process
from .training import train

__all__ = ["Process", "calibrate", "evaluate", "evaluate_and_report", "init_process", "train"]
