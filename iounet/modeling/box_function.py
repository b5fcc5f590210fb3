"""A number for a box and a class, differentiable in the box: PrRoI pooling and fully connected layers."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from prroi_pool import MultiScalePrRoIPool

from .precision import at_least_float32, autocast_as, in_float32


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


class BoxFunction(nn.Module):
    """PrRoI pooling, two fully connected layers with ReLU, and one output for each class.

    Output l is that of label l; output 0 (the background, as in torchvision's box predictor) is neither trained nor
    read.

    Args:
        roi_pool: continuous in the boxes, so that the output has a gradient with respect to them.
        in_channels: of the feature pyramid.
        num_classes: classes with the background, C + 1.
        hidden_dim: width of the two fully connected layers; the paper's 1024.
        class_agnostic: one output for all classes, which learns from the objects of all.
    """

    def __init__(
        self,
        roi_pool: MultiScalePrRoIPool,
        *,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 1024,
        class_agnostic: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.roi_pool = roi_pool
        pooled_height, pooled_width = roi_pool.output_size
        self.mlp = HiddenLayers(in_channels * pooled_height * pooled_width, hidden_dim)
        self.predictor = nn.Linear(hidden_dim, 1 if class_agnostic else num_classes)
        # Small, so that all outputs start close to 0.
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
        """What the outputs mean, differentiable in the boxes: Tensor[K]. Arguments as in :meth:`output`."""
        return self.decoded(self.output(features, boxes, labels, image_sizes, levels))

    def decoded(self, output: Tensor) -> Tensor:
        """What an output means; here the output itself."""
        return output

    def output(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: Tensor,
        image_sizes: list[tuple[int, int]],
        levels: Tensor | None = None,
    ) -> Tensor:
        """Output of each box for its class, differentiable in the boxes.

        Args:
            features: level name → Tensor[B, C, H, W].
            boxes (list of B Tensor[K_i, 4]): xyxy in pixels of the resized images.
            labels (Tensor[K]): class of each box, all images' one after the other; 0: not known, and the output is
                the highest of the classes'.
            image_sizes: (height, width) of the resized images.
            levels (Tensor[K]): pyramid level of each box; None: from its size. Refinement fixes it: a box that
                changes level jumps in output.

        Returns:
            Tensor[K].
        """
        all_classes = self.all_classes(features, boxes, image_sizes, levels)
        of_class = all_classes.gather(1, labels[:, None])[:, 0]
        return torch.where(labels == 0, all_classes[:, 1:].amax(1), of_class)

    def value_and_gradient(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: Tensor,
        image_sizes: list[tuple[int, int]],
        levels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` returns, Tensor[K], and its gradient by the boxes, Tensor[K, 4], in inference.

        Written out for torch.export, which cannot see autograd. Arguments as in :meth:`output`.
        """
        pooled = self.roi_pool(features, boxes, image_sizes, levels)
        fc6, fc7 = self.mlp.fc6, self.mlp.fc7
        hidden6 = fc6(at_least_float32(pooled).flatten(1)).relu()
        hidden7 = fc7(hidden6).relu()
        outputs = self.predictor(hidden7)
        if outputs.shape[1] == 1:
            rows = torch.zeros_like(labels)
        else:
            rows = known_labels(labels, outputs)
        values = self.decoded(outputs.gather(1, rows[:, None])[:, 0])
        by_hidden7 = self.predictor.weight[rows] * self.slope(values)[:, None]
        by_hidden6 = torch.where(hidden7 > 0, by_hidden7, 0) @ fc7.weight
        by_pooled = torch.where(hidden6 > 0, by_hidden6, 0) @ fc6.weight
        gradient = self.roi_pool.boxes_backward(by_pooled.view_as(pooled), features, boxes, image_sizes, levels)
        return values, gradient

    def slope(self, values: Tensor) -> Tensor:
        """Derivative of :meth:`decoded` where it gives ``values``."""
        return torch.ones_like(values)

    def all_classes(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        image_sizes: list[tuple[int, int]],
        levels: Tensor | None = None,
    ) -> Tensor:
        """Outputs of each box for all classes: Tensor[K, C + 1]. Arguments as in :meth:`output`."""
        pooled = self.roi_pool(features, boxes, image_sizes, levels)
        if self.training:
            with autocast_as(pooled):
                hidden = self.mlp(pooled)
        else:
            # bfloat16 rounds an IoU of 0.8 to within 0.002, which is coarser than refinement's early_stop.
            hidden = in_float32(self.mlp, pooled)
        return in_float32(self.predictor, hidden).expand(-1, self.num_classes)

    def assign_levels(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        """Pyramid level of each box by its size, for ``output(..., levels=...)``: Tensor[K]."""
        return self.roi_pool.assign_levels(features, boxes, image_sizes)


def known_labels(labels: Tensor, all_classes: Tensor) -> Tensor:
    """The labels [K]; where a class is not known, that of the highest output: of all classes, [K, C + 1]."""
    return torch.where(labels == 0, all_classes[:, 1:].argmax(1) + 1, labels)
