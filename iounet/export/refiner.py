"""Refinement as one function of tensors, which torch.export can trace whole."""

import torch
from torch import Tensor, nn

from ..boxes import box_sizes
from ..modeling import IoUNet
from ..modeling.box_function import known_labels
from ..postprocess import Refined, Stop
from ..postprocess.refinement import refine_in_loop

# Of ExportableRefiner's forward.
INPUTS = ("resized", "size", "resized_size", "boxes", "labels")
OUTPUTS = ("refined_boxes", "ious_before", "ious", "stops")


class ExportableRefiner(nn.Module):
    """What :meth:`iounet.IoURefiner.refine` computes for the boxes of one image, from the resized image on.

    Args:
        detector: a trained IoU-Net.
    """

    def __init__(self, detector: IoUNet):
        super().__init__()
        self.detector = detector.eval().requires_grad_(False)

    def forward(
        self, image: Tensor, size: Tensor, resized_size: Tensor, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Refines boxes.

        Args:
            image (Tensor[1, 3, H, W]): normalised, resized, and padded to multiples of 32.
            size, resized_size (Tensor[2]): (height, width) of the image before resizing, and after, without padding;
                0 after it for an image that is too thin.
            boxes (Tensor[N, 4]): xyxy in pixels of the image before resizing.
            labels (Tensor[N]): int64; 0, and any that is no class: not known.

        Returns:
            boxes (Tensor[N, 4]): refined, inside the image, in the frame of ``boxes``. A box that refinement did not
                move is that box exactly, clipped to the image; one without area inside the image as it was given.
            ious_before, ious (Tensor[N]): predicted IoUs before and after; 0 of a box without area.
            stops (Tensor[N]): int64, :class:`iounet.postprocess.Stop`.
        """
        detector = self.detector
        options = detector.postprocessing.refinement
        ends, image_ends = size.flip(0).repeat(2), resized_size.flip(0).repeat(2)
        clipped = torch.minimum(boxes.relu(), ends)
        visible = (box_sizes(clipped) > 0).all(1) & (resized_size > 0).all()
        # A box without area takes part as one of a pixel, so that nothing is divided by zero.
        pixel = torch.cat([torch.zeros_like(size), torch.ones_like(size)])
        start = torch.where(visible[:, None], clipped * image_ends / ends, pixel)

        maps = detector.backbone(image)
        sizes = [(image.shape[2], image.shape[3])]  # those of the padded image: they only tell the strides
        labels = torch.where((labels < 0) | (labels >= detector.iou_head.num_classes), 0, labels)
        climbed_labels = labels
        if options.objective == "energy":
            climbed_labels = known_labels(labels, detector.iou_head.all_classes(maps, [start], sizes))
        ious_before, refined = refine_on_maps(detector, maps, start, climbed_labels, image_ends, sizes)
        ious = refined.values
        if options.objective == "energy":
            ious_before = detector.iou_head(maps, [start], labels, sizes)
            ious = detector.iou_head(maps, [refined.boxes], labels, sizes)
        in_image = refined.boxes * ends / image_ends
        moved = (refined.boxes != start).any(1) & (box_sizes(in_image) > 0).all(1)
        boxes = torch.where(visible[:, None], torch.where(moved[:, None], in_image, clipped), boxes)
        ious_before, ious = (
            torch.where(visible, detector.iou_head.calibrated(values), 0) for values in (ious_before, ious)
        )
        return boxes, ious_before, ious, refined.stops.masked_fill(~visible, int(Stop.UNPLACED))


def refine_on_maps(
    detector: IoUNet,
    maps: dict[str, Tensor],
    boxes: Tensor,
    labels: Tensor,
    image_ends: Tensor,
    sizes: list[tuple[int, int]],
) -> tuple[Tensor, Refined]:
    """Refines boxes of one image by the options of its detector.

    Args:
        maps: the features.
        boxes (Tensor[N, 4]): xyxy in pixels of the resized image, inside it.
        labels (Tensor[N]): int64; 0, not known, only where the predicted IoU is climbed.
        image_ends (Tensor[4]): (width, height, width, height) of the resized image.
        sizes: (height, width) of the padded image.

    Returns:
        values (Tensor[N]): before refinement, of the head that is climbed, as :func:`refine_in_loop` returns them.
        refined: after it.
    """
    options = detector.postprocessing.refinement
    climbed = detector.iou_head if options.objective == "iou" else detector.energy_head
    assert climbed is not None, "IoUNet has checked it"
    levels = climbed.assign_levels(maps, [boxes], sizes)
    return refine_in_loop(
        lambda boxes: climbed.value_and_gradient(maps, [boxes], labels, sizes, levels),
        boxes,
        options,
        image_ends=image_ends.expand_as(boxes),
    )


def export_refiner(detector: IoUNet) -> torch.export.ExportedProgram:
    """Traces :class:`ExportableRefiner`. The image's sides, multiples of 32, and the number of boxes are dynamic."""
    example = (
        torch.zeros(1, 3, 96, 128),
        torch.tensor([90.0, 120.0]),
        torch.tensor([90.0, 120.0]),
        torch.tensor([[10.0, 10.0, 60.0, 50.0], [0.0, 0.0, 100.0, 90.0], [20.0, 30.0, 40.0, 60.0]]),
        torch.zeros(3, dtype=torch.int64),
    )
    height, width, count = (torch.export.Dim(name) for name in ("height", "width", "boxes"))
    shapes = ({2: 32 * height, 3: 32 * width}, None, None, {0: count}, {0: count})
    with torch.no_grad():
        return torch.export.export(ExportableRefiner(detector), example, dynamic_shapes=shapes)
