"""IoU-Net: Faster R-CNN with a feature pyramid, PrRoI pooling, and branches for how well, and where, a box fits.

Shapes and names, used throughout:

    B images of a batch; C classes without the background; K boxes of all images, one image after the other.
    original image   as it was given; results are in its pixels.
    resized image    what the network sees (short side scaled to INPUT.MIN_SIZE); everything inside is in its pixels.
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
    """Features of a batch of images, and what maps boxes between frames.

    Attributes:
        maps: the features.
        batch: the resized images, padded to one tensor.
        original_sizes: (height, width) of the original images in pixels.
    """

    maps: dict[str, Tensor]
    batch: ImageList
    original_sizes: list[tuple[int, int]]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the resized images in pixels, without the padding."""
        return self.batch.image_sizes

    def to_original(self, detections: Sequence[AnyDetections]) -> list[AnyDetections]:
        """Detections in pixels of the resized images → the same in pixels of the original ones."""
        return [
            of_image.rescaled(size, original_size)
            for of_image, size, original_size in zip(detections, self.sizes, self.original_sizes, strict=True)
        ]


class IoUNet(nn.Module):
    """The detector. Parameter names of transform, backbone, rpn and roi_heads are those of torchvision's Faster R-CNN.

    In training mode ``forward`` returns losses, else detections.

    Args:
        transform: resizes, normalises and batches the images.
        backbone: images → features.
        rpn: features → proposals.
        roi_heads: proposals → boxes and class scores.
        iou_head: boxes → predicted IoUs.
        sample_iou_boxes: ground-truth boxes of each image and the image sizes → boxes of each image, their IoUs [M]
            and the ground truth each came from [M]; the training set of the IoU head.
        iou_loss_weight: factor of its loss.
        num_iou_candidates: boxes of each image that the IoU head learns from beside those: the detector's own,
            background included, whose predicted IoU would otherwise be too high. 0: none, as in the paper.
        energy_head: boxes → energies; None: none, as in the paper.
        sample_energy_boxes: ground-truth boxes of each image → boxes of each image, the ground truth each belongs to
            [M] and the logarithm of its density [M]; the training set of the energy head.
        energy_loss_weight: factor of its loss.
        standalone: only the IoU head and the energy head train; the rest is frozen and in inference mode.
        amp: the backbone computes in bfloat16, and the hidden layers of all branches with it; their last layers,
            boxes, scores and losses are in float32, as are all layers of the IoU head at inference.
        cuda_graphs: on a GPU, launch each refinement as one CUDA graph.
        postprocessing: NMS and refinement at inference; by default the paper's.

    Raises:
        OptionError: refinement is to climb the energy, and there is no energy head.
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
        """Whether an image of ``size`` (height, width) keeps its shape when resized; 5000 × 1 pixels do not."""
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
        """Losses in training mode, detections otherwise.

        Args:
            images (list of B Tensor[3, H, W]): RGB in [0, 1], of any sizes.
            targets: in training mode, a dict an image: "boxes" Tensor[N, 4], xyxy in pixels of that image, and
                "labels" Tensor[N], int64 in 1..C. N may be 0.
        """
        if not self.training:
            return self.inference(images)
        if targets is None:
            raise ValueError("in training mode the detector needs targets; call .eval() for detections")
        return self.losses(images, targets)

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The RPN's two losses, the box branch's two, and one of each other head; standalone, the latter alone."""
        # The transform passes on every key of a target; only these two are tensors of the image's frame.
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
        """image → features → proposals → boxes + scores → predicted IoU → IoU-guided NMS → refinement → detections.

        Returns:
            list of B Detections: boxes xyxy in pixels of the images given, inside them, by falling score.
        """
        features = self.extract(images)
        proposals = self.propose(features)
        candidates = self.detect(features, proposals)
        detections = postprocess(candidates, self.postprocessing, refine=partial(self.refine, features))
        return features.to_original(detections)

    def extract(self, images: list[Tensor]) -> ImageFeatures:
        """Features of the resized images."""
        original_sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch, _ = self.transform(images)
        return ImageFeatures(self._feature_maps(batch), batch, original_sizes)

    def _feature_maps(self, batch: ImageList) -> dict[str, Tensor]:
        # Channels-last is the layout in which both convolution and PrRoI pooling are fastest; the maps inherit it.
        images = batch.tensors.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16) if self.amp else nullcontext():
            return self.backbone(images)

    def propose(self, features: ImageFeatures) -> list[Tensor]:
        """The RPN's proposals: list of B Tensor[P_i, 4] in pixels of the resized images."""
        proposals, _ = self.rpn(features.batch, features.maps)
        return proposals

    def detect(self, features: ImageFeatures, proposals: list[Tensor]) -> list[Detections]:
        """Candidates of each image in pixels of the resized image, with predicted IoUs, before NMS."""
        boxes, labels, scores = self.roi_heads.candidates(features.maps, proposals, features.sizes)
        ious = self._predict_ious(features, boxes, labels)
        return [Detections(*parts) for parts in zip(boxes, labels, scores, ious, strict=True)]

    def predict_ious(self, features: ImageFeatures, detections: list[AnyDetections]) -> list[AnyDetections]:
        """The detections of each image with the IoUs that the IoU head predicts for their boxes."""
        boxes, labels = ([getattr(of_image, name) for of_image in detections] for name in ("boxes", "labels"))
        ious = self._predict_ious(features, boxes, labels)
        return [replace(of_image, ious=predicted) for of_image, predicted in zip(detections, ious, strict=True)]

    def _predict_ious(self, features: ImageFeatures, boxes: list[Tensor], labels: list[Tensor]) -> Sequence[Tensor]:
        ious = self.iou_head(features.maps, boxes, torch.cat(labels), features.sizes)
        return self.iou_head.calibrated(ious).split([len(boxes_in_image) for boxes_in_image in boxes])

    def refine(
        self, features: ImageFeatures, detections: Sequence[Detections], options: RefinementOptions
    ) -> list[RefinedDetections]:
        """Moves the boxes of the whole batch to where IoU head or energy head see a better fit (Algorithm 2).

        Boxes are in pixels of the resized images and stay inside them; order, labels and scores stay as they are. With
        no steps, the predicted IoUs stay as they are, too.
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
        # Only with the detector's own options, as a graph is recorded for each size of image and each set of options.
        return (
            self.cuda_graphs
            and options == self.postprocessing.refinement
            and features.batch.tensors.is_cuda
            and self.iou_head.roi_pool.in_fixed_shapes(features.batch.tensors.device)
        )

    def refinement_path(
        self, features: ImageFeatures, detections: Sequence[Detections], options: RefinementOptions
    ) -> Iterator[list[RefinedDetections]]:
        """What :meth:`refine` returns after 0, 1, ..., ``options.num_steps`` steps.

        In the first item the boxes lie where they were, with their predicted IoUs.
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
