"""Build objects and options from a configuration. Only this module and `iounet.config` read configuration keys."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.transforms.v2 import Compose
from yacs.config import CfgNode

from prroi_pool import MultiScalePrRoIPool

from .config import DECODING, changed_settings, config_from_yaml, describe_scaling, for_new_heads, scale_learning_rate
from .data import CocoDataset, build_transforms, check_categories, check_separate, open_dataset
from .devices import build_device
from .errors import CheckpointError, ConfigError, OptionError, check_choice
from .jobs import EvaluationJob, HeadsJob, TrainingJob
from .modeling import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AnchorGenerator,
    EnergyHead,
    HiddenLayers,
    ImageTransform,
    IoUHead,
    IoUNet,
    RoIHeads,
    RPNHead,
    fpn_backbone,
)
from .postprocess import NMSOptions, Postprocessing, RefinementOptions
from .training import BoxNoise, learning_rate_schedule, sample_energy_boxes, sample_iou_boxes
from .training.checkpoint import load_backbone_weights, load_checkpoint, load_detector_weights, load_weights_file
from .wording import counted

POOLED_SIZE = 7


@contextmanager
def _naming(**keys: str) -> Iterator[None]:
    """Turn an `OptionError` about an argument into a `ConfigError` about its key, given as `argument="KEY"`."""
    try:
        yield
    except OptionError as error:
        raise ConfigError(f"{keys.get(error.argument, error.argument)} {error.problem}") from error


def configured_device(cfg: CfgNode) -> torch.device:
    """Return the device of MODEL.DEVICE. Raises the same errors as `build_device`."""
    return build_device(cfg.MODEL.DEVICE)


def build_detector(cfg: CfgNode) -> IoUNet:
    """Build the detector of a configuration on the CPU.

    Weights are random, except for a backbone with MODEL.BACKBONE.WEIGHTS.

    Raises:
        ConfigError: MODEL.NUM_CLASSES is not set, or a value is out of range.
        CheckpointError: MODEL.BACKBONE.WEIGHTS cannot be used.
    """
    if cfg.MODEL.NUM_CLASSES < 1:
        raise ConfigError(
            "MODEL.NUM_CLASSES is not set; set it to the number of classes without the background "
            "(iounet-train takes it from the training annotations)"
        )
    num_classes = cfg.MODEL.NUM_CLASSES + 1  # torchvision counts the background as a class
    backbone_weights = cfg.MODEL.BACKBONE.WEIGHTS
    backbone_arguments = ("name", "norm", "trainable_layers", "weights")
    with _naming(**{argument: f"MODEL.BACKBONE.{argument.upper()}" for argument in backbone_arguments}):
        backbone = fpn_backbone(
            cfg.MODEL.BACKBONE.NAME,
            out_channels=cfg.MODEL.FPN.CHANNELS,
            norm=cfg.MODEL.BACKBONE.NORM,
            norm_eps=cfg.MODEL.BACKBONE.NORM_EPS,
            trainable_layers=cfg.MODEL.BACKBONE.TRAINABLE_LAYERS,
            weights=load_weights_file(backbone_weights) if backbone_weights else None,
        )
    channels = cfg.MODEL.FPN.CHANNELS

    levels = len(cfg.MODEL.RPN.ANCHOR_SIZES)
    anchors = AnchorGenerator(
        sizes=tuple((size,) for size in cfg.MODEL.RPN.ANCHOR_SIZES),
        aspect_ratios=(cfg.MODEL.RPN.ASPECT_RATIOS,) * levels,
    )
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": cfg.MODEL.RPN.PRE_NMS_TRAIN, "testing": cfg.MODEL.RPN.PRE_NMS_TEST},
        post_nms_top_n={"training": cfg.MODEL.RPN.POST_NMS_TRAIN, "testing": cfg.MODEL.RPN.POST_NMS_TEST},
        nms_thresh=0.7,
    )

    def roi_pool(canonical_scale: int = 0) -> MultiScalePrRoIPool:
        scale = canonical_scale or cfg.MODEL.FPN.CANONICAL_SCALE
        return MultiScalePrRoIPool(["0", "1", "2", "3"], POOLED_SIZE, canonical_scale=scale, canonical_level=4)

    box_hidden_dim = cfg.MODEL.BOX_HEAD.HIDDEN_DIM
    roi_heads = RoIHeads(
        box_roi_pool=roi_pool(),
        box_head=HiddenLayers(channels * POOLED_SIZE**2, box_hidden_dim),
        box_predictor=FastRCNNPredictor(box_hidden_dim, num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=cfg.MODEL.BOX_HEAD.BOXES_PER_IMAGE,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=cfg.TEST.SCORE_THRESHOLD,
        nms_thresh=cfg.TEST.NMS_THRESHOLD,
        detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    with _naming(loss="MODEL.IOU_HEAD.LOSS"):
        iou_head = IoUHead(
            roi_pool(cfg.MODEL.IOU_HEAD.CANONICAL_SCALE),
            in_channels=channels,
            num_classes=num_classes,
            hidden_dim=cfg.MODEL.IOU_HEAD.HIDDEN_DIM,
            loss=cfg.MODEL.IOU_HEAD.LOSS,
            class_agnostic=cfg.MODEL.IOU_HEAD.CLASS_AGNOSTIC,
        )
    with _naming(loss="MODEL.ENERGY_HEAD.LOSS"):
        check_choice("loss", cfg.MODEL.ENERGY_HEAD.LOSS, ("none", "nce", "nce+"))
    energy_head = None
    if cfg.MODEL.ENERGY_HEAD.LOSS != "none":
        energy_head = EnergyHead(
            roi_pool(cfg.MODEL.ENERGY_HEAD.CANONICAL_SCALE),
            in_channels=channels,
            num_classes=num_classes,
            hidden_dim=cfg.MODEL.ENERGY_HEAD.HIDDEN_DIM,
            class_agnostic=cfg.MODEL.ENERGY_HEAD.CLASS_AGNOSTIC,
        )
    with _naming(objective="TEST.REFINE.OBJECTIVE"):
        detector = IoUNet(
            transform=ImageTransform(cfg.INPUT.MIN_SIZE, cfg.INPUT.MAX_SIZE, IMAGENET_MEAN, IMAGENET_STD),
            backbone=backbone,
            rpn=rpn,
            roi_heads=roi_heads,
            iou_head=iou_head,
            sample_iou_boxes=partial(
                sample_iou_boxes, num_boxes=cfg.MODEL.IOU_HEAD.BOXES_PER_IMAGE, min_iou=cfg.MODEL.IOU_HEAD.MIN_IOU
            ),
            iou_loss_weight=cfg.MODEL.IOU_HEAD.LOSS_WEIGHT,
            num_iou_candidates=cfg.MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE,
            energy_head=energy_head,
            sample_energy_boxes=_energy_sampler(cfg),
            energy_loss_weight=cfg.MODEL.ENERGY_HEAD.LOSS_WEIGHT,
            standalone=cfg.MODEL.STANDALONE,
            amp=cfg.MODEL.AMP,
            cuda_graphs=cfg.TEST.CUDA_GRAPHS,
            postprocessing=_postprocessing(cfg),
        )
    return detector.to(memory_format=torch.channels_last)


def _energy_sampler(cfg: CfgNode) -> Callable[[list[Tensor]], tuple[list[Tensor], Tensor, Tensor]]:
    with _naming(stds="MODEL.ENERGY_HEAD.NOISE_STDS"):
        noise = BoxNoise(tuple(cfg.MODEL.ENERGY_HEAD.NOISE_STDS))
    target_noise = cfg.MODEL.ENERGY_HEAD.TARGET_NOISE if cfg.MODEL.ENERGY_HEAD.LOSS == "nce+" else 0.0
    return partial(
        sample_energy_boxes,
        num_boxes=cfg.MODEL.ENERGY_HEAD.BOXES_PER_IMAGE,
        noise=noise,
        target_noise=target_noise,
    )


def _postprocessing(cfg: CfgNode) -> Postprocessing:
    with _naming(
        kind="TEST.NMS",
        threshold="TEST.NMS_THRESHOLD",
        ranking="TEST.NMS_RANKING",
        soft_sigma="TEST.SOFT_NMS_SIGMA",
        max_detections="TEST.DETECTIONS_PER_IMAGE",
        final_score="TEST.FINAL_SCORE",
    ):
        nms = NMSOptions(
            kind=cfg.TEST.NMS,
            threshold=cfg.TEST.NMS_THRESHOLD,
            ranking=cfg.TEST.NMS_RANKING,
            soft_sigma=cfg.TEST.SOFT_NMS_SIGMA,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        keys = {field.name: field.name.upper() for field in fields(RefinementOptions)}
        with _naming(**{name: f"TEST.REFINE.{key}" for name, key in keys.items()}):
            refinement = RefinementOptions(**{name: cfg.TEST.REFINE[key] for name, key in keys.items()})
        return Postprocessing(nms, refinement, cfg.TEST.REFINE_BEFORE_NMS, cfg.TEST.FINAL_SCORE)


def load_detector(path: str | Path, device: torch.device) -> tuple[IoUNet, list[dict], str]:
    """Build the detector of a checkpoint written by iounet-train and load its weights.

    Returns:
        The detector on the device, its categories, and the YAML text of its configuration.

    Raises:
        CheckpointError: The file is missing, damaged, or not a checkpoint of this project.
        ConfigError: The checkpoint's configuration has keys that this version does not know.
    """
    checkpoint = load_checkpoint(path)
    cfg = config_from_yaml(checkpoint["config"], str(path))
    cfg.MODEL.AMP &= device.type != "cpu"  # bfloat16 is slower on most CPUs
    return _trained_detector(cfg, checkpoint, path).to(device), checkpoint["categories"], checkpoint["config"]


def _trained_detector(cfg: CfgNode, checkpoint: dict, path: str | Path) -> IoUNet:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.WEIGHTS = ""  # only where training started; the checkpoint has all weights
    detector = build_detector(cfg)
    load_detector_weights(detector, checkpoint["model"], str(path), need_iou_head=True)
    return detector


def build_evaluation(cfg: CfgNode, weights: str | None = None, *, device: torch.device) -> EvaluationJob:
    """Build the evaluation of a checkpoint on DATA.VAL_*.

    Args:
        weights: Path of the checkpoint; None for MODEL.WEIGHTS.
        device: Where to put the detector.

    Raises:
        CheckpointError: The file is missing or damaged, or was trained with another architecture or another value of a
            `DECODING` key.
        ConfigError: As `build_detector` and `load_detector`, or no weights are given.
        DataError: As `iounet.data.open_dataset`, or the categories of the checkpoint and the data set differ.
    """
    weights = weights or cfg.MODEL.WEIGHTS
    if not weights:
        raise ConfigError("MODEL.WEIGHTS is not set; set it to the checkpoint to evaluate")
    dataset = _dataset(cfg, "val")
    checkpoint = load_checkpoint(weights)
    check_categories(checkpoint["categories"], dataset, str(weights))
    changes = changed_settings(config_from_yaml(checkpoint["config"], str(weights)), cfg)
    refused = [change for key, change in changes.items() if key in DECODING]
    if refused:
        raise CheckpointError(
            f"{weights} was trained with other settings (training → now): {', '.join(refused)}; evaluate with "
            "the settings of training"
        )
    detector = _trained_detector(_with_num_classes(cfg, dataset), checkpoint, weights)
    return _evaluation(cfg, detector.to(device), dataset)


def build_training(cfg: CfgNode, *, device: torch.device, num_processes: int) -> TrainingJob:
    """Build everything that training needs.

    Args:
        device: Device of this process.
        num_processes: Number of processes that train together.

    Raises:
        ConfigError: A key is not set, or a value is out of range.
        CheckpointError: MODEL.BACKBONE.WEIGHTS cannot be used.
        DataError: As `iounet.data.open_dataset`, or training and validation have different categories or
            the same images.
    """
    _check_solver(cfg, device, num_processes)
    train_set, val_set = _dataset(cfg, "train"), _dataset(cfg, "val")
    check_separate(train_set, val_set)
    check_categories(train_set.categories, val_set, str(train_set.annotation_file))
    given, cfg = cfg, scale_learning_rate(_with_num_classes(cfg, train_set))
    torch.manual_seed(cfg.SEED)  # the same initial weights in every process
    detector = build_detector(cfg).to(device)
    optimizer = build_optimizer(cfg, detector)
    return TrainingJob(
        detector=detector,
        initial_weights=cfg.MODEL.WEIGHTS,
        dataset=train_set,
        optimizer=optimizer,
        schedule=build_schedule(cfg, optimizer),
        evaluation=_evaluation(cfg, detector, val_set),
        config=cfg.dump(),
        notes=describe_scaling(given, cfg, len(train_set)),
        seed=cfg.SEED,
        batch_size=cfg.SOLVER.GLOBAL_BATCH_SIZE // num_processes,
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        num_workers=cfg.DATA.NUM_WORKERS,
        max_iterations=cfg.SOLVER.MAX_ITERATIONS,
        clip_gradient=cfg.SOLVER.CLIP_GRADIENT,
        log_period=cfg.SOLVER.LOG_PERIOD,
        checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
        eval_period=cfg.SOLVER.EVAL_PERIOD,
        output_dir=Path(cfg.OUTPUT_DIR),
    )


def build_heads(path: str | Path, num_classes: int, *, num_iterations: int, device: torch.device) -> HeadsJob:
    """Build new heads on a checkpoint's backbone, see `iounet.config.for_new_heads`.

    Raises the same errors as `load_detector`.
    """
    checkpoint = load_checkpoint(path)
    cfg = for_new_heads(config_from_yaml(checkpoint["config"], str(path)), num_classes, num_iterations)
    cfg.MODEL.AMP &= device.type != "cpu"
    torch.manual_seed(cfg.SEED)
    detector = build_detector(cfg)
    load_backbone_weights(detector, checkpoint["model"], str(path))
    optimizer = build_optimizer(cfg, detector.to(device))
    return HeadsJob(
        detector=detector,
        optimizer=optimizer,
        schedule=build_schedule(cfg, optimizer),
        transforms=_transforms(cfg, train=True),
        batch_size=cfg.SOLVER.GLOBAL_BATCH_SIZE,
        num_workers=cfg.DATA.NUM_WORKERS,
        num_iterations=num_iterations,
        clip_gradient=cfg.SOLVER.CLIP_GRADIENT,
    )


def _check_solver(cfg: CfgNode, device: torch.device, num_processes: int) -> None:
    batch_size, parts = cfg.SOLVER.GLOBAL_BATCH_SIZE, cfg.SOLVER.ACCUMULATION_STEPS
    if batch_size % (num_processes * parts):
        processes = counted(num_processes, "process", "processes")
        raise ConfigError(
            f"SOLVER.GLOBAL_BATCH_SIZE {batch_size} cannot be divided equally among {processes}"
            + (f" with SOLVER.ACCUMULATION_STEPS {parts}" if parts > 1 else "")
            + f"; choose a multiple of {num_processes * parts}"
        )
    under_torchrun = num_processes > 1 or torch.distributed.is_initialized()
    if cfg.MODEL.BACKBONE.NORM == "SyncBN" and under_torchrun and device.type != "cuda":
        raise ConfigError("MODEL.BACKBONE.NORM SyncBN under torchrun needs GPUs; on CPUs choose FrozenBN or BN")


def _evaluation(cfg: CfgNode, detector: IoUNet, dataset: CocoDataset) -> EvaluationJob:
    with _naming(calibrated_for="MODEL.IOU_HEAD.CALIBRATED_FOR"):
        check_choice("calibrated_for", cfg.MODEL.IOU_HEAD.CALIBRATED_FOR, ("candidates", "labels"))
    return EvaluationJob(
        detector,
        dataset,
        cfg.TEST.BATCH_SIZE_PER_DEVICE,
        cfg.DATA.NUM_WORKERS,
        Path(cfg.OUTPUT_DIR),
        cfg.MODEL.IOU_HEAD.CALIBRATED_FOR,
    )


def _with_num_classes(cfg: CfgNode, dataset: CocoDataset) -> CfgNode:
    """The configuration with MODEL.NUM_CLASSES set from a data set."""
    found = len(dataset.categories)
    if cfg.MODEL.NUM_CLASSES not in (0, found):
        raise ConfigError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {dataset.annotation_file} has {found} categories; "
            "set it to 0 to use the number in the file"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.NUM_CLASSES = found
    cfg.freeze()
    return cfg


def _dataset(cfg: CfgNode, split: str) -> CocoDataset:
    """The data set of DATA.TRAIN_* (`split="train"`, augmented) or DATA.VAL_* (`split="val"`)."""
    annotations, images, part = (cfg.DATA[f"{split.upper()}_{what}"] for what in ("ANNOTATIONS", "IMAGES", "SPLIT"))
    if not annotations:
        raise ConfigError(
            f"DATA.{split.upper()}_ANNOTATIONS is not set; set it to a COCO-format .json file, a data.yaml of YOLO "
            "labels, or a folder of Pascal VOC labels"
        )
    transforms = _transforms(cfg, train=split == "train")
    with _naming(bad_annotations="DATA.BAD_ANNOTATIONS"):
        return open_dataset(
            annotations,
            images or None,
            split=part,
            transforms=transforms,
            bad_annotations=cfg.DATA.BAD_ANNOTATIONS,
        )


def _transforms(cfg: CfgNode, *, train: bool) -> Compose:
    return build_transforms(
        train,
        horizontal_flip=cfg.INPUT.HORIZONTAL_FLIP,
        vertical_flip=cfg.INPUT.VERTICAL_FLIP,
        color_jitter=cfg.INPUT.COLOR_JITTER,
    )


def build_optimizer(cfg: CfgNode, detector: IoUNet) -> torch.optim.Optimizer:
    """Build SGD or AdamW over the trainable parameters.

    Raises:
        ConfigError: SOLVER.OPTIMIZER is neither.
    """
    # The fused version passes over the weights once instead of once per operation of the update.
    options = {"lr": cfg.SOLVER.BASE_LR, "weight_decay": cfg.SOLVER.WEIGHT_DECAY, "fused": True}
    trainable = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return torch.optim.SGD(trainable, momentum=cfg.SOLVER.MOMENTUM, **options)
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(trainable, **options)
    raise ConfigError(f"SOLVER.OPTIMIZER must be one of SGD, AdamW; got '{cfg.SOLVER.OPTIMIZER}'")


def build_schedule(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the learning-rate schedule of SOLVER; raise `ConfigError` if its values are inconsistent."""
    with _naming(warmup="SOLVER.WARMUP", decay="SOLVER.DECAY", steps="SOLVER.STEPS"):
        return learning_rate_schedule(
            optimizer,
            decay=cfg.SOLVER.DECAY,
            num_iterations=cfg.SOLVER.MAX_ITERATIONS,
            steps=cfg.SOLVER.STEPS,
            gamma=cfg.SOLVER.GAMMA,
            warmup=cfg.SOLVER.WARMUP,
            warmup_iterations=cfg.SOLVER.WARMUP_ITERATIONS,
            warmup_factor=cfg.SOLVER.WARMUP_FACTOR,
        )
