"""Detections: the one structure that travels from the detector to files, tables and pictures."""

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
    """The boxes found in one image.

    Attributes:
        boxes (Tensor[N, 4]): xyxy in pixels of the image they were made for; whoever resizes that image
            calls :meth:`rescaled`.
        labels (Tensor[N]): int64 in 1..C; label l is the l-th category of the data set by rising id. 0, of boxes that
            another detector found: a class that is not among them.
        scores (Tensor[N]): class score in [0, 1].
        ious (Tensor[N]): predicted IoU with the object, about [0, 1] (a regression: it may overshoot a little).
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    ious: Tensor

    def __post_init__(self) -> None:
        check_shapes(**{field.name: getattr(self, field.name).shape for field in fields(self)})
        if not self.boxes.is_floating_point():  # rescaling integers would truncate the factor
            raise ValueError(f"Detections.boxes must be floating point, got {self.boxes.dtype}; convert with .float()")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Self:
        """The detections that ``index`` (a mask, positions, or a slice) picks, in its order."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def rescaled(self, from_size: tuple[int, int], to_size: tuple[int, int]) -> Self:
        """The same boxes in another resolution of the image; sizes are (height, width) in pixels."""
        to, source = (self.boxes.new_tensor([width, height] * 2) for height, width in (to_size, from_size))
        # Multiplied first: that product of sizes is exact, so a border is mapped onto the border, not just beyond it.
        return replace(self, boxes=self.boxes * to / source)

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict]:
        """As entries of a COCO results file.

        Args:
            image_id: of the annotation file.
            category_ids: the category of label l is ``category_ids[l - 1]``.

        Returns:
            One dict a box: image_id, category_id, bbox ``[x, y, width, height]``, score, predicted_iou.

        Raises:
            ValueError: a label is 0, which no category has.
        """
        if (self.labels < 1).any():
            raise ValueError("label 0 has no category id: take those of the detector that found the boxes")
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
    """Detections after refinement, and how they got there.

    Attributes:
        ious_before (Tensor[N]): predicted IoUs of the boxes before refinement; ``ious`` are those of ``boxes``.
        stops (Tensor[N]): int64, the :class:`iounet.postprocess.Stop` of each box: what ended its refinement.
        index (Tensor[N]): int64, the row of each among the detections given; 0, 1, ..., N - 1 without NMS.
    """

    ious_before: Tensor
    stops: Tensor
    index: Tensor

    @classmethod
    def unmoved(cls, detections: Detections) -> RefinedDetections:
        """Detections as refinement without a step leaves them."""
        stops = torch.zeros(len(detections), dtype=torch.int64, device=detections.boxes.device)
        if isinstance(detections, RefinedDetections):
            return replace(detections, ious_before=detections.ious, stops=stops)
        own = {field.name: getattr(detections, field.name) for field in fields(detections)}
        index = torch.arange(len(detections), device=stops.device)
        return cls(**own, ious_before=detections.ious, stops=stops, index=index)
