"""Resuming a run, possibly with changed settings."""

from fnmatch import fnmatch
from pathlib import Path

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..config import DECODING, changed_settings, config_from_yaml
from ..data import check_categories
from ..errors import CheckpointError, ConfigError
from ..jobs import TrainingJob
from ..training.checkpoint import load_detector_weights, load_newest_checkpoint
from .processes import Process

# Settings that affect neither training nor evaluation: initial weights, paths, the device, and when files are written.
FREE = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "MODEL.BACKBONE.WEIGHTS",
    "DATA.NUM_WORKERS",
    "SOLVER.*_PERIOD",
    "TEST.CUDA_GRAPHS",
)
# Settings that determine the shapes or the meaning of the weights and of the optimizer's state.
FIXED = (
    "MODEL.NUM_CLASSES",
    "MODEL.STANDALONE",
    "MODEL.BACKBONE.*",
    "MODEL.FPN.*",
    "MODEL.*_HEAD.HIDDEN_DIM",
    "SOLVER.OPTIMIZER",
    *DECODING,
)


def resume_from(checkpoints: list[Path], job: TrainingJob, process: Process) -> int:
    """Restore a run's state from the newest undamaged checkpoint.

    Args:
        checkpoints: paths of the checkpoints, oldest first. Damaged checkpoints are renamed.
        job: the job whose detector, optimizer and schedule are restored.

    Returns:
        The number of iterations done.

    Raises:
        CheckpointError: if no checkpoint can be resumed from with these settings.
        DataError: if the checkpoint's categories differ from those of the data set.
    """
    path, checkpoint, damaged = load_newest_checkpoint(checkpoints)
    check_categories(checkpoint["categories"], job.dataset, str(path))
    changes = compare_settings(checkpoint["config"], job.config, str(path))
    processes = checkpoint.get("processes", process.world_size)  # missing in older checkpoints
    if processes != process.world_size:
        changes.append(f"processes {processes} → {process.world_size}")
    load_detector_weights(job.detector, checkpoint["model"], str(path), need_iou_head=True)
    restore_optimizer(job.optimizer, job.schedule, checkpoint["optimizer"], checkpoint["iteration"], str(path))
    if process.is_main:
        for newer, error in damaged.items():
            # Renamed, so that it does not count as one of the kept checkpoints; not deleted, because the cause may be
            # the disk rather than the file.
            aside = newer.rename(newer.with_name(f"{newer.name}.damaged"))
            print(f"warning: {error}; the checkpoint is renamed to {aside.name}, and the run resumes from {path}")
        if changes:
            print(f"warning: settings differ from those of {path}; the run continues with: {', '.join(changes)}")
    return checkpoint["iteration"]


def compare_settings(before: str, now: str, source: str) -> list[str]:
    """Return the changed settings that affect training or evaluation, such as ``SOLVER.BASE_LR 0.01 → 0.02``.

    Args:
        before, now: configurations as YAML. A key missing in ``before`` was added later and counts as its default.
        source: where ``before`` comes from, for the message.

    Raises:
        CheckpointError: if a setting of ``FIXED`` differs, or ``before`` is not a configuration.
    """
    try:
        old = config_from_yaml(before, source)
    except ConfigError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{source}: the configuration in this checkpoint cannot be read ({reason}); the file is damaged, or was "
            "written by a later version"
        ) from None
    changed = changed_settings(old, config_from_yaml(now, "this run's configuration"))
    refused = [change for key, change in changed.items() if _matches(key, FIXED) and not _matches(key, FREE)]
    if refused:
        raise CheckpointError(
            f"{source} cannot be resumed with changed settings: {', '.join(refused)}; resume with the settings it was "
            "trained with, or start a new run in another OUTPUT_DIR, from its weights (MODEL.WEIGHTS) if they fit"
        )
    return [change for key, change in changed.items() if not _matches(key, FREE)]


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)


def restore_optimizer(optimizer: Optimizer, schedule: LambdaLR, state: dict, iteration: int, source: str) -> None:
    """Set a new optimizer and schedule to their state after an iteration.

    Only learned state, such as momentum, is restored. Hyperparameters such as learning rate and weight decay keep the
    values of the current configuration, which torch's ``load_state_dict`` would silently replace with the old ones.

    Args:
        state: the optimizer's ``state_dict()``.
        source: where the state comes from, for the message.

    Raises:
        CheckpointError: if the state belongs to other parameters.
    """
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(
            f"{source} has the optimizer state of another network ({error}); resume with the configuration and the "
            "code of the original run"
        ) from None
    schedule.last_epoch = iteration
    rates = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, own, (rate, factor) in zip(optimizer.param_groups, options, rates, strict=True):
        group.update(own, lr=rate * factor(iteration))
