"""Training boxes of the energy head: each object's box, and boxes scattered around it with a known density."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..boxes import boxes_at
from ..errors import OptionError
from ..modeling import first_of_each

# With fewer boxes per object, the head hardly learns which of two boxes around an object fits better.
MIN_BOXES_PER_OBJECT = 8


@dataclass(frozen=True)
class BoxNoise:
    """The distribution of boxes around an object: a mixture of Gaussians over box offsets, with equal weights.

    The offsets are those of `iounet.boxes.box_offsets`. Source: Gustafsson et al., "Energy-Based Models for Deep
    Probabilistic Regression", ECCV 2020 (arXiv 1909.12297). Each Gaussian has the same standard deviation in all four
    offsets, as in their detector.

    Attributes:
        stds: standard deviation of each Gaussian of the mixture.

    Raises:
        OptionError: if ``stds`` is empty or a standard deviation is not positive.
    """

    stds: tuple[float, ...] = (0.05, 0.1, 0.2)

    def __post_init__(self) -> None:
        if not self.stds or not all(std > 0 for std in self.stds):
            raise OptionError("stds", f"must be positive numbers; got {self.stds}")

    def sample(self, num_samples: int, like: Tensor) -> Tensor:
        """Sample offsets with torch's global generator: Tensor[num_samples, 4] with dtype and device of ``like``."""
        stds = like.new_tensor(self.stds)
        of_mixture = torch.randint(len(stds), (num_samples, 1), device=like.device)
        return stds[of_mixture] * torch.randn(num_samples, 4, dtype=like.dtype, device=like.device)

    def log_density(self, offsets: Tensor) -> Tensor:
        """Return the log density at offsets Tensor[..., 4]: Tensor[...]."""
        stds = offsets.new_tensor(self.stds)
        exponents = -offsets.square().sum(-1, keepdim=True) / (2 * stds.square())
        return (exponents - 4 * stds.log()).logsumexp(-1) - 2 * math.log(2 * math.pi) - math.log(len(stds))


@torch.no_grad()
def sample_energy_boxes(
    boxes: list[Tensor], *, num_boxes: int, noise: BoxNoise, target_noise: float = 0.0
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Sample the energy head's training boxes for a batch: each object's box, and boxes scattered around it.

    Args:
        boxes (list of B Tensor[N_i, 4]): objects of each image, xyxy with positive width and height; N_i may be 0.
        num_boxes: approximate number of boxes per image: each of its N_i objects gets ``num_boxes // N_i``, but at
            least MIN_BOXES_PER_OBJECT.
        noise: distribution of the boxes.
        target_noise: beta of NCE+ (Gustafsson et al., "How to Train Your Energy-Based Model for Regression", BMVC
            2020, arXiv 2005.01698), for inexact annotations: the target is the object's box moved by noise that is
            ``target_noise`` times as wide. 0 uses the object's box itself, as in NCE.

    Returns:
        boxes (list of B Tensor[M_i, 4]): xyxy in the frame of the objects, object by object. The first box of each
            object is its target, the others are noise. Boxes may overhang their image.
        objects (Tensor[M]): index of each box's object among the N objects of all images, ascending.
        log_density (Tensor[M]): log density, at each box, of the noise around its object.
    """
    objects_per_image = [len(of_image) for of_image in boxes]
    shares = [max(num_boxes // max(count, 1), MIN_BOXES_PER_OBJECT) for count in objects_per_image]
    reference = torch.cat(boxes)
    per_object = torch.tensor(shares).repeat_interleave(torch.tensor(objects_per_image)).to(reference.device)
    objects = torch.arange(len(reference), device=reference.device).repeat_interleave(per_object)
    offsets = noise.sample(len(objects), reference)
    offsets[first_of_each(objects)] *= target_noise
    counts = [count * share for count, share in zip(objects_per_image, shares, strict=True)]
    scattered = boxes_at(offsets, reference[objects])
    return list(scattered.split(counts)), objects, noise.log_density(offsets)
