"""A simulated image that causes the same work for every detector, whatever its weights.

It contains objects of 20 classes whose sizes are log-uniform between 2 and 75 % of the image's short side. Objects of
the same class hardly overlap. The pixels are noise. The image comes with outputs that a trained detector could have
produced:

- Proposals of the RPN: several per object, which overlap each other by more than the NMS threshold, and proposals of
  the background.
- Outputs of the box predictor: proposals of objects score above the score threshold for the object's class; all others
  score as background. No box is moved. NMS then keeps one box per object.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from iounet.boxes import box_sizes

NUM_CLASSES = 90  # as in torchvision's COCO detectors
CLASSES_IN_IMAGE = 20
# Largest shift of a proposal's edges, relative to the object's sides. Two proposals of an object then overlap by at
# least 0.67 IoU.
JITTER = 0.05
# Largest IoU between objects of a class. With the jitter added, it stays below the NMS threshold of 0.5.
LARGEST_OVERLAP = 0.3


@dataclass(frozen=True)
class SimulatedImage:
    """An image with simulated outputs of the RPN and the box predictor.

    Attributes:
        pixels (Tensor[3, H, W]): RGB in [0, 1].
        boxes (Tensor[N, 4]): objects, xyxy in pixels of the image, which is not resized.
        labels (Tensor[N]): classes of the objects.
        proposals (Tensor[P, 4]): the candidates, cycling through the objects, followed by the background.
        class_logits (Tensor[P, NUM_CLASSES + 1]): class logits of the proposals.
        box_regression (Tensor[P, 4 * (NUM_CLASSES + 1)]): box deltas of the proposals.
    """

    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    proposals: Tensor
    class_logits: Tensor
    box_regression: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.pixels.shape[1:]
        return height, width

    def to(self, device: torch.device) -> "SimulatedImage":
        return SimulatedImage(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def simulate_image(
    size: tuple[int, int], *, num_proposals: int, num_candidates: int, num_objects: int
) -> SimulatedImage:
    """Return a simulated image, the same on every call.

    Args:
        size: (height, width) in pixels.
        num_proposals: number of proposals, including the candidates.
        num_candidates: number of proposals that belong to objects.
        num_objects: number of objects.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_objects) % CLASSES_IN_IMAGE + 1
    boxes = torch.zeros(0, 4)
    while len(boxes) < num_objects:
        box = draw_boxes(1, size, generator)
        of_its_class = boxes[labels[: len(boxes)] == labels[len(boxes)]]
        if (box_iou(box, of_its_class) <= LARGEST_OVERLAP).all():
            boxes = torch.cat([boxes, box])

    objects = torch.arange(num_candidates) % num_objects
    shift = JITTER * (2 * torch.rand(num_candidates, 4, generator=generator) - 1)
    candidates = boxes[objects] + shift * box_sizes(boxes[objects]).repeat(1, 2)
    end = torch.tensor(size).flip(0).repeat(2)
    candidates = candidates.clamp(min=0).minimum(end)
    background = draw_boxes(num_proposals - num_candidates, size, generator)

    scores = 0.06 + 0.9 * torch.rand(num_candidates, generator=generator)
    logits = torch.full((num_proposals, NUM_CLASSES + 1), -20.0)
    logits[:, 0] = 0
    logits[torch.arange(num_candidates), labels[objects]] = scores.logit()
    return SimulatedImage(
        pixels=torch.rand(3, *size, generator=generator),
        boxes=boxes,
        labels=labels,
        proposals=torch.cat([candidates, background]),
        class_logits=logits,
        box_regression=torch.zeros(num_proposals, 4 * (NUM_CLASSES + 1)),
    )


def draw_boxes(count: int, image_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw boxes inside the image with aspect ratios of up to 2: Tensor[count, 4]."""
    extent = torch.tensor(image_size).flip(0)
    low, high = (torch.tensor(part * min(image_size)).log() for part in (0.02, 0.75))
    size = (low + (high - low) * torch.rand(count, 1, generator=generator)).exp()
    half_log_ratio = (torch.rand(count, 1, generator=generator) - 0.5) * torch.tensor(2.0).log()
    sides = (size * torch.cat([half_log_ratio, -half_log_ratio], 1).exp()).minimum(0.95 * extent)
    start = torch.rand(count, 2, generator=generator) * (extent - sides)
    return torch.cat([start, start + sides], 1)
