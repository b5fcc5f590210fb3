"""Features and RoIs for the tests, and a function that pools them and returns the gradients."""

import torch

# (batch_index, x1, y1, x2, y2) on a map of 9 × 11 pixels: inside, across each border, around the whole map,
# within one pixel cell, across a pixel, tiny, and thin.
ROIS = [
    [0, 1.3, 2.2, 7.6, 6.9],
    [1, -3.2, -1.1, 4.7, 3.3],
    [1, 6.4, 4.6, 14.2, 12.8],
    [0, -6.3, -4.2, 17.7, 15.4],
    [0, 4.1, 4.2, 4.7, 4.8],
    [1, 4.8, 4.7, 5.3, 5.4],
    [0, 3.3, 3.6, 3.31, 3.61],
    [1, 0.4, 5.15, 9.6, 5.2],
]


def make_features(device="cpu", dtype=torch.float64, channels=3, shape=(9, 11)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, *shape, generator=generator, dtype=dtype).to(device)


def gradients(pool, features, rois, grad_output=None, bins=(3, 2), scale=0.9):
    """Return the output and the gradients of features and RoIs. By default, the output's gradient is random."""
    features, rois = features.detach().requires_grad_(), rois.detach().requires_grad_()
    output = pool(features, rois, *bins, scale)
    if grad_output is None:
        generator = torch.Generator().manual_seed(1)
        grad_output = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
    return output.detach(), *torch.autograd.grad(output, (features, rois), grad_output)
