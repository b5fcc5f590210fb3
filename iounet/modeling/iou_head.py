"""The IoU head: predicts the IoU of a box with its object (paper, section 3.1 and figure 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prroi_pool import MultiScalePrRoIPool

from ..errors import check_choice
from .box_function import BoxFunction

# IoUs are kept at least this far from 0 and 1, where the logit is infinite.
LOGIT_EPS = 1e-6


class IoUHead(BoxFunction):
    """Head that predicts the IoU of a box with its object, for each class.

    With the loss "smooth_l1", the last layer predicts ``2 IoU - 1``; with "bce", it predicts the logit of the IoU.
    Predictions start close to an IoU of 0.5.

    Attributes:
        calibration (Tensor[2]): slope and offset of Platt scaling, fitted after training: the calibrated IoU is
            ``sigmoid(slope * output + offset)``. A positive slope preserves the order of the predictions; a slope of 0
            means that the head is not calibrated.

    Args:
        roi_pool: as in `BoxFunction`.
        in_channels: as in `BoxFunction`.
        num_classes: as in `BoxFunction`.
        hidden_dim: as in `BoxFunction`.
        loss: "smooth_l1", as in the paper, or "bce"; see `iou_loss`.
        class_agnostic: as in `BoxFunction`.

    Raises:
        OptionError: ``loss`` is unknown.
    """

    def __init__(
        self,
        roi_pool: MultiScalePrRoIPool,
        *,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 1024,
        loss: str = "smooth_l1",
        class_agnostic: bool = False,
    ):
        super().__init__(
            roi_pool,
            in_channels=in_channels,
            num_classes=num_classes,
            hidden_dim=hidden_dim,
            class_agnostic=class_agnostic,
        )
        check_choice("loss", loss, ("smooth_l1", "bce"))
        self.loss_kind = loss
        self.calibration: Tensor
        self.register_buffer("calibration", torch.zeros(2))

    def decoded(self, output: Tensor) -> Tensor:
        """Convert outputs to predicted IoUs; with "smooth_l1" they may lie slightly outside [0, 1].

        These IoUs are not calibrated: refinement maximises them as trained. Report the IoUs that `calibrated` returns.
        """
        return output.sigmoid() if self.loss_kind == "bce" else (output + 1) / 2

    def slope(self, values: Tensor) -> Tensor:
        return values * (1 - values) if self.loss_kind == "bce" else torch.full_like(values, 0.5)

    def outputs_of(self, ious: Tensor) -> Tensor:
        """Return the outputs that `decoded` converts to these IoUs."""
        return ious.logit(LOGIT_EPS) if self.loss_kind == "bce" else 2 * ious - 1

    def calibrated(self, ious: Tensor) -> Tensor:
        """Calibrate IoUs predicted by ``forward``; return them unchanged if the head is not calibrated."""
        slope, offset = self.calibration.unbind()
        return torch.where(slope > 0, (slope * self.outputs_of(ious) + offset).sigmoid(), ious)

    def loss(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: Tensor,
        image_sizes: list[tuple[int, int]],
        true_ious: Tensor,
    ) -> Tensor:
        """Return the `iou_loss` for boxes whose true IoUs, Tensor[K], are known; other arguments as in `output`."""
        return iou_loss(self.output(features, boxes, labels, image_sizes), true_ious, self.loss_kind)


def iou_loss(output: Tensor, true_ious: Tensor, kind: str = "smooth_l1") -> Tensor:
    """Loss of predicted IoUs, averaged over the boxes.

    Args:
        output (Tensor[K]): outputs of the last layer.
        true_ious (Tensor[K]): true IoUs in [0, 1].
        kind: "smooth_l1", smooth-L1 loss between ``output`` and ``2 IoU - 1``, as in the paper; or "bce", binary
            cross-entropy between ``sigmoid(output)`` and the IoU.

    Returns:
        Tensor[]: mean over the boxes; 0, with a gradient, if there are none.
    """
    if kind == "bce":
        total = F.binary_cross_entropy_with_logits(output, true_ious, reduction="sum")
    else:
        total = F.smooth_l1_loss(output, 2 * true_ious - 1, reduction="sum")
    return total / max(output.numel(), 1)
