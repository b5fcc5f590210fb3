"""Images of noise."""

import torch


def images_of(*sizes, seed=0):
    """Images of noise that is coarse enough to survive the network's strides."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator) for height, width in sizes]
    return [
        torch.nn.functional.interpolate(noise, size=size, mode="nearest")[0]
        for noise, size in zip(coarse, sizes, strict=True)
    ]
