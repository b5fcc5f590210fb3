"""The network: ResNet-FPN, RPN, box branch and IoU head, put together in :class:`IoUNet`."""

from .backbone import resnet_fpn
from .detector import ImageFeatures, IoUNet
from .iou_head import HiddenLayers, IoUHead
from .roi_heads import RoIHeads
from .rpn import AnchorGenerator, RPNHead
from .state_dict import state_dict_faults

__all__ = [
    "AnchorGenerator",
    "HiddenLayers",
    "ImageFeatures",
    "IoUHead",
    "IoUNet",
    "RPNHead",
    "RoIHeads",
    "resnet_fpn",
    "state_dict_faults",
]
