"""Detection as one function of tensors, which torch.export can trace whole."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..boxes import box_sizes
from ..detections import Detections, RefinedDetections
from ..modeling import IoUNet
from ..postprocess import NMSOptions, RefinementOptions, postprocess
from ..postprocess.nms import cluster_scores
from .grouped_nms import grouped_nms
from .refiner import refine_on_maps

# Of ExportableDetector's forward.
INPUTS = ("resized", "size", "resized_size")
OUTPUTS = ("boxes", "labels", "scores", "ious")


class ExportableDetector(nn.Module):
    """What :meth:`iounet.modeling.IoUNet.inference` computes for one image, from the resized image on.

    Args:
        detector: a trained IoU-Net.
    """

    def __init__(self, detector: IoUNet):
        super().__init__()
        self.detector = detector.eval().requires_grad_(False)

    def forward(self, image: Tensor, size: Tensor, resized_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        detector = self.detector
        maps = detector.backbone(image)
        ends, image_ends = size.flip(0).repeat(2), resized_size.clamp(min=1).flip(0).repeat(2)
        sizes = [(image.shape[2], image.shape[3])]
        proposals = self._proposals(maps, sizes[0], image_ends)
        boxes, labels, scores = self._candidates(maps, proposals, sizes, image_ends)
        ious = detector.iou_head.calibrated(detector.iou_head(maps, [boxes], labels, sizes))

        def refine(detections: Sequence[Detections], options: RefinementOptions) -> Sequence[Detections]:
            (of_image,) = detections
            if not options.num_steps:
                return detections
            ious_before, refined = refine_on_maps(
                detector, maps, of_image.boxes, of_image.labels, image_ends, sizes, options
            )
            return [replace(of_image, boxes=refined.boxes, ious=refined.values)]

        def suppress(detections: Sequence[Detections], options: NMSOptions) -> Sequence[Detections]:
            return [self._suppress(of_image, options) for of_image in detections]

        candidates = Detections(boxes, labels, scores, ious)
        (found,) = postprocess([candidates], detector.postprocessing, refine, suppress)
        return found.boxes * ends / image_ends, found.labels, found.scores, found.ious

    def _proposals(self, maps, size, image_ends):
        rpn = self.detector.rpn
        features = list(maps.values())
        grids = [(level.shape[2], level.shape[3]) for level in features]
        strides = [(size[0] // height, size[1] // width) for height, width in grids]
        anchors = rpn.anchor_generator.grid_anchors(grids, strides)
        boxes, scores, levels = [], [], []
        for level, (objectness, offsets, of_level) in enumerate(zip(*rpn.head(features), anchors, strict=True)):
            logits = objectness.permute(0, 2, 3, 1).flatten()
            most = torch.sym_min(rpn.pre_nms_top_n(), logits.shape[0])
            best, index = logits.topk(most)
            num_per_cell = objectness.shape[1]
            codes = offsets.unflatten(1, (num_per_cell, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
            boxes.append(rpn.box_coder.decode_single(codes[index], of_level[index]))
            scores.append(best)
            levels.append(torch.full_like(index, level))
        all_boxes = torch.minimum(torch.cat(boxes).relu(), image_ends)
        all_scores = torch.cat(scores).sigmoid()
        valid = (box_sizes(all_boxes) >= rpn.min_size).all(1) & (all_scores >= rpn.score_thresh)
        all_scores = torch.where(valid, all_scores, -torch.inf)
        keep = grouped_nms(
            all_boxes, all_scores, torch.cat(levels), len(levels), rpn.nms_thresh, rpn.post_nms_top_n()
        )
        order = all_scores[keep].argsort(descending=True, stable=True)[: rpn.post_nms_top_n()]
        return all_boxes[keep[order]]

    def _candidates(self, maps, proposals, sizes, image_ends):
        heads = self.detector.roi_heads
        hidden = heads.box_head(heads.box_roi_pool(maps, [proposals], sizes))
        logits, codes = heads.box_predictor(hidden)
        decoded = heads.box_coder.decode_single(codes, proposals)
        decoded = decoded.unflatten(1, (logits.shape[1], 4))
        probabilities = logits.softmax(-1)
        boxes = torch.minimum(decoded.relu(), image_ends)
        fits = (box_sizes(boxes) >= 0.01).all(2) & (probabilities > heads.score_thresh)
        proposal, label = torch.where(fits[:, 1:])
        label = label + 1
        return boxes[proposal, label], label, probabilities[proposal, label]

    def _suppress(self, candidates, options):
        boxes, labels, scores, ious = candidates.boxes, candidates.labels, candidates.scores, candidates.ious
        rank = scores if options.kind == "greedy" else ious if options.ranking == "iou" else scores * ious
        num_groups = self.detector.iou_head.num_classes
        keep = grouped_nms(boxes, rank, labels, num_groups, options.threshold, 1000000)
        if options.kind == "iou_guided":
            of_other_class = labels[keep][:, None] != labels
            iou = box_iou(boxes[keep], boxes).masked_fill(of_other_class, -1)
            kept_scores = cluster_scores(iou, keep, scores, options.threshold)
        else:
            kept_scores = scores[keep]
        order = kept_scores.argsort(descending=True, stable=True)[: options.max_detections]
        return replace(candidates[keep[order]], scores=kept_scores[order])


def export_detector(detector: IoUNet) -> torch.export.ExportedProgram:
    """Traces :class:`ExportableDetector`. The image's sides, multiples of 32, are dynamic."""
    example = (torch.zeros(1, 3, 96, 128), torch.tensor([90.0, 120.0]), torch.tensor([90.0, 120.0]))
    height, width = (torch.export.Dim(name) for name in ("height", "width"))
    shapes = ({2: 32 * height, 3: 32 * width}, None, None)
    with torch.no_grad():
        return torch.export.export(ExportableDetector(detector), example, dynamic_shapes=shapes)
