"""From a configuration to objects: the only place below tools/ that reads one."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from yacs.config import CfgNode

from prroi_pool import MultiScalePrRoIPool

from .config import ConfigError
from .data import CocoDataset, build_transforms
from .modeling import AnchorGenerator, HiddenLayers, IoUHead, IoUNet, Postprocessing, RoIHeads, RPNHead, resnet_fpn
from .training import learning_rate_schedule, sample_iou_boxes
from .training.checkpoint import load_checkpoint, load_detector_weights, load_weights_file, select_categories

# What ImageNet classifiers, ours among them, expect of RGB in [0, 1].
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
POOLED_SIZE = 7


def build_device(name: str) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1"; "auto": a GPU if there is one, else the CPU.

    Raises:
        ConfigError: torch knows no such device, sees no such GPU, or was built without support for the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'; choose cpu, cuda, cuda:1 (the second GPU) or auto") from None
    if device.type == "cuda":
        # Not a trial as below: each process of torchrun would take memory of the first GPU. cuda:999 overflows to -25.
        if not 0 <= (device.index or 0) < torch.cuda.device_count():
            raise ConfigError(f"no device {name}: torch sees {torch.cuda.device_count()} GPUs; choose cpu or auto")
        return device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # what torch says here is pages long
        raise ConfigError(f"device {name} cannot be used with this torch; choose cpu or auto") from None
    return device


@contextmanager
def _naming_the_key() -> Iterator[None]:
    """Makes a constructor's ValueError, which names the key, the error that the tools print without a traceback."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


@_naming_the_key()
def build_detector(cfg: CfgNode) -> IoUNet:
    """The detector of a configuration, with random weights but for those of MODEL.BACKBONE.WEIGHTS; on the CPU.

    Raises:
        ConfigError: MODEL.NUM_CLASSES is not set, or a value is out of range.
    """
    if cfg.MODEL.NUM_CLASSES < 1:
        raise ConfigError(
            "MODEL.NUM_CLASSES is not set: give the number of classes without the background "
            "(tools/train.py takes it from the training annotations)"
        )
    num_classes = cfg.MODEL.NUM_CLASSES + 1  # with the background, as torchvision counts
    backbone_weights = cfg.MODEL.BACKBONE.WEIGHTS
    backbone = resnet_fpn(
        cfg.MODEL.BACKBONE.NAME,
        out_channels=cfg.MODEL.FPN.CHANNELS,
        norm=cfg.MODEL.BACKBONE.NORM,
        norm_eps=cfg.MODEL.BACKBONE.NORM_EPS,
        trainable_layers=cfg.MODEL.BACKBONE.TRAINABLE_LAYERS,
        weights=load_weights_file(backbone_weights) if backbone_weights else None,
    )
    channels = backbone.out_channels

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

    def roi_pool() -> MultiScalePrRoIPool:
        return MultiScalePrRoIPool(
            ["0", "1", "2", "3"], POOLED_SIZE, canonical_scale=cfg.MODEL.FPN.CANONICAL_SCALE, canonical_level=4
        )

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
    iou_head = IoUHead(
        roi_pool(),
        in_channels=channels,
        num_classes=num_classes,
        hidden_dim=cfg.MODEL.IOU_HEAD.HIDDEN_DIM,
        loss=cfg.MODEL.IOU_HEAD.LOSS,
    )
    detector = IoUNet(
        transform=GeneralizedRCNNTransform(cfg.INPUT.MIN_SIZE, cfg.INPUT.MAX_SIZE, IMAGENET_MEAN, IMAGENET_STD),
        backbone=backbone,
        rpn=rpn,
        roi_heads=roi_heads,
        iou_head=iou_head,
        sample_iou_boxes=partial(
            sample_iou_boxes, num_boxes=cfg.MODEL.IOU_HEAD.BOXES_PER_IMAGE, min_iou=cfg.MODEL.IOU_HEAD.MIN_IOU
        ),
        iou_loss_weight=cfg.MODEL.IOU_HEAD.LOSS_WEIGHT,
        standalone=cfg.MODEL.STANDALONE,
        amp=cfg.MODEL.AMP,
        cuda_graphs=cfg.TEST.REFINE.CUDA_GRAPHS,
        postprocessing=Postprocessing(
            nms=cfg.TEST.NMS,
            nms_threshold=cfg.TEST.NMS_THRESHOLD,
            ranking=cfg.TEST.RANKING,
            detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            refinement_steps=cfg.TEST.REFINE.STEPS,
            step_size=cfg.TEST.REFINE.STEP_SIZE,
            early_stop=cfg.TEST.REFINE.EARLY_STOP,
            degeneration=cfg.TEST.REFINE.DEGENERATION,
            coordinates=cfg.TEST.REFINE.COORDINATES,
            accept=cfg.TEST.REFINE.ACCEPT,
            refine_before_nms=cfg.TEST.REFINE.BEFORE_NMS,
            final_score=cfg.TEST.FINAL_SCORE,
        ),
    )
    return detector.to(memory_format=torch.channels_last)


def load_detector(cfg: CfgNode, weights: str | Path, dataset: CocoDataset) -> IoUNet:
    """The detector of a configuration with the weights of a checkpoint that was trained on the data set's categories.

    Raises:
        CheckpointError: the file is missing, damaged, or of another architecture.
        ConfigError: as `build_detector`; the categories are not those of the data set.
    """
    checkpoint = load_checkpoint(weights)
    check_categories(checkpoint["categories"], dataset, str(weights))
    detector = build_detector(with_num_classes(cfg, dataset))
    load_detector_weights(detector, checkpoint["model"], str(weights), need_iou_head=True)
    return detector


def with_num_classes(cfg: CfgNode, dataset: CocoDataset) -> CfgNode:
    """The configuration with MODEL.NUM_CLASSES filled in from a data set."""
    found = len(dataset.categories)
    if cfg.MODEL.NUM_CLASSES not in (0, found):
        raise ConfigError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {dataset.annotation_file} has {found} categories; "
            "leave it at 0 to take the file's number"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.NUM_CLASSES = found
    cfg.freeze()
    return cfg


def check_categories(categories: list[dict], dataset: CocoDataset, source: str) -> None:
    """Raises ConfigError unless the categories, of ``source``, are those of the data set."""
    if categories != dataset.categories:
        raise ConfigError(
            f"the categories of {source} are {categories[:3]}..., those of {dataset.annotation_file} "
            f"{dataset.categories[:3]}...: ids and names must agree, or labels would mean different classes"
        )


def load_initial_weights(cfg: CfgNode, detector: IoUNet, category_ids: list[int]) -> None:
    """Loads MODEL.WEIGHTS: a checkpoint of this project, or a plain Faster R-CNN of torchvision without an IoU head.

    Raises:
        CheckpointError: the file is damaged or of another architecture.
        ConfigError: MODEL.STANDALONE without MODEL.WEIGHTS.
    """
    if not cfg.MODEL.WEIGHTS:
        if cfg.MODEL.STANDALONE:
            raise ConfigError(
                "MODEL.STANDALONE trains the IoU head of a finished detector: give one with MODEL.WEIGHTS"
            )
        return
    content = load_weights_file(cfg.MODEL.WEIGHTS)
    weights = content.get("model", content)
    if "roi_heads.box_predictor.cls_score.bias" in weights:
        weights = select_categories(weights, category_ids)
    load_detector_weights(detector, weights, cfg.MODEL.WEIGHTS, need_iou_head=False)


def build_dataset(cfg: CfgNode, split: str) -> CocoDataset:
    """The data set of DATA.TRAIN_* (``split="train"``, augmented) or DATA.VAL_* (``split="val"``).

    Raises:
        ConfigError: the keys are not set.
        DataError: as :class:`CocoDataset`.
    """
    annotations, images = (cfg.DATA[f"{split.upper()}_{what}"] for what in ("ANNOTATIONS", "IMAGES"))
    if not annotations or not images:
        raise ConfigError(
            f"DATA.{split.upper()}_ANNOTATIONS and DATA.{split.upper()}_IMAGES are not set: "
            "give a COCO-form .json and the folder of its images"
        )
    transforms = build_transforms(
        split == "train",
        horizontal_flip=cfg.INPUT.HORIZONTAL_FLIP,
        vertical_flip=cfg.INPUT.VERTICAL_FLIP,
        color_jitter=cfg.INPUT.COLOR_JITTER,
    )
    return CocoDataset(annotations, images, transforms=transforms, bad_annotations=cfg.DATA.BAD_ANNOTATIONS)


@_naming_the_key()
def build_optimizer(cfg: CfgNode, detector: IoUNet) -> torch.optim.Optimizer:
    """SGD or AdamW over what trains."""
    # Fused: one pass over the weights instead of one for each of the update's operations.
    options = {"lr": cfg.SOLVER.BASE_LR, "weight_decay": cfg.SOLVER.WEIGHT_DECAY, "fused": True}
    trainable = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return torch.optim.SGD(trainable, momentum=cfg.SOLVER.MOMENTUM, **options)
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(trainable, **options)
    raise ValueError(f"unknown optimizer '{cfg.SOLVER.OPTIMIZER}': SOLVER.OPTIMIZER is SGD or AdamW")


@_naming_the_key()
def build_schedule(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
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
