"""Refinement of a batch of images: connects the IoU head or the energy head to gradient ascent."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..detections import Detections, RefinedDetections
from ..postprocess import Refined, RefinementOptions, refinement_path
from .box_function import BoxFunction, known_labels
from .cuda_graphs import CudaGraphs
from .energy_head import EnergyHead
from .iou_head import IoUHead

# For CUDA graphs, the boxes of an image are padded to a multiple of this number, so that one graph serves any number of
# boxes up to that multiple. COCO evaluates at most 100 detections per image.
GRAPHED_BOXES = 100


@dataclass(frozen=True)
class PackedBoxes:
    """Boxes of a batch in one tensor, image after image.

    Attributes:
        boxes (Tensor[K, 4]): xyxy in pixels of the resized images.
        labels (Tensor[K]): classes of the boxes.
        image_ends (Tensor[K, 4]): (width, height, width, height) of the resized image of each box.
        counts: number of boxes of each image.
        image_sizes: (height, width) of each resized image in pixels.
    """

    boxes: Tensor
    labels: Tensor
    image_ends: Tensor
    counts: list[int]
    image_sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, detections: Sequence[Detections], image_sizes: list[tuple[int, int]]) -> "PackedBoxes":
        boxes = torch.cat([of_image.boxes for of_image in detections])
        labels = torch.cat([of_image.labels for of_image in detections])
        counts = [len(of_image) for of_image in detections]
        image_ends = torch.empty_like(boxes)
        for of_image, (height, width) in zip(image_ends.split(counts), image_sizes, strict=True):
            of_image[:, 0::2], of_image[:, 1::2] = width, height
        return cls(boxes, labels, image_ends, counts, image_sizes)

    def unpack(
        self, detections: Sequence[Detections], ious_before: Tensor, ious: Tensor, refined: Refined
    ) -> list[RefinedDetections]:
        """Return the packed detections with refined boxes and the IoUs predicted before and after refinement."""
        boxes, stops, before, after = (
            values.split(self.counts) for values in (refined.boxes, refined.stops, ious_before, ious)
        )
        return [
            replace(
                RefinedDetections.unmoved(of_image),
                boxes=boxes[n],
                ious=after[n],
                stops=stops[n],
                ious_before=before[n],
            )
            for n, of_image in enumerate(detections)
        ]


class Ascent:
    """Refinement of the boxes of a batch of images.

    Args:
        iou_head: the detector's IoU head.
        energy_head: the detector's energy head, if it has one.
        maps: feature maps of the images.
        start: boxes to refine.
        options: options of refinement; ``options.objective`` chooses the head to maximise.

    Raises:
        ValueError: the objective is "energy", but there is no energy head.
    """

    def __init__(
        self,
        iou_head: IoUHead,
        energy_head: EnergyHead | None,
        maps: dict[str, Tensor],
        start: PackedBoxes,
        options: RefinementOptions,
    ):
        head = iou_head if options.objective == "iou" else energy_head
        if head is None:
            raise ValueError("refinement by energy needs a detector with an energy head (MODEL.ENERGY_HEAD.LOSS)")
        self._iou_head = iou_head
        self._maps = maps
        self._start = start
        self._options = options
        if options.objective == "energy":
            start = replace(start, labels=self._known_labels())
        self._objective = as_function(head, maps, start)

    @torch.no_grad()
    def _known_labels(self) -> Tensor:
        """Return the labels, with unknown ones replaced by the class with the highest predicted IoU.

        Energies cannot choose the class, because they are not comparable between classes.
        """
        start = self._start
        unknown = start.labels == 0
        if not unknown.is_cuda and not unknown.any():  # on a GPU, the check would synchronise
            return start.labels
        boxes = list(start.boxes.split(start.counts))
        outputs = self._iou_head.all_classes(self._maps, boxes, start.image_sizes)
        return known_labels(start.labels, outputs)

    def path(self) -> Iterator[Refined]:
        """Yield the boxes after 0, 1, ..., ``options.num_steps`` steps, clipped to their images."""
        return refinement_path(self._objective, self._start.boxes, self._options, image_ends=self._start.image_ends)

    @torch.no_grad()
    def predicted_ious(self, refined: Refined) -> Tensor:
        """Return the calibrated predicted IoUs for an item that `path` yields: Tensor[K]."""
        if self._options.objective == "iou":
            ious = refined.values
        else:
            boxes = list(refined.boxes.split(self._start.counts))
            ious = self._iou_head(self._maps, boxes, self._start.labels, self._start.image_sizes)
        return self._iou_head.calibrated(ious)


def as_function(head: BoxFunction, maps: dict[str, Tensor], start: PackedBoxes) -> Callable[[Tensor], Tensor]:
    """Turn a head into a function of boxes only: boxes [K, 4] in pixels of the resized images → values [K].

    Classes, images and pyramid levels are fixed to those of ``start``.
    """
    levels = head.assign_levels(maps, list(start.boxes.split(start.counts)), start.image_sizes)

    def function(boxes: Tensor) -> Tensor:
        return head(maps, list(boxes.split(start.counts)), start.labels, start.image_sizes, levels)

    return function


class GraphedRefinement:
    """All steps of a refinement in one CUDA graph, so that they need one launch instead of one per kernel."""

    def __init__(self, iou_head: IoUHead, energy_head: EnergyHead | None):
        heads = nn.ModuleList([iou_head] if energy_head is None else [iou_head, energy_head])
        self._level_names = iou_head.roi_pool.featmap_names
        self._graphs = CudaGraphs(partial(_refine_padded, iou_head, energy_head), weights=heads.parameters)

    def __call__(
        self, maps: dict[str, Tensor], start: PackedBoxes, padded_size: tuple[int, int], options: RefinementOptions
    ) -> tuple[Tensor, Tensor, Refined]:
        """Refine the boxes of a batch.

        Args:
            maps: feature maps of the images.
            start: boxes to refine.
            padded_size: (height, width) of the padded batch in pixels.
            options: options of refinement.

        Returns:
            ious_before (Tensor[K]): calibrated predicted IoUs before the first step.
            ious (Tensor[K]): calibrated predicted IoUs after the last step.
            refined (Refined): the boxes after the last step.
        """
        # Images with fewer boxes are padded with empty ones.
        most = -(-max(start.counts) // GRAPHED_BOXES) * GRAPHED_BOXES

        def padded(values: Tensor) -> Tensor:
            images = values.split(start.counts)
            return torch.cat([F.pad(v, [0, 0] * (v.dim() - 1) + [0, most - len(v)]) for v in images])

        def without_padding(values: Tensor) -> Tensor:
            return torch.cat([v[:count] for v, count in zip(values.split(most), start.counts, strict=True)])

        tensors = [maps[name] for name in self._level_names]
        tensors += map(padded, (start.boxes, start.image_ends, start.labels))
        before, after, *refined = self._graphs(tensors, len(start.counts), padded_size, options)
        return without_padding(before), without_padding(after), Refined(*map(without_padding, refined))


def _refine_padded(
    iou_head: IoUHead,
    energy_head: EnergyHead | None,
    tensors: Sequence[Tensor],
    num_images: int,
    padded_size: tuple[int, int],
    options: RefinementOptions,
) -> tuple[Tensor, ...]:
    """Return the predicted IoUs before the first and after the last step, then the final boxes, values and stops."""
    *maps, boxes, image_ends, labels = tensors
    # Image sizes only determine the strides of the maps, so the padded size can stand in for them.
    counts, sizes = [len(boxes) // num_images] * num_images, [padded_size] * num_images
    start = PackedBoxes(boxes, labels, image_ends, counts, sizes)
    named = dict(zip(iou_head.roi_pool.featmap_names, maps, strict=True))
    ascent = Ascent(iou_head, energy_head, named, start, options)
    first, *_, last = ascent.path()
    return ascent.predicted_ious(first), ascent.predicted_ious(last), *last
