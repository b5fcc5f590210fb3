"""IoU-Net: Faster R-CNN with a feature pyramid, PrRoI pooling, an IoU head and, optionally, an energy head.

Shapes and names, used throughout:

    B images of a batch; C classes without the background; K boxes of all images, image after image.
    original image   the image as given; results are in its pixels.
    resized image    the input of the network (short side scaled to INPUT.MIN_SIZE); all inner boxes are in its pixels.
    features         level name ("0" to "3", "pool") → Tensor[B, channels, H / stride, W / stride].
    candidates       boxes of every class that scores above the threshold, before NMS, each with its predicted IoU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ..boxes import best_iou
from ..checks import can_resize
from ..detections import Detections, RefinedDetections
from ..errors import OptionError
from ..postprocess import Postprocessing, RefinementOptions, postprocess
from .energy_head import EnergyHead
from .iou_head import IoUHead
from .refinement import Ascent, GraphedRefinement, PackedBoxes
from .roi_heads import RoIHeads

AnyDetections = TypeVar("AnyDetections", bound=Detections)


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a batch of images, with the image sizes needed to map boxes between frames.

    Attributes:
        maps: feature maps, level name → Tensor[B, channels, H / stride, W / stride].
        batch: the resized images, padded to one tensor.
        original_sizes: (height, width) of each original image in pixels.
    """

    maps: dict[str, Tensor]
    batch: ImageList
    original_sizes: list[tuple[int, int]]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each resized image in pixels, without padding."""
        return self.batch.image_sizes

    def to_original(self, detections: Sequence[AnyDetections]) -> list[AnyDetections]:
        """Map the detections of each image from pixels of the resized image to pixels of the original image."""
        return [
            of_image.rescaled(size, original_size)
            for of_image, size, original_size in zip(detections, self.sizes, self.original_sizes, strict=True)
        ]


class IoUNet(nn.Module):
    """The IoU-Net detector.

    In training mode, ``forward`` returns losses; in evaluation mode, it returns detections. The parameters of
    ``transform``, ``backbone``, ``rpn`` and ``roi_heads`` have the names of torchvision's Faster R-CNN.

    Args:
        transform: images → resized and normalised images in one padded batch.
        backbone: images → features.
        rpn: features → proposals.
        roi_heads: proposals → boxes and class scores.
        iou_head: boxes → predicted IoUs.
        sample_iou_boxes: samples the training set of the IoU head: (ground-truth boxes of each image, image sizes) →
            (boxes of each image, their IoUs [M], index of the ground-truth box of each [M]) for M sampled boxes.
        iou_loss_weight: factor of the IoU head's loss.
        num_iou_candidates: number of the detector's own boxes per image on which the IoU head also trains. Some of
            these boxes lie on background, where the predicted IoU would otherwise be too high. 0 in the paper.
        energy_head: boxes → energies; None in the paper.
        sample_energy_boxes: samples the training set of the energy head: ground-truth boxes of each image → (boxes of
            each image, index of the ground-truth box of each [M], logarithm of the noise density at each [M]).
        energy_loss_weight: factor of the energy head's loss.
        standalone: train only the IoU head and the energy head; the others are frozen and stay in evaluation mode.
        amp: compute the backbone and the hidden layers of all branches in bfloat16. The last layers, boxes, scores and
            losses stay in float32, as do all layers of the IoU head and the energy head at inference.
        cuda_graphs: on a GPU, launch each refinement as one CUDA graph.
        postprocessing: NMS and refinement at inference; None uses the paper's options.

    Raises:
        OptionError: the objective of refinement is "energy", but there is no energy head.
    """

    def __init__(
        self,
        *,
        transform: GeneralizedRCNNTransform,
        backbone: nn.Module,
        rpn: RegionProposalNetwork,
        roi_heads: RoIHeads,
        iou_head: IoUHead,
        sample_iou_boxes: Callable[[list[Tensor], list[tuple[int, int]]], tuple[list[Tensor], Tensor, Tensor]],
        iou_loss_weight: float = 1.0,
        num_iou_candidates: int = 0,
        energy_head: EnergyHead | None = None,
        sample_energy_boxes: Callable[[list[Tensor]], tuple[list[Tensor], Tensor, Tensor]] | None = None,
        energy_loss_weight: float = 1.0,
        standalone: bool = False,
        amp: bool = False,
        cuda_graphs: bool = True,
        postprocessing: Postprocessing | None = None,
    ):
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.iou_head = iou_head
        self.sample_iou_boxes = sample_iou_boxes
        self.iou_loss_weight = iou_loss_weight
        self.num_iou_candidates = num_iou_candidates
        self.energy_head = energy_head
        self.sample_energy_boxes = sample_energy_boxes
        self.energy_loss_weight = energy_loss_weight
        self.standalone = standalone
        self.amp = amp
        self.cuda_graphs = cuda_graphs
        self.postprocessing = postprocessing or Postprocessing()
        if self.postprocessing.refinement.objective == "energy" and energy_head is None:
            raise OptionError("objective", "energy needs an energy head")
        self._graphed_refinement = GraphedRefinement(iou_head, energy_head)
        if standalone:
            for frozen in (backbone, rpn, roi_heads):
                frozen.requires_grad_(False)

    def can_resize(self, size: tuple[int, int]) -> bool:
        """Return whether an image of ``size`` (height, width) can be resized; one of 5000 × 1 pixels is too thin."""
        return can_resize(size, self.transform.min_size[-1], self.transform.max_size)

    def train(self, mode: bool = True) -> "IoUNet":
        super().train(mode)
        if self.standalone:
            for frozen in (self.backbone, self.rpn, self.roi_heads):
                frozen.eval()
        return self

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Return losses in training mode, and detections in evaluation mode.

        Args:
            images (list of B Tensor[3, H, W]): RGB in [0, 1], of any sizes.
            targets: needed in training mode: for each image a dict of "boxes" Tensor[N, 4], xyxy in pixels of the
                original image, and "labels" Tensor[N], int64 in 1..C. N may be 0.

        Returns:
            In training mode, the dict returned by `losses`; in evaluation mode, the list returned by `inference`.

        Raises:
            ValueError: ``targets`` is None in training mode.
        """
        if not self.training:
            return self.inference(images)
        if targets is None:
            raise ValueError("the detector needs targets in training mode; call .eval() to get detections")
        return self.losses(images, targets)

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the losses by name: two each for the RPN and the box branch, one each for the IoU and energy heads.

        A standalone detector has only the losses of the IoU head and the energy head. Arguments as in `forward`.
        """
        # The transform would also resize masks and keypoints, which the losses do not need.
        targets = [{"boxes": target["boxes"], "labels": target["labels"]} for target in targets]
        batch, targets = self.transform(images, targets)
        with torch.set_grad_enabled(not self.standalone):
            maps = self._feature_maps(batch)
        losses: dict[str, Tensor] = {}
        proposals: list[Tensor] = []
        if not self.standalone:
            proposals, rpn_losses = self.rpn(batch, maps, targets)
            losses |= rpn_losses
            losses |= self.roi_heads.losses(maps, proposals, batch.image_sizes, targets)
        elif self.num_iou_candidates:
            proposals, _ = self.rpn(batch, maps)
        losses["loss_iou"] = self.iou_loss_weight * self._iou_loss(maps, proposals, batch.image_sizes, targets)
        if self.energy_head is not None:
            losses["loss_energy"] = self.energy_loss_weight * self._energy_loss(maps, batch.image_sizes, targets)
        return losses

    def _iou_loss(
        self,
        maps: dict[str, Tensor],
        proposals: list[Tensor],
        image_sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        boxes, true_ious, objects = self.sample_iou_boxes([target["boxes"] for target in targets], image_sizes)
        labels = torch.cat([target["labels"] for target in targets])[objects]
        of_jittered = self.iou_head.loss(maps, boxes, labels, image_sizes, true_ious)
        if not self.num_iou_candidates:
            return of_jittered
        with torch.no_grad():
            boxes, labels_in_images = self.roi_heads.sample_candidates(
                maps, proposals, image_sizes, self.num_iou_candidates
            )
        true_ious = torch.cat(
            [
                best_iou(in_image, labels, target["boxes"], target["labels"])
                for in_image, labels, target in zip(boxes, labels_in_images, targets, strict=True)
            ]
        )
        of_candidates = self.iou_head.loss(maps, boxes, torch.cat(labels_in_images), image_sizes, true_ious)
        return (of_jittered + of_candidates) / 2

    def _energy_loss(
        self, maps: dict[str, Tensor], image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> Tensor:
        assert self.energy_head is not None and self.sample_energy_boxes is not None
        boxes, objects, log_density = self.sample_energy_boxes([target["boxes"] for target in targets])
        labels = torch.cat([target["labels"] for target in targets])[objects]
        return self.energy_head.loss(maps, boxes, labels, image_sizes, objects, log_density)

    @torch.no_grad()
    def inference(self, images: list[Tensor]) -> list[Detections]:
        """Detect objects: features → proposals → boxes and scores → predicted IoUs → IoU-guided NMS → refinement.

        Args:
            images (list of B Tensor[3, H, W]): RGB in [0, 1], of any sizes.

        Returns:
            list of B Detections: boxes xyxy in pixels of the original images, clipped to them, sorted by
                descending score.
        """
        features = self.extract(images)
        proposals = self.propose(features)
        candidates = self.detect(features, proposals)
        detections = postprocess(candidates, self.postprocessing, refine=partial(self.refine, features))
        return features.to_original(detections)

    def extract(self, images: list[Tensor]) -> ImageFeatures:
        """Resize the images (list of B Tensor[3, H, W], RGB in [0, 1]) and compute their features."""
        original_sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch, _ = self.transform(images)
        return ImageFeatures(self._feature_maps(batch), batch, original_sizes)

    def _feature_maps(self, batch: ImageList) -> dict[str, Tensor]:
        # Convolutions and PrRoI pooling are fastest in channels-last; the maps inherit the layout of the images.
        images = batch.tensors.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16) if self.amp else nullcontext():
            return self.backbone(images)

    def propose(self, features: ImageFeatures) -> list[Tensor]:
        """Return the RPN's proposals: list of B Tensor[P_i, 4], xyxy in pixels of the resized images."""
        proposals, _ = self.rpn(features.batch, features.maps)
        return proposals

    def detect(self, features: ImageFeatures, proposals: list[Tensor]) -> list[Detections]:
        """Return the candidates of each image before NMS, with predicted IoUs, in pixels of the resized image."""
        boxes, labels, scores = self.roi_heads.candidates(features.maps, proposals, features.sizes)
        ious = self._predict_ious(features, boxes, labels)
        return [Detections(*parts) for parts in zip(boxes, labels, scores, ious, strict=True)]

    def predict_ious(self, features: ImageFeatures, detections: list[AnyDetections]) -> list[AnyDetections]:
        """Return the detections of each image, in pixels of the resized image, with newly predicted IoUs."""
        boxes, labels = ([getattr(of_image, name) for of_image in detections] for name in ("boxes", "labels"))
        ious = self._predict_ious(features, boxes, labels)
        return [replace(of_image, ious=predicted) for of_image, predicted in zip(detections, ious, strict=True)]

    def _predict_ious(self, features: ImageFeatures, boxes: list[Tensor], labels: list[Tensor]) -> Sequence[Tensor]:
        ious = self.iou_head(features.maps, boxes, torch.cat(labels), features.sizes)
        return self.iou_head.calibrated(ious).split([len(boxes_in_image) for boxes_in_image in boxes])

    def refine(
        self, features: ImageFeatures, detections: Sequence[Detections], options: RefinementOptions
    ) -> list[RefinedDetections]:
        """Refine the boxes of all images by gradient ascent (Algorithm 2 of the paper).

        Args:
            features: features of the images.
            detections: boxes of each image, in pixels of the resized image.
            options: options of refinement; ``options.objective`` chooses the IoU head or the energy head.

        Returns:
            The same detections in the same order, with refined boxes, clipped to the resized images, and their
                predicted IoUs. Labels and scores do not change. Without steps, predicted IoUs do not change either.
        """
        if not options.num_steps or not any(map(len, detections)):
            return [RefinedDetections.unmoved(of_image) for of_image in detections]
        boxes = PackedBoxes.of(detections, features.sizes)
        if self._refines_by_graph(features, options):
            height, width = features.batch.tensors.shape[-2:]
            before, after, refined = self._graphed_refinement(features.maps, boxes, (height, width), options)
        else:
            ascent = Ascent(self.iou_head, self.energy_head, features.maps, boxes, options)
            first, *_, refined = ascent.path()
            before, after = ascent.predicted_ious(first), ascent.predicted_ious(refined)
        return boxes.unpack(detections, before, after, refined)

    def _refines_by_graph(self, features: ImageFeatures, options: RefinementOptions) -> bool:
        # A graph is recorded per image size and set of options, so only the detector's own options use graphs.
        return (
            self.cuda_graphs
            and options == self.postprocessing.refinement
            and features.batch.tensors.is_cuda
            and self.iou_head.roi_pool.in_fixed_shapes(features.batch.tensors.device)
        )

    def refinement_path(
        self, features: ImageFeatures, detections: Sequence[Detections], options: RefinementOptions
    ) -> Iterator[list[RefinedDetections]]:
        """Yield the results of `refine` after 0, 1, ..., ``options.num_steps`` steps; arguments as in `refine`.

        The first item contains the given boxes with their predicted IoUs.
        """
        if not any(map(len, detections)):
            yield from [[RefinedDetections.unmoved(of_image) for of_image in detections]] * (options.num_steps + 1)
            return
        boxes = PackedBoxes.of(detections, features.sizes)
        ascent = Ascent(self.iou_head, self.energy_head, features.maps, boxes, options)
        before: Tensor | None = None
        for refined in ascent.path():
            ious = ascent.predicted_ious(refined)
            before = ious if before is None else before
            yield boxes.unpack(detections, before, ious, refined)
