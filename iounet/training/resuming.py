"""Going on with a run under the configuration that is given now: what may differ from before, and what then applies."""

from fnmatch import fnmatch

import yaml
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .checkpoint import CheckpointError

# Where a run begins, where it runs, and when it writes: other values change neither its course nor its evaluations.
FREE = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "MODEL.BACKBONE.WEIGHTS",
    "DATA.NUM_WORKERS",
    "SOLVER.*_PERIOD",
    "TEST.REFINE.CUDA_GRAPHS",
)
# What the weights and the optimizer's state mean. Some fit, by their shapes, into a detector of other values.
FIXED = (
    "MODEL.NUM_CLASSES",
    "MODEL.STANDALONE",
    "MODEL.BACKBONE.*",
    "MODEL.FPN.*",
    "MODEL.RPN.ANCHOR_SIZES",
    "MODEL.RPN.ASPECT_RATIOS",
    "MODEL.*_HEAD.HIDDEN_DIM",
    "MODEL.IOU_HEAD.LOSS",
    "SOLVER.OPTIMIZER",
)


def changed_settings(before: str, now: str, defaults: str, source: str) -> list[str]:
    """What a run is resumed with that changes its course or its evaluations, as ``SOLVER.BASE_LR 0.01 → 0.02``.

    Args:
        before, now: configurations as YAML text. A key that is not in ``before`` is newer than it.
        defaults: the default configuration, which is what was done before a key came.
        source: of ``before``, for the message.

    Raises:
        CheckpointError: a setting of ``FIXED`` differs; ``before`` is no configuration.
    """
    try:
        old = _flat(yaml.safe_load(defaults)) | _flat(yaml.safe_load(before))
    except (yaml.YAMLError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{source} holds no configuration that can be read ({reason}): it is damaged") from None
    new = _flat(yaml.safe_load(now))
    changed = {
        key: f"{key} {old[key]} → {value}"
        for key, value in new.items()
        if old.get(key, value) != value and not _matches(key, FREE)
    }
    refused = [line for key, line in changed.items() if _matches(key, FIXED)]
    if refused:
        raise CheckpointError(
            f"{source} cannot go on with another {', '.join(refused)}; resume with what it was trained with, or begin "
            "a new run in another OUTPUT_DIR, from its weights (MODEL.WEIGHTS) if they fit"
        )
    return list(changed.values())


def _flat(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


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
