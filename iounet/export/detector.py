"""Detection as one function of tensors that torch.export can trace."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..boxes import box_sizes
from ..detections import Detections
from ..errors import ConfigError
from ..modeling import IoUNet
from ..modeling.roi_heads import MIN_BOX_SIZE
from ..postprocess import NMSOptions, RefinementOptions, postprocess
from ..postprocess.nms import cluster_scores
from .grouped_nms import grouped_nms
from .refiner import refine_on_maps

# Larger than any number of boxes in an image.
ALL = 2**31 - 1
# Names of the inputs and outputs of ExportableDetector.forward.
INPUTS = ("resized", "size", "resized_size")
OUTPUTS = ("boxes", "labels", "scores", "ious")


class ExportableDetector(nn.Module):
    """`iounet.modeling.IoUNet.inference` for one image that has already been resized.

    Args:
        detector: a trained IoU-Net.

    Raises:
        ConfigError: the detector uses soft-NMS.
    """

    def __init__(self, detector: IoUNet):
        super().__init__()
        if detector.postprocessing.nms.kind == "soft":
            raise ConfigError(
                "TEST.NMS: a detector with soft-NMS cannot be exported; use one whose TEST.NMS is iou_guided or greedy"
            )
        self.detector = detector.eval().requires_grad_(False)

    def forward(self, image: Tensor, size: Tensor, resized_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            image (Tensor[1, 3, H, W]): image after normalising, resizing and padding to multiples of 32.
            size (Tensor[2]): (height, width) of the image before resizing.
            resized_size (Tensor[2]): (height, width) of the image after resizing, without padding. A side of 0 means
                that the image is too thin; this side of ``image`` then has 1 pixel before padding.

        Returns:
            boxes (Tensor[D, 4]): xyxy in pixels of the image before resizing, clipped to it. Rows of all outputs are
                sorted by descending score.
            labels (Tensor[D]): int64 in 1..C.
            scores (Tensor[D]): class scores.
            ious (Tensor[D]): predicted IoUs.
        """
        return _ImageInference(self.detector, image, size, resized_size).detections()


class _ImageInference:
    """The steps of inference for one image. Boxes are in pixels of the resized image."""

    def __init__(self, detector: IoUNet, image: Tensor, size: Tensor, resized_size: Tensor):
        self.detector = detector
        self.maps = detector.backbone(image)
        self.padded_size = image.shape[2], image.shape[3]
        self.sizes = [self.padded_size]  # the heads derive only strides from the sizes
        # (width, height, width, height)
        self.ends, self.image_ends = (sides.flip(0).repeat(2) for sides in (size, resized_size.clamp(min=1)))

    def detections(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        boxes, labels, scores = self.candidates(self.proposals())
        candidates = Detections(boxes, labels, scores, self.predicted_ious(boxes, labels))
        (found,) = postprocess([candidates], self.detector.postprocessing, self.refine, self.suppress)
        return found.boxes * self.ends / self.image_ends, found.labels, found.scores, found.ious

    def proposals(self) -> Tensor:
        """Return the proposals that torchvision's RegionProposalNetwork would return: Tensor[P, 4]."""
        rpn = self.detector.rpn
        maps = list(self.maps.values())
        grids = [(level.shape[2], level.shape[3]) for level in maps]
        strides = [tuple(side // cells for side, cells in zip(self.padded_size, grid, strict=True)) for grid in grids]
        anchors_of_levels = rpn.anchor_generator.grid_anchors(grids, strides)
        boxes_of_levels, scores_of_levels, levels = [], [], []
        for level, (objectness, codes, anchors) in enumerate(zip(*rpn.head(maps), anchors_of_levels, strict=True)):
            per_cell = objectness.shape[1]
            # Anchors are ordered cell by cell.
            logits = objectness.permute(0, 2, 3, 1).flatten()
            codes = codes.unflatten(1, (per_cell, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
            best, index = logits.topk(torch.sym_min(rpn.pre_nms_top_n(), logits.shape[0]))
            boxes_of_levels.append(rpn.box_coder.decode_single(codes[index], anchors[index]))
            scores_of_levels.append(best.sigmoid())
            levels.append(torch.full_like(index, level))
        boxes, scores = self.clipped(torch.cat(boxes_of_levels)), torch.cat(scores_of_levels)
        fits = (box_sizes(boxes) >= rpn.min_size).all(1) & (scores >= rpn.score_thresh)
        most = rpn.post_nms_top_n()
        keep = grouped_nms(
            boxes, torch.where(fits, scores, -torch.inf), torch.cat(levels), len(levels), rpn.nms_thresh, most
        )
        order = scores[keep].argsort(descending=True, stable=True)[:most]
        return boxes[keep[order]]

    def candidates(self, proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes [K, 4], labels [K] and scores [K]; equivalent to `iounet.modeling.RoIHeads.candidates`."""
        heads = self.detector.roi_heads
        logits, codes = heads.box_predictor(heads.box_head(heads.box_roi_pool(self.maps, [proposals], self.sizes)))
        boxes_of_classes = heads.box_coder.decode_single(codes, proposals).unflatten(1, (logits.shape[1], 4))
        boxes_of_classes = self.clipped(boxes_of_classes)
        probabilities = logits.softmax(-1)
        fits = (probabilities > heads.score_thresh) & (box_sizes(boxes_of_classes) >= MIN_BOX_SIZE).all(2)
        proposal, label = torch.where(fits[:, 1:])
        label = label + 1
        return boxes_of_classes[proposal, label], label, probabilities[proposal, label]

    def suppress(self, detections: Sequence[Detections], options: NMSOptions) -> Sequence[Detections]:
        """Apply NMS; equivalent to `iounet.postprocess.suppress_each`."""
        (candidates,) = detections
        boxes, labels, scores, ious = candidates.boxes, candidates.labels, candidates.scores, candidates.ious
        if options.kind == "greedy":
            rank, most = scores, options.max_detections
        else:  # a box with a low rank may inherit a high score
            rank, most = ious if options.ranking == "iou" else scores * ious, ALL
        keep = grouped_nms(boxes, rank, labels, self.detector.iou_head.num_classes, options.threshold, most)
        kept_scores = scores[keep]
        if options.kind == "iou_guided":
            of_other_class = labels[keep][:, None] != labels
            iou = box_iou(boxes[keep], boxes).masked_fill(of_other_class, -1)
            kept_scores = cluster_scores(iou, keep, scores, options.threshold)
        order = kept_scores.argsort(descending=True, stable=True)[: options.max_detections]
        return [replace(candidates[keep[order]], scores=kept_scores[order])]

    def refine(self, detections: Sequence[Detections], options: RefinementOptions) -> Sequence[Detections]:
        """Refine boxes; equivalent to `iounet.modeling.IoUNet.refine`."""
        if not options.num_steps:
            return detections
        (before,) = detections
        _, refined = refine_on_maps(self.detector, self.maps, before.boxes, before.labels, self.image_ends, self.sizes)
        if options.objective == "iou":
            ious = self.detector.iou_head.calibrated(refined.values)
        else:
            ious = self.predicted_ious(refined.boxes, before.labels)
        return [replace(before, boxes=refined.boxes, ious=ious)]

    def predicted_ious(self, boxes: Tensor, labels: Tensor) -> Tensor:
        head = self.detector.iou_head
        return head.calibrated(head(self.maps, [boxes], labels, self.sizes))

    def clipped(self, boxes: Tensor) -> Tensor:
        return torch.minimum(boxes.relu(), self.image_ends)


def export_detector(detector: IoUNet) -> torch.export.ExportedProgram:
    """Trace `ExportableDetector`. The sides of the image are dynamic multiples of 32."""
    example = (torch.zeros(1, 3, 96, 128), torch.tensor([90.0, 120.0]), torch.tensor([90.0, 120.0]))
    height, width = (torch.export.Dim(name) for name in ("height", "width"))
    shapes = ({2: 32 * height, 3: 32 * width}, None, None)
    with torch.no_grad():
        return torch.export.export(ExportableDetector(detector), example, dynamic_shapes=shapes)
