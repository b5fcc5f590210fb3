"""Detections of one image, the structure from which files, tables and pictures are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checks import check_shapes

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Detections:
    """Boxes found in one image.

    Attributes:
        boxes: Tensor [N, 4], xyxy in pixels of the image. After resizing the image, call `rescaled`.
        labels: Tensor [N], int64 in 1..C; label l is the l-th category of the data set in order of ids. Boxes of
            another detector may have label 0, for a class that is not among the categories.
        scores: Tensor [N], class scores in [0, 1].
        ious: Tensor [N], predicted IoUs with the object, approximately in [0, 1]: the regression can exceed the
            interval slightly.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    ious: Tensor

    def __post_init__(self) -> None:
        check_shapes(**{field.name: getattr(self, field.name).shape for field in fields(self)})
        if not self.boxes.is_floating_point():  # with integer boxes, rescaled() would truncate the factor
            raise ValueError(f"Detections.boxes must be floating point, got {self.boxes.dtype}; convert with .float()")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Self:
        """Select detections by a mask, indices or a slice."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def rescaled(self, from_size: tuple[int, int], to_size: tuple[int, int]) -> Self:
        """Rescale the boxes to another size of the image; sizes are (height, width) in pixels."""
        to, source = (self.boxes.new_tensor([width, height] * 2) for height, width in (to_size, from_size))
        # Multiply first: the product of sizes is exact, so the border maps exactly onto the border.
        return replace(self, boxes=self.boxes * to / source)

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict]:
        """Convert to entries of a COCO results file.

        Args:
            image_id: id of the image in the annotation file.
            category_ids: category ids; label l has the id `category_ids[l - 1]`.

        Returns:
            One dict per box with image_id, category_id, bbox `[x, y, width, height]`, score and predicted_iou.

        Raises:
            ValueError: a label is 0, which has no category.
        """
        if (self.labels < 1).any():
            raise ValueError("label 0 has no category id; use the category ids of the detector that found the boxes")
        corners = self.boxes.tolist()
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[label - 1],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
                "predicted_iou": iou,
            }
            for (x1, y1, x2, y2), label, score, iou in zip(
                corners, self.labels.tolist(), self.scores.tolist(), self.ious.tolist(), strict=True
            )
        ]


@dataclass(frozen=True)
class RefinedDetections(Detections):
    """Detections after refinement.

    Attributes:
        ious_before: Tensor [N], predicted IoUs before refinement; `ious` are those of the refined `boxes`.
        stops: Tensor [N], int64, why the refinement of each box ended, as `iounet.postprocess.Stop`.
        index: Tensor [N], int64, row of each box in the input; 0, 1, ..., N - 1 without NMS.
    """

    ious_before: Tensor
    stops: Tensor
    index: Tensor

    @classmethod
    def unmoved(cls, detections: Detections) -> RefinedDetections:
        """Wrap detections as the result of a refinement with zero steps."""
        stops = torch.zeros(len(detections), dtype=torch.int64, device=detections.boxes.device)
        if isinstance(detections, RefinedDetections):
            return replace(detections, ious_before=detections.ious, stops=stops)
        own = {field.name: getattr(detections, field.name) for field in fields(detections)}
        index = torch.arange(len(detections), device=stops.device)
        return cls(**own, ious_before=detections.ious, stops=stops, index=index)
