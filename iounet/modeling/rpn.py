"""torchvision's RPN, in float32 where it says where things are.

Under autocast maps, and what is predicted from them, are in bfloat16, of eight significant bits. torchvision computes
anchors and decodes boxes in that dtype, which moves an edge at 1,000 pixels by up to two, and ranks proposals by scores
that many of them share.
"""

from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead as TorchvisionRPNHead

from .precision import at_least_float32, autocast_as, in_float32


class AnchorGenerator(TorchvisionAnchorGenerator):
    """Anchors in float32 at least, whatever the dtype of the maps."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        # Of the maps only shape, dtype and device are looked at.
        like_maps = [at_least_float32(level.new_empty(1)).expand(level.shape) for level in feature_maps]
        return super().forward(image_list, like_maps)


class RPNHead(TorchvisionRPNHead):
    """Its last layers, of objectness and box offsets, are in float32 at least; the hidden one is as the maps."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, offsets = [], []
        for level in x:
            with autocast_as(level):
                hidden = self.conv(level)
            objectness.append(in_float32(self.cls_logits, hidden))
            offsets.append(in_float32(self.bbox_pred, hidden))
        return objectness, offsets
