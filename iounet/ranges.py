"""Valid ranges of the numbers in a configuration, checked when `iounet.config` loads one."""

import math
from collections.abc import Mapping
from typing import Any

from .errors import ConfigError

# Interval of every numeric key in iounet/config.py; for a tuple, the interval of each of its numbers.
RANGES = {
    "SEED": "[0, 9223372036854775807]",  # the seeds that torch accepts
    "MODEL.NUM_CLASSES": "[0, inf)",
    "MODEL.BACKBONE.NORM_EPS": "[0, inf)",
    "MODEL.BACKBONE.TRAINABLE_LAYERS": "[0, 5]",
    "MODEL.FPN.CHANNELS": "[1, inf)",
    "MODEL.FPN.CANONICAL_SCALE": "[1, inf)",
    "MODEL.RPN.ANCHOR_SIZES": "[1, inf)",
    "MODEL.RPN.ASPECT_RATIOS": "(0, inf)",
    "MODEL.RPN.PRE_NMS_TRAIN": "[1, inf)",
    "MODEL.RPN.PRE_NMS_TEST": "[1, inf)",
    "MODEL.RPN.POST_NMS_TRAIN": "[1, inf)",
    "MODEL.RPN.POST_NMS_TEST": "[1, inf)",
    "MODEL.BOX_HEAD.HIDDEN_DIM": "[1, inf)",
    "MODEL.BOX_HEAD.BOXES_PER_IMAGE": "[1, inf)",
    "MODEL.IOU_HEAD.HIDDEN_DIM": "[1, inf)",
    "MODEL.IOU_HEAD.BOXES_PER_IMAGE": "[1, inf)",
    "MODEL.IOU_HEAD.MIN_IOU": "(0, 1)",  # at 1, every jittered box would equal its object's box
    "MODEL.IOU_HEAD.LOSS_WEIGHT": "[0, inf)",
    "MODEL.IOU_HEAD.CANONICAL_SCALE": "[0, inf)",
    "MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE": "[0, inf)",
    "MODEL.ENERGY_HEAD.HIDDEN_DIM": "[1, inf)",
    "MODEL.ENERGY_HEAD.CANONICAL_SCALE": "[0, inf)",
    "MODEL.ENERGY_HEAD.BOXES_PER_IMAGE": "[1, inf)",
    "MODEL.ENERGY_HEAD.NOISE_STDS": "(0, inf)",
    "MODEL.ENERGY_HEAD.TARGET_NOISE": "[0, inf)",
    "MODEL.ENERGY_HEAD.LOSS_WEIGHT": "[0, inf)",
    "INPUT.MIN_SIZE": "[1, inf)",
    "INPUT.MAX_SIZE": "[1, inf)",
    "INPUT.HORIZONTAL_FLIP": "[0, 1]",
    "INPUT.VERTICAL_FLIP": "[0, 1]",
    "INPUT.COLOR_JITTER": "[0, inf)",
    "DATA.NUM_WORKERS": "[0, inf)",
    "SOLVER.GLOBAL_BATCH_SIZE": "[1, inf)",
    "SOLVER.ACCUMULATION_STEPS": "[1, inf)",
    "SOLVER.BASE_LR": "(0, inf)",
    "SOLVER.REFERENCE_BATCH_SIZE": "[0, inf)",
    "SOLVER.MOMENTUM": "[0, 1)",
    "SOLVER.WEIGHT_DECAY": "[0, inf)",
    "SOLVER.MAX_ITERATIONS": "[1, inf)",
    "SOLVER.STEPS": "[1, inf)",
    "SOLVER.GAMMA": "[0, 1]",
    "SOLVER.WARMUP_ITERATIONS": "[0, inf)",
    "SOLVER.WARMUP_FACTOR": "[0, 1]",
    "SOLVER.CLIP_GRADIENT": "[0, inf)",
    "SOLVER.LOG_PERIOD": "[1, inf)",
    "SOLVER.CHECKPOINT_PERIOD": "[1, inf)",
    "SOLVER.EVAL_PERIOD": "[0, inf)",
    "TEST.BATCH_SIZE_PER_DEVICE": "[1, inf)",
    "TEST.SCORE_THRESHOLD": "[0, 1]",
    "TEST.NMS_THRESHOLD": "[0, 1]",
    "TEST.SOFT_NMS_SIGMA": "(0, inf)",
    "TEST.DETECTIONS_PER_IMAGE": "[1, inf)",
    "TEST.REFINE.NUM_STEPS": "[0, inf)",
    "TEST.REFINE.STEP_SIZE": "[0, inf)",
    "TEST.REFINE.EARLY_STOP": "[0, inf)",
    "TEST.REFINE.DEGENERATION": "[-inf, 0]",
    "TEST.REFINE.SIZE_STEP_SIZE": "[0, inf)",
}
NUM_LEVELS = 5  # FPN levels; each has anchors of one size


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raise `ConfigError`, which names the key, if a number of a configuration is out of range.

    Args:
        values: Dict from the full name of every key to its value.
    """
    for key, interval in RANGES.items():
        value = values[key]
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(_lies_in(number, interval) for number in numbers):
            subject = f"every number in {key}" if isinstance(value, tuple) else key
            raise ConfigError(f"{subject} must {_in_words(interval)}; got {value}")
    if len(sizes := values["MODEL.RPN.ANCHOR_SIZES"]) != NUM_LEVELS:
        raise ConfigError(f"MODEL.RPN.ANCHOR_SIZES must have {NUM_LEVELS} numbers, one per level; got {sizes}")
    for key in ("MODEL.RPN.ASPECT_RATIOS", "MODEL.ENERGY_HEAD.NOISE_STDS"):
        if not values[key]:
            raise ConfigError(f"{key} must not be empty; give at least one number")
    if values["INPUT.MIN_SIZE"] > values["INPUT.MAX_SIZE"]:
        raise ConfigError(
            f"INPUT.MIN_SIZE {values['INPUT.MIN_SIZE']} (short side of the images) must not exceed INPUT.MAX_SIZE "
            f"{values['INPUT.MAX_SIZE']} (long side)"
        )


def _limits(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def _lies_in(number: Any, interval: str) -> bool:
    """Whether `number` lies in the interval, where a parenthesis excludes its limit and a bracket includes it."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    low, high = _limits(interval)
    above = low < number if interval[0] == "(" else low <= number
    return above and (number < high if interval[-1] == ")" else number <= high)


def _in_words(interval: str) -> str:
    low, high = _limits(interval)
    if high == math.inf:
        return "be positive" if interval[0] == "(" and low == 0 else f"be at least {low:g}"
    return f"be at most {high:g}" if low == -math.inf else f"lie in {interval}"
