"""Workloads of the operator benchmarks: RoIs on feature maps, as in training, inference and refinement."""

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 7
CHANNELS = 256
OPERATIONS = ("forward", "forward + feature gradient", "RoI gradient")


@dataclass(frozen=True)
class Workload:
    """RoIs on the levels of a feature pyramid.

    Attributes:
        levels: stride in image pixels, number of images, and (height, width) of the map, for each level.
        num_rois: number of RoIs on each level.
        sides: smallest and largest side of a RoI in pixels of the map. Sides are log-uniform.
        operations: the members of OPERATIONS to measure.
    """

    name: str
    levels: tuple[tuple[int, int, tuple[int, int]], ...]
    num_rois: tuple[int, ...]
    sides: tuple[float, float]
    operations: tuple[str, ...] = OPERATIONS


def pyramid(images: int) -> tuple[tuple[int, int, tuple[int, int]], ...]:
    """Return the levels of a pyramid for images of 800 x 1216 pixels."""
    return tuple((stride, images, (800 // stride, 1216 // stride)) for stride in (4, 8, 16, 32))


WORKLOADS = (
    Workload("512 RoIs of 14-28 px on 200x304", ((4, 1, (200, 304)),), (512,), (14, 28)),
    Workload("COCO image, 1000 RoIs on 4 levels", pyramid(1), (550, 200, 150, 100), (14, 28)),
    Workload("training batch, 2 x 512 RoIs on 4 levels", pyramid(2), (564, 204, 154, 102), (14, 28)),
    Workload("refinement, 100 RoIs on 4 levels", pyramid(1), (55, 20, 15, 10), (14, 28), ("forward", "RoI gradient")),
    Workload("large: 64 RoIs of 100-200 px", ((4, 1, (200, 304)),), (64,), (100, 200)),
    Workload("tiny: 512 RoIs of 0.5-2 px", ((4, 1, (200, 304)),), (512,), (0.5, 2)),
)


@dataclass(frozen=True)
class Level:
    features: Tensor  # [N, C, H, W]
    rois: Tensor  # [K, 5] in pixels of the image
    grad_output: Tensor  # [K, C, BINS, BINS]
    scale: float


def make_levels(workload: Workload, dtype: torch.dtype, channels_last: bool, device: torch.device) -> list[Level]:
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    levels = []
    for (stride, images, (height, width)), num_rois in zip(workload.levels, workload.num_rois, strict=True):
        features = torch.randn(images, CHANNELS, height, width, generator=generator)
        low, high = (torch.tensor(side).log() for side in workload.sides)
        extent = torch.tensor([width, height])
        sides = (low + (high - low) * torch.rand(num_rois, 2, generator=generator)).exp().minimum(0.95 * extent)
        start = torch.rand(num_rois, 2, generator=generator) * (extent - sides)
        image = torch.randint(images, (num_rois, 1), generator=generator)
        rois = torch.cat([image, stride * start, stride * (start + sides)], 1)
        grad_output = torch.randn(num_rois, CHANNELS, BINS, BINS, generator=generator)
        levels.append(
            Level(
                features.to(device, dtype, memory_format=memory_format),
                rois.to(device),
                grad_output.to(device, dtype),
                1 / stride,
            )
        )
    return levels
