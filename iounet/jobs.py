"""What the engine runs: a detector with its data and its options, as `iounet.build` makes them from a configuration."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.transforms.v2 import Compose

from .data import CocoDataset
from .modeling import IoUNet


@dataclass(frozen=True)
class EvaluationJob:
    """A detector to be evaluated on a data set.

    Attributes:
        detector: on its device.
        dataset: what it is evaluated on.
        batch_size: images a step on each device.
        num_workers: loading processes.
        output_dir: folder of the report.
        calibrated_for: which boxes the predicted IoU is calibrated for: "candidates", or "labels".
    """

    detector: IoUNet
    dataset: CocoDataset
    batch_size: int
    num_workers: int
    output_dir: Path
    calibrated_for: str = "candidates"


@dataclass(frozen=True)
class TrainingJob:
    """A detector to be trained, with everything that training needs.

    Attributes:
        detector: on its device, with random weights but for those of MODEL.BACKBONE.WEIGHTS.
        initial_weights: file to start from, "" for none; see :func:`iounet.training.checkpoint.load_initial_weights`.
        dataset: training images.
        optimizer, schedule: of the detector.
        evaluation: of the same detector on the validation images.
        config: the resolved configuration as YAML.
        notes: lines that say what was made of the configuration, for the start of a new run.
        seed: of samples and order.
        batch_size: images a step in each process.
        accumulation_steps: parts that these are divided into.
        num_workers: loading processes.
        max_iterations: length of the run.
        clip_gradient: largest norm of the gradient; 0: not clipped.
        log_period, checkpoint_period, eval_period: iterations between log rows, checkpoints and evaluations; the last
            may be 0: only at the end.
        output_dir: the run folder.
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
    """New IoU and energy heads to be trained on the frozen backbone of a checkpoint, for the classes of any data set.

    Attributes:
        detector: standalone, on its device; its heads are random, and so is its box branch, which is not to be used.
        optimizer, schedule: of the heads.
        transforms: augmentation, as :func:`iounet.data.build_transforms` makes it.
        batch_size: images a step.
        num_workers: loading processes.
        num_iterations: length of the training.
        clip_gradient: largest norm of the gradient.
    """

    detector: IoUNet
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    transforms: Compose
    batch_size: int
    num_workers: int
    num_iterations: int
    clip_gradient: float
