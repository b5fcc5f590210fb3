"""The network: ResNet-FPN, RPN, box branch and IoU head, put together in :class:`IoUNet`."""

from .backbone import resnet_fpn
from .detector import ImageFeatures, IoUNet, Postprocessing, to_original
from .iou_head import HiddenLayers, IoUHead
from .roi_heads import RoIHeads

__all__ = [
    "HiddenLayers",
    "ImageFeatures",
    "IoUHead",
    "IoUNet",
    "Postprocessing",
    "RoIHeads",
    "resnet_fpn",
    "to_original",
]
