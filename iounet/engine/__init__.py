"""Runs: training, resuming, calibration, evaluation, the run folder, signals and processes."""

from .calibrating import calibrate
from .evaluating import batches_of, evaluate, evaluate_and_report
from .processes import Process, init_process
from .training import train

__all__ = ["Process", "batches_of", "calibrate", "evaluate", "evaluate_and_report", "init_process", "train"]
