"""IoU-Net: Faster R-CNN with a feature pyramid, PrRoI pooling, and a branch that predicts each box's IoU.

Shapes and names, used throughout:

    B images of a batch; C classes without the background; K boxes of all images, one image after the other.
    original image   as it was given; results are in its pixels.
    resized image    what the network sees (short side scaled to INPUT.MIN_SIZE); everything inside is in its pixels.
    features         level name ("0" to "3", "pool") → Tensor[B, channels, H / stride, W / stride].
    candidates       boxes of every class that scores above the threshold, before NMS, each with its predicted IoU.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ..detections import Detections
from ..postprocess import greedy_nms, iou_guided_nms, soft_nms
from .iou_head import IoUHead
from .postprocessing import Postprocessing
from .refinement import BoxesOfImages, GraphedRefinement, iou_predictor, path_of_images
from .roi_heads import RoIHeads


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
        cuda_graphs: :meth:`refine` is a CUDA graph, where it computes on a GPU and for as many boxes as NMS leaves.
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
        cuda_graphs: bool = False,
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
        self._graphs = GraphedRefinement(iou_head)
        self.postprocessing = postprocessing or Postprocessing()
        if standalone:
            for frozen in (backbone, rpn, roi_heads):
                frozen.requires_grad_(False)

    def _apply(self, *args, **kwargs) -> "IoUNet":
        self._graphs.clear()  # .to(), .half() and the like move the weights
        return super()._apply(*args, **kwargs)

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
        losses = {}
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
        detections = self.postprocess(features, candidates)
        return to_original(features, detections)

    def extract(self, images: list[Tensor]) -> ImageFeatures:
        """Features of the resized images."""
        original_sizes = [tuple(image.shape[-2:]) for image in images]
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
        ious = self.iou_head(features.maps, boxes, torch.cat(labels), features.sizes)
        ious = ious.split([len(boxes_in_image) for boxes_in_image in boxes])
        return [Detections(*parts) for parts in zip(boxes, labels, scores, ious, strict=True)]

    def postprocess(
        self, features: ImageFeatures, candidates: list[Detections], postprocessing: Postprocessing | None = None
    ) -> list[Detections]:
        """NMS, refinement and final scores; boxes in pixels of the resized images, by falling score."""
        options = postprocessing or self.postprocessing
        if options.refine_before_nms:
            candidates = self.refine(features, candidates, options)
            options = replace(options, refinement_steps=0)
        return self.finish(features, [self.suppress(of_image, options) for of_image in candidates], options)

    def finish(
        self, features: ImageFeatures, detections: list[Detections], postprocessing: Postprocessing | None = None
    ) -> list[Detections]:
        """What follows NMS: refinement, and final scores."""
        options = postprocessing or self.postprocessing
        detections = self.refine(features, detections, options)
        if options.final_score == "class_times_iou":
            detections = [rescored(of_image) for of_image in detections]
        return detections

    def suppress(self, candidates: Detections, postprocessing: Postprocessing | None = None) -> Detections:
        """NMS of one image's candidates; the best ``detections_per_image`` of what is left, by falling score."""
        keep, scores = self.nms(candidates, postprocessing)
        return replace(candidates[keep], scores=scores)

    def nms(self, candidates: Detections, postprocessing: Postprocessing | None = None) -> tuple[Tensor, Tensor]:
        """Which candidates :meth:`suppress` keeps, int64 [M], by falling score, and their scores [M]."""
        options = postprocessing or self.postprocessing
        boxes, labels, scores, ious = candidates.boxes, candidates.labels, candidates.scores, candidates.ious
        if options.nms == "iou_guided":
            rank = ious if options.ranking == "iou" else scores * ious
            keep, scores = iou_guided_nms(boxes, scores, rank, labels, options.nms_threshold)
        elif options.nms == "soft":
            keep, scores = soft_nms(boxes, scores, labels, max_detections=options.detections_per_image)
        else:
            keep, scores = greedy_nms(boxes, scores, labels, options.nms_threshold)
        return keep[: options.detections_per_image], scores[: options.detections_per_image]

    def refine(
        self,
        features: ImageFeatures,
        detections: list[Detections],
        postprocessing: Postprocessing | None = None,
    ) -> list[Detections]:
        """Moves the boxes of the whole batch to where the IoU head predicts a better fit (Algorithm 2).

        Boxes are in pixels of the resized images and stay inside them; order, labels and scores stay as they are.
        """
        options = postprocessing or self.postprocessing
        if options.refinement_steps == 0:
            return detections
        if (
            self.cuda_graphs
            and features.batch.tensors.is_cuda
            and self.iou_head.roi_pool.in_fixed_shapes(features.batch.tensors.device)
            and max(map(len, detections)) <= options.detections_per_image  # as NMS leaves, and candidates need not be
        ):
            placed = BoxesOfImages.of(detections, features.sizes)
            boxes, ious = self._graphs(features.maps, placed, features.batch.tensors.shape[-2:], options)
            return [
                before.with_boxes(boxes_in_image[: len(before)], ious_in_image[: len(before)])
                for before, boxes_in_image, ious_in_image in zip(detections, boxes, ious, strict=True)
            ]
        *_, refined = self.refinement_path(features, detections, options)
        return [refined_in_image for refined_in_image, _ in refined]

    def refinement_path(
        self, features: ImageFeatures, detections: list[Detections], postprocessing: Postprocessing | None = None
    ) -> Iterator[list[tuple[Detections, Tensor]]]:
        """What :meth:`refine` returns after 0, 1, ..., ``refinement_steps`` steps, and what stopped each box.

        Yields:
            for each image the detections and a :class:`iounet.postprocess.Stop` for each of them, int64 [K_i]; in the
            first item the boxes are where they were, with their predicted IoUs.
        """
        options = postprocessing or self.postprocessing
        if not sum(map(len, detections)):
            nothing = [(of_image, of_image.labels.clone()) for of_image in detections]
            yield from [nothing] * (options.refinement_steps + 1)
            return
        placed = BoxesOfImages.of(detections, features.sizes)
        for refined in path_of_images(self.iou_head, features.maps, placed, options):
            parts = (values.split(placed.counts) for values in refined)
            yield [
                (before.with_boxes(boxes, ious), stops)
                for before, boxes, ious, stops in zip(detections, *parts, strict=True)
            ]

    def iou_predictor(self, features: ImageFeatures, detections: list[Detections]) -> Callable[[Tensor], Tensor]:
        """The objective of refinement: boxes [K, 4] in pixels of the resized images → predicted IoUs [K].

        The classes, the images and the pyramid levels are those of ``detections``, whatever the boxes given later.
        A box is clipped to its image before it is pooled, so that the IoU predicted is that of the clipped box.
        """
        return iou_predictor(self.iou_head, features.maps, BoxesOfImages.of(detections, features.sizes))


def rescored(detections: Detections) -> Detections:
    """With class score times predicted IoU for a score, by falling score."""
    scores = detections.scores * detections.ious.clamp(0, 1)
    order = scores.argsort(descending=True, stable=True)
    return replace(detections, scores=scores)[order]


def to_original(features: ImageFeatures, detections: list[Detections]) -> list[Detections]:
    """Detections in pixels of the resized images → the same in pixels of the original ones."""
    return [
        detections_in_image.rescaled(size, original_size)
        for detections_in_image, size, original_size in zip(
            detections, features.sizes, features.original_sizes, strict=True
        )
    ]
