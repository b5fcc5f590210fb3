"""A run: training, resuming, evaluation, the run folder, signals and processes."""

from .evaluating import evaluate, evaluate_and_report
from .processes import Process, init_process
from .training import train

__all__ = ["Process", "evaluate", "evaluate_and_report", "init_process", "train"]
