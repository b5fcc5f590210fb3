"""Resuming a run: what may differ from its configuration before, and which settings then apply."""

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

# Where a run begins, where it runs, and when it writes: other values change neither its course nor its evaluations.
FREE = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "MODEL.BACKBONE.WEIGHTS",
    "DATA.NUM_WORKERS",
    "SOLVER.*_PERIOD",
    "TEST.CUDA_GRAPHS",
)
# What the weights and the optimizer's state are of, and what they mean.
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
    """Restores a run's state from the newest whole checkpoint.

    Args:
        checkpoints: oldest first; damaged ones are set aside.
        job: its detector, optimizer and schedule get the state.

    Returns:
        The number of iterations done.

    Raises:
        CheckpointError: no checkpoint can be resumed from with these settings.
        DataError: the checkpoint has other categories.
    """
    path, checkpoint, damaged = load_newest_checkpoint(checkpoints)
    check_categories(checkpoint["categories"], job.dataset, str(path))
    changes = compare_settings(checkpoint["config"], job.config, str(path))
    processes = checkpoint.get("processes", process.world_size)  # which older checkpoints lack
    if processes != process.world_size:
        changes.append(f"processes {processes} → {process.world_size}")
    load_detector_weights(job.detector, checkpoint["model"], str(path), need_iou_head=True)
    restore_optimizer(job.optimizer, job.schedule, checkpoint["optimizer"], checkpoint["iteration"], str(path))
    if process.is_main:
        for newer, error in damaged.items():
            # Renamed, so that it is not counted among those kept; not deleted, as perhaps only the disk was at fault.
            aside = newer.rename(newer.with_name(f"{newer.name}.damaged"))
            print(f"warning: {error}; it is set aside as {aside.name}, and the run goes on from {path}")
        if changes:
            print(f"warning: {path} was trained with other settings; from here on: {', '.join(changes)}")
    return checkpoint["iteration"]


def compare_settings(before: str, now: str, source: str) -> list[str]:
    """Settings of a resumed run that change its course or its evaluations, as ``SOLVER.BASE_LR 0.01 → 0.02``.

    Args:
        before, now: configurations as YAML. A key that ``before`` lacks is newer than it, and had its default's effect.
        source: of ``before``, for the message.

    Raises:
        CheckpointError: a setting of ``FIXED`` differs; ``before`` is no configuration.
    """
    try:
        old = config_from_yaml(before, source)
    except ConfigError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{source}: its configuration cannot be read ({reason}); the file is damaged, or of a later version"
        ) from None
    changed = changed_settings(old, config_from_yaml(now, "this run's configuration"))
    refused = [change for key, change in changed.items() if _matches(key, FIXED) and not _matches(key, FREE)]
    if refused:
        raise CheckpointError(
            f"{source} cannot go on with another {', '.join(refused)}; resume with what it was trained with, or begin "
            "a new run in another OUTPUT_DIR, from its weights (MODEL.WEIGHTS) if they fit"
        )
    return [change for key, change in changed.items() if not _matches(key, FREE)]


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)


def restore_optimizer(optimizer: Optimizer, schedule: LambdaLR, state: dict, iteration: int, source: str) -> None:
    """Gives a new optimizer and schedule the state they had after an iteration.

    Only what they learned is taken over. Learning rate, weight decay and the like stay as they were built: of a
    changed configuration torch's own ``load_state_dict`` would quietly bring back the values before.

    Args:
        state: the optimizer's ``state_dict()``.
        source: where it comes from, for the message.

    Raises:
        CheckpointError: the state is of other parameters.
    """
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(
            f"{source} holds the optimizer's state of another network ({error}); resume with the configuration and the "
            "code it began with"
        ) from None
    schedule.last_epoch = iteration
    rates = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, own, (rate, factor) in zip(optimizer.param_groups, options, rates, strict=True):
        group.update(own, lr=rate * factor(iteration))
