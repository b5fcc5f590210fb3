"""Four boxes for the fixture ``image``, with classes that the refiner knows."""

import torch

CATEGORIES = [{"id": 3, "name": "cross"}, {"id": 7, "name": "star"}, {"id": 90, "name": "triangle"}]
BOXES = torch.tensor(
    [[8.0, 9.0, 40.0, 44.0], [30.0, 10.0, 75.0, 48.0], [2.0, 3.0, 12.0, 15.0], [20.0, 20.0, 60.0, 30.0]]
)
LABELS = torch.tensor([2, 1, 3, 2])
SCORES = torch.tensor([0.25, 0.875, 0.5, 0.75])
OFF_THE_IMAGE = torch.tensor([[90.0, 60.0, 99.0, 70.0]])


def hundred_boxes():
    """Boxes with an area inside the image, 5 to 25 pixels wide and high."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(100, 2, generator=generator) * torch.tensor([50.0, 25.0])
    return torch.cat([corners, corners + 5 + 20 * torch.rand(100, 2, generator=generator)], 1)
