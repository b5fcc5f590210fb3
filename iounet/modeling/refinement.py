"""Refinement (paper's Algorithm 2) of the boxes of a batch of images, step by step or as one CUDA graph."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..boxes import box_sizes
from ..detections import Detections
from ..postprocess import Refined, Stop, refinement_path
from .cuda_graphs import CudaGraphs
from .iou_head import IoUHead
from .postprocessing import Postprocessing


@dataclass(frozen=True)
class BoxesOfImages:
    """Boxes of a batch in one tensor, one image after the other.

    Attributes:
        boxes (Tensor[K, 4]): xyxy in pixels of the resized images.
        labels (Tensor[K]): their classes.
        ends (Tensor[K, 4]): (width, height, width, height) of the resized image that each is in.
        counts: boxes of each image.
        sizes: (height, width) of the resized images.
    """

    boxes: Tensor
    labels: Tensor
    ends: Tensor
    counts: list[int]
    sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, detections: list[Detections], sizes: list[tuple[int, int]]) -> "BoxesOfImages":
        boxes, labels = (torch.cat([getattr(one, name) for one in detections]) for name in ("boxes", "labels"))
        counts = [len(of_image) for of_image in detections]
        ends = torch.empty_like(boxes)
        for of_image, (height, width) in zip(ends.split(counts), sizes, strict=True):
            of_image[:, 0::2], of_image[:, 1::2] = width, height
        return cls(boxes, labels, ends, counts, sizes)

    def clip(self, boxes: Tensor) -> Tensor:
        """Boxes [K, 4] that lie in the same images, clipped to them."""
        return boxes.clamp(torch.zeros_like(self.ends), self.ends)


def iou_predictor(iou_head: IoUHead, maps: dict[str, Tensor], start: BoxesOfImages) -> Callable[[Tensor], Tensor]:
    """Boxes [K, 4] → their predicted IoUs [K]; classes, images and pyramid levels are those of ``start``."""
    levels = iou_head.assign_levels(maps, start.boxes.split(start.counts), start.sizes)

    def predict_iou(boxes: Tensor) -> Tensor:
        return iou_head(maps, start.clip(boxes).split(start.counts), start.labels, start.sizes, levels)

    return predict_iou


def path_of_images(
    iou_head: IoUHead, maps: dict[str, Tensor], start: BoxesOfImages, options: Postprocessing
) -> Iterator[Refined]:
    """The boxes after 0, 1, ..., ``options.refinement_steps`` steps, inside their images."""
    path = refinement_path(
        iou_predictor(iou_head, maps, start),
        start.boxes,
        step_size=options.step_size,
        num_steps=options.refinement_steps,
        early_stop=options.early_stop,
        degeneration=options.degeneration,
        coordinates=options.coordinates,
        accept=options.accept,
    )
    ious_before: Tensor | None = None
    for boxes, ious, stops in path:
        ious_before = ious if ious_before is None else ious_before
        clipped = start.clip(boxes)
        inside = (box_sizes(clipped) > 0).all(1)  # one that left its image stays where it was
        yield Refined(
            torch.where(inside[:, None], clipped, start.boxes),
            torch.where(inside, ious, ious_before),
            stops.masked_fill(~inside, int(Stop.LEFT_IMAGE)),
        )


class GraphedRefinement:
    """All steps as one CUDA graph, for at most ``options.detections_per_image`` boxes an image.

    Images with fewer have boxes without area behind them, so that there are always as many: what is computed, and the
    memory for it, is that of the most.
    """

    def __init__(self, iou_head: IoUHead):
        self._level_names = iou_head.roi_pool.featmap_names
        self._graphs = CudaGraphs(partial(_refine_padded, iou_head))

    def clear(self) -> None:
        """To be called when weights move to other memory."""
        self._graphs.clear()

    def __call__(
        self, maps: dict[str, Tensor], start: BoxesOfImages, padded_size: Sequence[int], options: Postprocessing
    ) -> tuple[Tensor, Tensor]:
        """Refined boxes [B, detections_per_image, 4] and their predicted IoUs [B, detections_per_image].

        Args:
            maps: the features.
            start: the boxes.
            padded_size: (height, width) of the batch.
        """
        shape = len(start.counts), options.detections_per_image
        boxes, ends = (start.boxes.new_zeros(*shape, 4) for _ in range(2))
        labels = start.labels.new_zeros(shape)
        for padded, values in ((boxes, start.boxes), (ends, start.ends), (labels, start.labels)):
            for row, of_image in zip(padded, values.split(start.counts), strict=True):
                row[: len(of_image)] = of_image
        pooled_from = [maps[name] for name in self._level_names]
        boxes, ious = self._graphs([*pooled_from, boxes, ends, labels], tuple(padded_size), options)
        return boxes, ious


def _refine_padded(
    iou_head: IoUHead, tensors: Sequence[Tensor], padded_size: tuple[int, int], options: Postprocessing
) -> tuple[Tensor, Tensor]:
    *maps, boxes, ends, labels = tensors
    num_images, count = labels.shape
    # The images' sizes tell the maps' strides alone here, for which the padded ones do as well.
    counts, sizes = [count] * num_images, [padded_size] * num_images
    start = BoxesOfImages(boxes.flatten(0, 1), labels.flatten(), ends.flatten(0, 1), counts, sizes)
    named = dict(zip(iou_head.roi_pool.featmap_names, maps, strict=True))
    *_, refined = path_of_images(iou_head, named, start, options)
    return refined.boxes.unflatten(0, (num_images, count)), refined.ious.unflatten(0, (num_images, count))
