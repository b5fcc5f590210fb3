"""The branch that predicts how well a box fits: PrRoI pooling, two fully connected layers, one IoU per class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from prroi_pool import MultiScalePrRoIPool

from ..errors import check_choice
from .precision import autocast_as, in_float32


class HiddenLayers(TwoMLPHead):
    """Two fully connected layers with ReLU, of torchvision's names.

    He initialisation keeps the size of features and gradients, where torch's default for linear layers shrinks their
    variance by six in each.
    """

    def __init__(self, in_channels: int, hidden_dim: int):
        super().__init__(in_channels, hidden_dim)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


class IoUHead(nn.Module):
    """IoU predictor (paper, section 3.1 and figure 4).

    The last layer predicts ``2 IoU - 1``, in [-1, 1], for every class; with the loss "bce" it predicts the logit of the
    IoU. Column l is that of label l, column 0 (the background, as in torchvision's box predictor) is neither trained
    nor read.

    Args:
        roi_pool: continuous in the boxes, so that the prediction has a gradient with respect to them.
        in_channels: of the feature pyramid.
        num_classes: classes with the background, C + 1.
        hidden_dim: width of the two fully connected layers; the paper's 1024.
        loss: of :func:`iou_loss`.

    Raises:
        OptionError: an unknown loss.
    """

    def __init__(
        self,
        roi_pool: MultiScalePrRoIPool,
        *,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 1024,
        loss: str = "smooth_l1",
    ):
        super().__init__()
        check_choice("loss", loss, ("smooth_l1", "bce"))
        self.roi_pool = roi_pool
        self.loss_kind = loss
        pooled_height, pooled_width = roi_pool.output_size
        self.mlp = HiddenLayers(in_channels * pooled_height * pooled_width, hidden_dim)
        self.predictor = nn.Linear(hidden_dim, num_classes)
        # Small, so that all predictions start close to an IoU of 0.5.
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    def forward(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: Tensor,
        image_sizes: list[tuple[int, int]],
        levels: Tensor | None = None,
    ) -> Tensor:
        """Predicted IoUs, differentiable in the boxes.

        Args:
            features: level name → Tensor[B, C, H, W].
            boxes (list of B Tensor[K_i, 4]): xyxy in pixels of the resized images.
            labels (Tensor[K]): class of each box, all images' one after the other; 0: not known, and the prediction is
                the highest of the classes'.
            image_sizes: (height, width) of the resized images.
            levels (Tensor[K]): pyramid level of each box; None: from its size. Refinement fixes it: a box that
                changes level jumps in predicted IoU.

        Returns:
            Tensor[K]: IoUs, in [0, 1] up to the regression's overshoot.
        """
        output = self._output(features, boxes, labels, image_sizes, levels)
        return output.sigmoid() if self.loss_kind == "bce" else (output + 1) / 2

    def loss(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: Tensor,
        image_sizes: list[tuple[int, int]],
        true_ious: Tensor,
    ) -> Tensor:
        """The loss of the predictions for boxes of known IoUs, Tensor[K]; the other arguments as in ``forward``."""
        return iou_loss(self._output(features, boxes, labels, image_sizes), true_ious, self.loss_kind)

    def _output(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: Tensor,
        image_sizes: list[tuple[int, int]],
        levels: Tensor | None = None,
    ) -> Tensor:
        """Of the last layer, each box's for its class: Tensor[K]."""
        pooled = self.roi_pool(features, boxes, image_sizes, levels)
        if self.training:
            with autocast_as(pooled):
                hidden = self.mlp(pooled)
        else:
            # bfloat16 rounds an IoU of 0.8 to within 0.002, which is coarser than refinement's early_stop.
            hidden = in_float32(self.mlp, pooled)
        all_classes = in_float32(self.predictor, hidden)
        of_class = all_classes.gather(1, labels[:, None])[:, 0]
        return torch.where(labels == 0, all_classes[:, 1:].amax(1), of_class)

    def assign_levels(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        """Pyramid level of each box by its size, for ``forward(..., levels=...)``: Tensor[K]."""
        return self.roi_pool.assign_levels(features, boxes, image_sizes)


def iou_loss(output: Tensor, true_ious: Tensor, kind: str = "smooth_l1") -> Tensor:
    """Mean over the boxes; zero (with a gradient) for none.

    Args:
        output (Tensor[K]): of the last layer.
        true_ious (Tensor[K]): in [0, 1].
        kind: "smooth_l1" as in the paper, of ``output`` and ``2 IoU - 1``; or "bce", binary cross-entropy of
            ``sigmoid(output)`` and the IoU.
    """
    if kind == "bce":
        total = F.binary_cross_entropy_with_logits(output, true_ious, reduction="sum")
    else:
        total = F.smooth_l1_loss(output, 2 * true_ious - 1, reduction="sum")
    return total / max(output.numel(), 1)
