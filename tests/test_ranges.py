"""Ranges of the numbers in a configuration, and error messages for numbers out of range."""

import pytest
from yacs.config import CfgNode

from iounet.config import get_cfg, load_config
from iounet.errors import ConfigError
from iounet.ranges import RANGES


def numbers(node, prefix=""):
    """Full names of the keys whose values are numbers or tuples of numbers."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float, tuple)) and not isinstance(value, bool):
            yield f"{prefix}{key}"


def test_every_number_has_a_range():
    assert set(RANGES) == set(numbers(get_cfg()))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEED", "-1", "must lie in [0, 9223372036854775807]; got -1"),
        ("SEED", "9" * 30, f"must lie in [0, 9223372036854775807]; got {'9' * 30}"),
        ("MODEL.BACKBONE.TRAINABLE_LAYERS", "6", "must lie in [0, 5]; got 6"),
        ("MODEL.FPN.CHANNELS", "0", "must be at least 1; got 0"),
        ("MODEL.FPN.CANONICAL_SCALE", "0", "must be at least 1; got 0"),
        ("MODEL.RPN.ASPECT_RATIOS", "[]", "must not be empty; give at least one number"),
        ("MODEL.RPN.ASPECT_RATIOS", "[1, 0]", "must be positive; got (1, 0)"),
        ("MODEL.RPN.ANCHOR_SIZES", "[8, 16, 32, 64]", "must have 5 numbers, one per level; got (8, 16, 32, 64)"),
        ("MODEL.IOU_HEAD.MIN_IOU", "0", "must lie in (0, 1); got 0.0"),
        ("MODEL.IOU_HEAD.MIN_IOU", "1.0", "must lie in (0, 1); got 1.0"),
        ("MODEL.ENERGY_HEAD.NOISE_STDS", "[]", "must not be empty; give at least one number"),
        ("INPUT.MIN_SIZE", "0", "must be at least 1; got 0"),
        ("INPUT.MIN_SIZE", "1300", "1300 (short side of the images) must not exceed INPUT.MAX_SIZE 1200 (long side)"),
        ("INPUT.HORIZONTAL_FLIP", "2", "must lie in [0, 1]; got 2.0"),
        ("INPUT.VERTICAL_FLIP", "-0.5", "must lie in [0, 1]; got -0.5"),
        ("INPUT.COLOR_JITTER", "-0.1", "must be at least 0; got -0.1"),
        ("DATA.NUM_WORKERS", "-1", "must be at least 0; got -1"),
        ("SOLVER.BASE_LR", "-1", "must be positive; got -1.0"),
        ("SOLVER.BASE_LR", "nan", "must be positive; got nan"),
        ("SOLVER.BASE_LR", "1e999", "must be positive; got inf"),
        ("SOLVER.REFERENCE_BATCH_SIZE", "-1", "must be at least 0; got -1"),
        ("SOLVER.MOMENTUM", "1", "must lie in [0, 1); got 1.0"),
        ("SOLVER.STEPS", "['a', 'b']", "must be at least 1; got ('a', 'b')"),
        ("SOLVER.STEPS", "[True]", "must be at least 1; got (True,)"),
        ("SOLVER.CLIP_GRADIENT", "-1", "must be at least 0; got -1.0"),
        ("SOLVER.EVAL_PERIOD", "-1", "must be at least 0; got -1"),
        ("TEST.NMS_THRESHOLD", "2", "must lie in [0, 1]; got 2.0"),
        ("TEST.DETECTIONS_PER_IMAGE", "0", "must be at least 1; got 0"),
        ("TEST.REFINE.NUM_STEPS", "-1", "must be at least 0; got -1"),
        ("TEST.REFINE.DEGENERATION", "0.01", "must be at most 0; got 0.01"),
    ],
)
def test_a_number_out_of_range_names_its_key(key, value, message):
    with pytest.raises(ConfigError) as raised:
        load_config(None, [key, value])
    assert str(raised.value).removeprefix("every number in ").startswith(f"{key} {message}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", 2**63 - 1),
        ("INPUT.HORIZONTAL_FLIP", 1.0),
        ("INPUT.MIN_SIZE", 1200),
        ("SOLVER.STEPS", ()),
        ("SOLVER.GAMMA", 0.0),
        ("MODEL.IOU_HEAD.LOSS_WEIGHT", 0.0),
        ("TEST.SCORE_THRESHOLD", 0.0),
        ("TEST.REFINE.NUM_STEPS", 0),
        ("TEST.REFINE.DEGENERATION", float("-inf")),
    ],
)
def test_limits_are_in_range(key, value):
    group, _, name = key.rpartition(".")
    cfg = load_config(None, [key, str(value)])
    for part in group.split(".") if group else []:
        cfg = cfg[part]
    assert cfg[name] == value
