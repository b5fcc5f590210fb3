"""Inputs of the engine: a detector with its data and options, as `iounet.build` makes them from a configuration."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.transforms.v2 import Compose

from .data import CocoDataset
from .modeling import IoUNet


@dataclass(frozen=True)
class EvaluationJob:
    """Everything needed to evaluate a detector on a data set.

    Attributes:
        detector: The detector, on its device.
        dataset: The data set to evaluate on.
        batch_size: Images per batch on each device.
        num_workers: Data loading processes.
        output_dir: Folder for the report.
        calibrated_for: Boxes for which the predicted IoU is calibrated, "candidates" or "labels".
    """

    detector: IoUNet
    dataset: CocoDataset
    batch_size: int
    num_workers: int
    output_dir: Path
    calibrated_for: str = "candidates"


@dataclass(frozen=True)
class TrainingJob:
    """Everything needed to train a detector.

    Attributes:
        detector: The detector, on its device; random weights except for those of MODEL.BACKBONE.WEIGHTS.
        initial_weights: File to start from, "" for none; see `iounet.training.checkpoint.load_initial_weights`.
        dataset: Training images.
        optimizer: Optimiser of the detector.
        schedule: Learning-rate schedule of the optimiser.
        evaluation: Evaluation of the same detector on the validation images.
        config: The resolved configuration as YAML.
        notes: Lines to print when a new run starts, such as the scaled learning rate.
        seed: Seed of sampling and image order.
        batch_size: Images per step in each process.
        accumulation_steps: Micro-batches per step.
        num_workers: Data loading processes.
        max_iterations: Length of the run in steps.
        clip_gradient: Maximum norm of the gradient; 0 disables clipping.
        log_period: Iterations between log rows.
        checkpoint_period: Iterations between checkpoints.
        eval_period: Iterations between evaluations; 0 evaluates only at the end.
        output_dir: The run folder.
    """

    detector: IoUNet
    initial_weights: str
    dataset: CocoDataset
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    evaluation: EvaluationJob
    config: str
    notes: list[str]
    seed: int
    batch_size: int
    accumulation_steps: int
    num_workers: int
    max_iterations: int
    clip_gradient: float
    log_period: int
    checkpoint_period: int
    eval_period: int
    output_dir: Path


@dataclass(frozen=True)
class HeadsJob:
    """Everything needed to train new IoU and energy heads on the frozen backbone of a checkpoint, for any classes.

    Attributes:
        detector: A standalone detector, on its device. Its heads and box branch have random weights; the box branch
            is not trained.
        optimizer: Optimiser of the heads.
        schedule: Learning-rate schedule of the optimiser.
        transforms: Augmentation, see `iounet.data.build_transforms`.
        batch_size: Images per step.
        num_workers: Data loading processes.
        num_iterations: Length of training in steps.
        clip_gradient: Maximum norm of the gradient; 0 disables clipping.
    """

    detector: IoUNet
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    transforms: Compose
    batch_size: int
    num_workers: int
    num_iterations: int
    clip_gradient: float
