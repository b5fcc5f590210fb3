"""The branch that predicts how well a box fits (paper, section 3.1 and figure 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prroi_pool import MultiScalePrRoIPool

from ..errors import check_choice
from .box_function import BoxFunction

# Of an IoU of 0 or 1 to float32 precision the logit is infinite.
LOGIT_EPS = 1e-6


class IoUHead(BoxFunction):
    """IoU predictor.

    The last layer predicts ``2 IoU - 1``, in [-1, 1], for every class, and starts at an IoU of 0.5; with the loss "bce"
    it predicts the logit of the IoU.

    Attributes:
        calibration (Tensor[2]): slope and offset of Platt scaling, fitted after training: the IoU to expect is
            ``sigmoid(slope * output + offset)``. The slope is positive, so that calibrated IoUs keep the order of the
            predictions; 0: not calibrated.

    Args:
        roi_pool, in_channels, num_classes, hidden_dim, class_agnostic: of :class:`BoxFunction`.
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
        """Predicted IoUs, in [0, 1] up to the regression's overshoot.

        They are not calibrated: refinement climbs them as they were trained. Calibration keeps their order.
        """
        return output.sigmoid() if self.loss_kind == "bce" else (output + 1) / 2

    def slope(self, values: Tensor) -> Tensor:
        return values * (1 - values) if self.loss_kind == "bce" else torch.full_like(values, 0.5)

    def outputs_of(self, ious: Tensor) -> Tensor:
        """What the last layer put out where ``forward`` returned these IoUs: undoes :meth:`decoded`."""
        return ious.logit(LOGIT_EPS) if self.loss_kind == "bce" else 2 * ious - 1

    def calibrated(self, ious: Tensor) -> Tensor:
        """IoUs of ``forward`` as they are to be read; the same where nothing is calibrated."""
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
        """The loss of the predictions for boxes of known IoUs, Tensor[K]; the other arguments as in ``forward``."""
        return iou_loss(self.output(features, boxes, labels, image_sizes), true_ious, self.loss_kind)


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
