"""IoU-Net: Faster R-CNN with a feature pyramid, PrRoI pooling, and a branch that predicts each box's IoU.

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

from ..detections import Detections, RefinedDetections
from ..postprocess import Postprocessing, RefinementOptions, postprocess
from .iou_head import IoUHead
from .refinement import GraphedRefinement, PackedBoxes, packed_path
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
        standalone: only the IoU head trains; the rest is frozen and in inference mode.
        amp: the backbone computes in bfloat16, and the hidden layers of all branches with it; their last layers,
            boxes, scores and losses are in float32, as are all layers of the IoU head at inference.
        cuda_graphs: on a GPU, launch each refinement as one CUDA graph.
        postprocessing: NMS and refinement at inference; by default the paper's.
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
        self.standalone = standalone
        self.amp = amp
        self.cuda_graphs = cuda_graphs
        self.postprocessing = postprocessing or Postprocessing()
        self._graphed_refinement = GraphedRefinement(iou_head)
        if standalone:
            for frozen in (backbone, rpn, roi_heads):
                frozen.requires_grad_(False)

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
        """The RPN's two losses, the box branch's two, and the IoU head's; standalone, the last alone."""
        # The transform passes on every key of a target; only these two are tensors of the image's frame.
        targets = [{"boxes": target["boxes"], "labels": target["labels"]} for target in targets]
        batch, targets = self.transform(images, targets)
        with torch.set_grad_enabled(not self.standalone):
            maps = self._feature_maps(batch)
        losses: dict[str, Tensor] = {}
        if not self.standalone:
            proposals, rpn_losses = self.rpn(batch, maps, targets)
            losses |= rpn_losses
            losses |= self.roi_heads.losses(maps, proposals, batch.image_sizes, targets)
        losses["loss_iou"] = self.iou_loss_weight * self._iou_loss(maps, batch.image_sizes, targets)
        return losses

    def _iou_loss(
        self, maps: dict[str, Tensor], image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> Tensor:
        boxes, true_ious, ground_truth = self.sample_iou_boxes([target["boxes"] for target in targets], image_sizes)
        labels = torch.cat([target["labels"] for target in targets])[ground_truth]
        return self.iou_head.loss(maps, boxes, labels, image_sizes, true_ious)

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
        return ious.split([len(boxes_in_image) for boxes_in_image in boxes])

    def refine(
        self, features: ImageFeatures, detections: Sequence[Detections], options: RefinementOptions
    ) -> list[RefinedDetections]:
        """Moves the boxes of the whole batch to where the IoU head predicts a better fit (Algorithm 2).

        Boxes are in pixels of the resized images and stay inside them; order, labels and scores stay as they are. With
        no steps, the predicted IoUs stay as they are, too.
        """
        if not options.num_steps or not any(map(len, detections)):
            return [RefinedDetections.unmoved(of_image) for of_image in detections]
        boxes = PackedBoxes.of(detections, features.sizes)
        if self._refines_by_graph(features, options):
            height, width = features.batch.tensors.shape[-2:]
            ious_before, refined = self._graphed_refinement(features.maps, boxes, (height, width), options)
        else:
            first, *_, refined = packed_path(self.iou_head, features.maps, boxes, options)
            ious_before = first.ious
        return boxes.unpack(detections, ious_before, refined)

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
        ious_before: Tensor | None = None
        for refined in packed_path(self.iou_head, features.maps, boxes, options):
            ious_before = refined.ious if ious_before is None else ious_before
            yield boxes.unpack(detections, ious_before, refined)
