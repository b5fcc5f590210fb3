"""torchvision's RPN, kept in float32 where it says where things are.

Under autocast maps, and what is predicted from them, are in bfloat16, of eight significant bits. torchvision computes
anchors and decodes boxes in that dtype, which moves an edge at 1,000 pixels by up to two, and ranks proposals by scores
that many of them share.
"""

from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead as TorchvisionRPNHead

from .precision import at_least_float32, autocast_as


class AnchorGenerator(TorchvisionAnchorGenerator):
    """Anchors in float32 at least, whatever the dtype of the maps."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        # Of the maps only shape, dtype and device are looked at.
        like_maps = [at_least_float32(level.new_empty(1)).expand(level.shape) for level in feature_maps]
        return super().forward(image_list, like_maps)


class RPNHead(TorchvisionRPNHead):
    """Objectness and box offsets in float32 at least, whatever the dtype in which they were computed."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        with autocast_as(x[0]):
            objectness, offsets = super().forward(x)
        return [at_least_float32(level) for level in objectness], [at_least_float32(level) for level in offsets]
