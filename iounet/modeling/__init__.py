"""The network: backbone with a feature pyramid, RPN, box branch, IoU head and energy head, combined in `IoUNet`."""

from .backbone import IMAGENET_MEAN, IMAGENET_STD, fpn_backbone
from .box_function import BoxFunction, HiddenLayers
from .detector import ImageFeatures, IoUNet
from .energy_head import EnergyHead, first_of_each, nce_loss
from .iou_head import IoUHead
from .roi_heads import RoIHeads
from .rpn import AnchorGenerator, RPNHead
from .state_dict import state_dict_faults
from .transform import ImageTransform

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AnchorGenerator",
    "BoxFunction",
    "EnergyHead",
    "HiddenLayers",
    "ImageTransform",
    "ImageFeatures",
    "IoUHead",
    "IoUNet",
    "RPNHead",
    "RoIHeads",
    "first_of_each",
    "nce_loss",
    "fpn_backbone",
    "state_dict_faults",
]
