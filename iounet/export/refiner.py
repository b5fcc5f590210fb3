"""Refinement as one function of tensors that torch.export can trace."""

import torch
from torch import Tensor, nn

from ..boxes import box_sizes
from ..modeling import IoUNet
from ..modeling.box_function import known_labels
from ..postprocess import Refined, Stop
from ..postprocess.refinement import refine_in_loop

# Names of the inputs and outputs of ExportableRefiner.forward.
INPUTS = ("resized", "size", "resized_size", "boxes", "labels")
OUTPUTS = ("refined_boxes", "ious_before", "ious", "stops")


class ExportableRefiner(nn.Module):
    """`iounet.IoURefiner.refine` for one image that has already been resized.

    Args:
        detector: a trained IoU-Net.
    """

    def __init__(self, detector: IoUNet):
        super().__init__()
        self.detector = detector.eval().requires_grad_(False)

    def forward(
        self, image: Tensor, size: Tensor, resized_size: Tensor, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Refine boxes.

        Args:
            image (Tensor[1, 3, H, W]): image after normalising, resizing and padding to multiples of 32.
            size (Tensor[2]): (height, width) of the image before resizing.
            resized_size (Tensor[2]): (height, width) of the image after resizing, without padding. A side of 0 means
                that the image is too thin.
            boxes (Tensor[N, 4]): xyxy in pixels of the image before resizing.
            labels (Tensor[N]): int64; 0, and any value out of range, means an unknown class.

        Returns:
            boxes (Tensor[N, 4]): refined boxes in the frame of the given boxes, clipped to the image. Unmoved boxes are
                exactly the given boxes, clipped to the image. Boxes without area inside the image are unchanged.
            ious_before (Tensor[N]): predicted IoUs before refinement; 0 for a box without area inside the image.
            ious (Tensor[N]): predicted IoUs after refinement; 0 for a box without area inside the image.
            stops (Tensor[N]): int64, `iounet.postprocess.Stop` of each box.
        """
        detector = self.detector
        options = detector.postprocessing.refinement
        ends, image_ends = size.flip(0).repeat(2), resized_size.flip(0).repeat(2)
        clipped = torch.minimum(boxes.relu(), ends)
        visible = (box_sizes(clipped) > 0).all(1) & (resized_size > 0).all()
        # Boxes without area are replaced by a box of one pixel to avoid divisions by zero.
        pixel = torch.cat([torch.zeros_like(size), torch.ones_like(size)])
        start = torch.where(visible[:, None], clipped * image_ends / ends, pixel)

        maps = detector.backbone(image)
        sizes = [(image.shape[2], image.shape[3])]  # the heads derive only strides from the sizes
        labels = torch.where((labels < 0) | (labels >= detector.iou_head.num_classes), 0, labels)
        objective_labels = labels
        if options.objective == "energy":
            objective_labels = known_labels(labels, detector.iou_head.all_classes(maps, [start], sizes))
        ious_before, refined = refine_on_maps(detector, maps, start, objective_labels, image_ends, sizes)
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
    """Refine boxes of one image with the detector's options.

    Args:
        detector: the detector.
        maps: feature maps of the image.
        boxes (Tensor[N, 4]): xyxy in pixels of the resized image, clipped to it.
        labels (Tensor[N]): int64; 0 (unknown) is allowed only if the objective is the predicted IoU.
        image_ends (Tensor[4]): (width, height, width, height) of the resized image.
        sizes: (height, width) of the padded image in a list of one element.

    Returns:
        values (Tensor[N]): objective before refinement.
        refined (Refined): boxes after refinement.
    """
    options = detector.postprocessing.refinement
    head = detector.iou_head if options.objective == "iou" else detector.energy_head
    assert head is not None, "IoUNet checks this"
    levels = head.assign_levels(maps, [boxes], sizes)
    return refine_in_loop(
        lambda boxes: head.value_and_gradient(maps, [boxes], labels, sizes, levels),
        boxes,
        options,
        image_ends=image_ends.expand_as(boxes),
    )


def export_refiner(detector: IoUNet) -> torch.export.ExportedProgram:
    """Trace `ExportableRefiner`. The sides of the image, multiples of 32, and the number of boxes are dynamic."""
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
