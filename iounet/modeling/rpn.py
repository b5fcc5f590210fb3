"""torchvision's region proposal network (RPN) with anchors, scores and offsets in float32.

Under autocast, maps are in bfloat16, with eight significant bits. torchvision would compute anchors and boxes in
bfloat16, which moves an edge at 1,000 pixels by up to two pixels, and would rank proposals by scores with many ties.
"""

from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead as TorchvisionRPNHead

from .precision import at_least_float32, autocast_as, in_float32


class AnchorGenerator(TorchvisionAnchorGenerator):
    """torchvision's anchor generator with anchors in at least float32, whatever the dtype of the maps."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        # torchvision reads only shape, dtype and device of the maps.
        like_maps = [at_least_float32(level.new_empty(1)).expand(level.shape) for level in feature_maps]
        return super().forward(image_list, like_maps)


class RPNHead(TorchvisionRPNHead):
    """torchvision's RPN head with outputs in at least float32; the hidden layer computes in the maps' dtype."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, offsets = [], []
        for level in x:
            with autocast_as(level):
                hidden = self.conv(level)
            objectness.append(in_float32(self.cls_logits, hidden))
            offsets.append(in_float32(self.bbox_pred, hidden))
        return objectness, offsets
