"""Training boxes of the IoU head: ground truth jittered to uniform IoU (paper, section 3.1)."""

import torch
from torch import Tensor

from ..boxes import box_sizes, elementwise_iou

# Number of bisection steps; 24 steps reach the precision of a float32 mantissa.
BISECTION_STEPS = 24


@torch.no_grad()
def jitter_boxes(
    boxes: Tensor,
    num_per_box: int,
    *,
    min_iou: float = 0.5,
    image_size: tuple[int, int] | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Displace the four edges of each box at random so that its IoU with the original is uniform over [min_iou, 1].

    Each jittered box gets a random IoU and a random direction, which says how far each edge moves relative to the
    others, in units of the box's width and height. Along this direction the IoU falls monotonically, even if the moved
    box is clipped to the image. In these units, 1 / IoU = 1 / (Ix Iy) + (Wx / Ix)(Wy / Iy) - 1, where Ix, Iy are the
    width and height of the overlap and Wx, Wy those of the moved box; both summands rise. Bisection therefore finds the
    displacement with the drawn IoU, so the IoUs are uniform by construction. The paper draws boxes at random and
    resamples them instead.

    Args:
        boxes (Tensor[N, 4]): ground truth, xyxy with positive width and height; inside the image if ``image_size`` is
            given.
        num_per_box: number of jittered boxes per box.
        min_iou: Omega_train of the paper, in (0, 1].
        image_size: (height, width) of the image to which the jittered boxes are clipped, or a Tensor[N, 2] with the
            image size of each box; None does not clip.
        generator: random number generator on the device of ``boxes``; None uses torch's global generator.

    Returns:
        jittered (Tensor[N, num_per_box, 4]): xyxy in the frame of ``boxes``.
        ious (Tensor[N, num_per_box]): IoU of each jittered box with its ground truth, computed from the returned boxes.

    Raises:
        ValueError: if min_iou is outside (0, 1], or a box has no area.
    """
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou must lie in (0, 1], got {min_iou}")
    if not (box_sizes(boxes) > 0).all():
        worst = int((box_sizes(boxes) > 0).all(1).logical_not().nonzero()[0, 0])
        raise ValueError(f"box {worst} has no area: {boxes[worst].tolist()}; remove such boxes from the ground truth")

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=boxes.dtype, device=boxes.device)

    num_boxes = len(boxes)
    target = min_iou + (1 - min_iou) * uniform(num_boxes, num_per_box)
    direction = 2 * uniform(num_boxes, num_per_box, 4) - 1
    direction = direction / direction.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(boxes.dtype).tiny)
    original = boxes[:, None]
    edge_unit = box_sizes(original).repeat(1, 1, 2)
    if image_size is not None:
        height_width = torch.as_tensor(image_size, dtype=boxes.dtype, device=boxes.device)
        image_end = height_width.flip(-1).repeat(1, 2).view(-1, 1, 4)

    def displaced(length: Tensor) -> Tensor:
        moved = original + length[..., None] * direction * edge_unit
        return moved if image_size is None else moved.clamp(min=0).minimum(image_end)

    # At length 1, the edge that moves most has moved by the whole side of the box. If it moves inwards, no overlap is
    # left; if it moves outwards, the box is 1 + length times as long, so the IoU is at most 1 / (1 + length). In both
    # cases, the target is reached within this length.
    longest = (1 / target - 1).clamp(min=1)
    # If the edge moves outwards and stops at the border of the image, the opposite direction reaches the target.
    stopped = elementwise_iou(original, displaced(longest)) > target
    direction = torch.where(stopped[..., None], -direction, direction)

    shortest = torch.zeros_like(longest)
    for _ in range(BISECTION_STEPS):
        middle = (shortest + longest) / 2
        too_short = elementwise_iou(original, displaced(middle)) > target
        shortest = torch.where(too_short, middle, shortest)
        longest = torch.where(too_short, longest, middle)

    jittered = displaced(shortest)
    return jittered, elementwise_iou(original, jittered)


def sample_iou_boxes(
    boxes: list[Tensor], image_sizes: list[tuple[int, int]], *, num_boxes: int, min_iou: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Sample the IoU head's training boxes for a batch by jittering the ground truth.

    All objects of an image get the same number of boxes.

    Args:
        boxes (list of B Tensor[N_i, 4]): ground truth, xyxy in pixels of its image; N_i may be 0.
        image_sizes: (height, width) of each image.
        num_boxes: approximate number of boxes per image: each of its N_i objects gets ``num_boxes // N_i``, but at
            least one.
        min_iou: see `jitter_boxes`.

    Returns:
        jittered (list of B Tensor[M_i, 4]): xyxy in pixels of each image.
        ious (Tensor[M]): IoUs of the boxes of all images, concatenated.
        ground_truth (Tensor[M]): index of each box's object among the N objects of all images.
    """
    device = boxes[0].device
    objects_per_image = [len(boxes_in_image) for boxes_in_image in boxes]
    shares = [max(num_boxes // max(count, 1), 1) for count in objects_per_image]
    per_image = [count * share for count, share in zip(objects_per_image, shares, strict=True)]
    per_object = torch.tensor(shares).repeat_interleave(torch.tensor(objects_per_image)).to(device)
    ground_truth = torch.arange(len(per_object), device=device).repeat_interleave(per_object)
    sizes = torch.tensor(image_sizes).repeat_interleave(torch.tensor(per_image), 0).to(device)
    # All images are jittered at once, because bisection consists of many small operations, whose cost hardly depends on
    # the number of boxes.
    jittered, ious = jitter_boxes(torch.cat(boxes)[ground_truth], 1, min_iou=min_iou, image_size=sizes)
    return list(jittered[:, 0].split(per_image)), ious[:, 0], ground_truth
