"""The network: ResNet-FPN, RPN, box branch and IoU head, put together in :class:`IoUNet`."""

from .backbone import resnet_fpn
from .detector import ImageFeatures, IoUNet, to_original
from .iou_head import HiddenLayers, IoUHead
from .postprocessing import Postprocessing
from .roi_heads import RoIHeads
from .rpn import AnchorGenerator, RPNHead

__all__ = [
    "AnchorGenerator",
    "HiddenLayers",
    "ImageFeatures",
    "IoUHead",
    "IoUNet",
    "Postprocessing",
    "RPNHead",
    "RoIHeads",
    "resnet_fpn",
    "to_original",
]
