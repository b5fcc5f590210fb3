"""Base of the IoU head and the energy head: one number per box and class, differentiable in the box."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from prroi_pool import MultiScalePrRoIPool

from .precision import at_least_float32, autocast_as, in_float32


class HiddenLayers(TwoMLPHead):
    """Two fully connected layers with ReLU, with torchvision's parameter names.

    He initialisation preserves the scale of features and gradients; PyTorch's default for linear layers divides their
    variance by six in each layer.
    """

    def __init__(self, in_channels: int, hidden_dim: int):
        super().__init__(in_channels, hidden_dim)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


class BoxFunction(nn.Module):
    """PrRoI pooling, two fully connected layers with ReLU, and one output per class.

    Output l belongs to label l. Output 0 (the background, as in torchvision's box predictor) is neither trained nor
    read.

    Args:
        roi_pool: RoI pooling that is continuous in the boxes, so that the output has a gradient with respect to them.
        in_channels: channels of the feature pyramid.
        num_classes: number of classes including the background, C + 1.
        hidden_dim: width of the two fully connected layers; 1024 in the paper.
        class_agnostic: use one output for all classes, trained on the objects of all classes.
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
        # All outputs start close to 0.
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
        """Return the decoded output of each box for its class, Tensor[K]; arguments as in `output`."""
        return self.decoded(self.output(features, boxes, labels, image_sizes, levels))

    def decoded(self, output: Tensor) -> Tensor:
        """Convert outputs to the values that the head predicts; here the outputs themselves."""
        return output

    def output(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: Tensor,
        image_sizes: list[tuple[int, int]],
        levels: Tensor | None = None,
    ) -> Tensor:
        """Return the output of each box for its class, differentiable in the boxes.

        Args:
            features: feature maps, level name → Tensor[B, C, H, W].
            boxes (list of B Tensor[K_i, 4]): xyxy in pixels of the resized images.
            labels (Tensor[K]): class of each box, image after image. For 0, an unknown class, the output is the highest
                of all classes.
            image_sizes: (height, width) of each resized image in pixels.
            levels (Tensor[K]): pyramid level of each box; None derives the levels from the sizes of the boxes.
                Refinement passes fixed levels, because the output jumps where a box changes its level.

        Returns:
            Tensor[K]: outputs, before `decoded`.
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
        """Return the values of `forward`, Tensor[K], and their gradient with respect to the boxes, Tensor[K, 4].

        The backward pass is written out for torch.export, which cannot trace autograd. For inference only. Arguments
        as in `output`.
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
        """Return the derivative of `decoded` at the outputs that decode to ``values``."""
        return torch.ones_like(values)

    def all_classes(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        image_sizes: list[tuple[int, int]],
        levels: Tensor | None = None,
    ) -> Tensor:
        """Return the outputs of each box for all classes, Tensor[K, C + 1]; arguments as in `output`."""
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
        """Return the pyramid level of each box, chosen by its size: Tensor[K], the ``levels`` of `output`."""
        return self.roi_pool.assign_levels(features, boxes, image_sizes)


def known_labels(labels: Tensor, all_classes: Tensor) -> Tensor:
    """Return ``labels`` [K] with each 0 (unknown) replaced by the class with the highest output, of [K, C + 1]."""
    return torch.where(labels == 0, all_classes[:, 1:].argmax(1) + 1, labels)
