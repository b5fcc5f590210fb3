"""The definition of Precise RoI Pooling in plain PyTorch: the expected result in tests, and the fallback on any device.

The integral in the paper's equation 4 separates into one weight per column of a bin times one weight per row. On an
axis where the RoI starts at `low`, bin b consists of the points low + width * (b + t) for t in [0, 1], so pixel i has
the weight

    ∫₀¹ K(low - i + width * (b + t)) dt,    K(x) = max(0, 1 - |x|).

This form neither divides by an area nor subtracts antiderivatives, so a RoI of 0.01 px keeps its precision. In bins of
many pixels, subtracting fractions of the bin loses digits. Weights are therefore computed in float64 for every dtype of
the features. `csrc/bilinear_integral.h` uses the same formula for bins below one pixel and a different one for
larger bins. Gradients of any order are available.
"""

from typing import Any

import torch
from torch import Tensor

# Maximum number of elements in the gathered patches of one chunk: 256 MiB in float32.
MAX_PATCH_ELEMENTS = 1 << 26
# Other devices may lack float64, so their weights are computed on the CPU.
DEVICES_WITH_FLOAT64 = ("cpu", "cuda")


def prroi_pool2d(features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> Tensor:
    """Compute `functional.prroi_pool2d` in plain PyTorch, without checking the arguments.

    A RoI whose batch index names no image pools to 0 on every device. `MAX_PATCH_ELEMENTS` bounds the memory, unless
    the RoIs require a gradient: autograd then keeps the pixels under every RoI for the backward pass.
    """
    num_images, channels, height, width = features.shape
    rois = rois.to(features.dtype)
    boxes = rois if rois.device.type in DEVICES_WITH_FLOAT64 else rois.cpu()
    batch_index = boxes[:, 0].detach()
    x1, y1, x2, y2 = boxes[:, 1:].unbind(1)
    x1, x_bin, x_first, x_last = _bins(x1, x2, spatial_scale, pooled_width, width)
    y1, y_bin, y_first, y_last = _bins(y1, y2, spatial_scale, pooled_height, height)

    has_image = (batch_index >= 0) & (batch_index < num_images) & (batch_index == batch_index.floor())
    touches_map = (x_bin > 0) & (y_bin > 0) & (x_first <= x_last) & (y_first <= y_last)
    chosen = (has_image & touches_map).nonzero().squeeze(1)
    # Sorted by size, because all patches of a chunk are padded to the largest of them.
    area = (x_last - x_first + 1) * (y_last - y_first + 1)
    chosen = chosen[area[chosen].argsort(stable=True)]

    features = features.permute(0, 2, 3, 1)
    outputs = []
    for chunk in _chunks(chosen, x_last - x_first + 1, y_last - y_first + 1, channels):
        columns, a_x = _weights(x1, x_bin, x_first, x_last, chunk, pooled_width)
        rows, a_y = _weights(y1, y_bin, y_first, y_last, chunk, pooled_height)
        image = batch_index[chunk].long()
        image, rows, columns = (index.to(features.device) for index in (image, rows, columns))
        patch = features[image[:, None, None], rows[:, :, None], columns[:, None, :]]  # [k, rows, columns, C]
        outputs.append(torch.einsum("kpj,kjic,kqi->kcpq", a_y.to(features), patch, a_x.to(features)))

    result = features.new_zeros(len(rois), channels, pooled_height, pooled_width)
    if not outputs:
        # Adding empty sums keeps the result differentiable, with gradients of 0.
        return result + features.flatten()[:0].sum() + rois.flatten()[:0].sum()
    return result.index_copy(0, chosen.to(features.device), torch.cat(outputs))


def mean_of_hat(low: Tensor, width: Tensor, bins: Tensor, pixels: Tensor) -> Tensor:
    """Return ∫₀¹ K(low - pixels + width * (bins + t)) dt for the hat function K and width > 0, elementwise.

    K is linear between its knots -1, 0 and 1. The mean is therefore a sum over the rising and the falling side of K:
    the fraction of the bin on that side times the value of K at the midpoint of that part.
    """
    return _MeanOfHat.apply(low, width, bins, pixels)


class _MeanOfHat(torch.autograd.Function):
    """`mean_of_hat` with explicit first derivatives in `low` and `width`. Autograd computes the higher derivatives.

    Autograd alone would also differentiate the positions of the knots in the bin. K is continuous there, so these terms
    cancel, but their rounding error is multiplied by 1 / width, which gives noise or NaN for tiny bins.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(low: Tensor, width: Tensor, bins: Tensor, pixels: Tensor) -> Tensor:
        rising, falling, t_rising, t_falling = _sides(low, width, bins, pixels)
        offset = low - pixels
        return rising * (1 + (offset + width * t_rising)) + falling * (1 - (offset + width * t_falling))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low, width, bins, pixels = ctx.saved_tensors
        rising, falling, t_rising, t_falling = _sides(low, width, bins, pixels)
        grad_low = grad * (rising - falling)  # K' is 1 on the rising side and -1 on the falling one
        grad_width = grad * (rising * t_rising - falling * t_falling)
        return grad_low.sum_to_size(low.shape), grad_width.sum_to_size(width.shape), None, None


def _sides(low: Tensor, width: Tensor, bins: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the fractions of a bin on the hat's rising and falling sides, and the midpoints of these two parts.

    The midpoints are measured in bins from the start of the RoI.
    """
    # Subtract the pixel from the RoI's start first, which is exact for nearby values; tiny bins need this precision.
    offset = low - pixels
    enter, peak, leave = (_clamp_to_unit(knot - offset, width, bins) for knot in (-1, 0, 1))
    return peak - enter, leave - peak, bins + (enter + peak) / 2, bins + (peak + leave) / 2


def _clamp_to_unit(distance: Tensor, width: Tensor, bins: Tensor) -> Tensor:
    """Return distance / width - bins, clamped to [0, 1], without infinite derivatives where it is clamped."""
    t = (distance / width).detach() - bins
    inside = (t > 0) & (t < 1)
    return torch.where(inside, torch.where(inside, distance, 0) / width - bins, (t >= 1).to(t.dtype))


def _bins(
    low: Tensor, high: Tensor, spatial_scale: float, num_bins: int, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the geometry of the RoIs on one axis: four tensors [K].

    Returns:
        Start of the first bin and width of a bin, both float64. The width is 0 for a RoI without area or with a
        non-finite coordinate. First and last pixel that the RoI touches, clipped to the axis; first > last if it
        touches none.
    """
    # Validity is decided in the given dtype, as in the kernels, where a width may underflow to 0 or overflow.
    width = (high - low) * spatial_scale / num_bins
    valid = (width > 0) & width.isfinite()
    low, high = low.double(), high.double()
    width = (high - low) * spatial_scale / num_bins
    # Replace invalid values before any division, so that no NaN reaches a gradient.
    width = torch.where(valid, width, 0)
    low = torch.where(valid, low * spatial_scale, 0)
    first = low.detach().floor().clamp(0, size).long()
    last = (low + width * num_bins).detach().ceil().clamp(-1, size - 1).long()
    return low, width, first, last


def _weights(
    low: Tensor, width: Tensor, first: Tensor, last: Tensor, chunk: Tensor, num_bins: int
) -> tuple[Tensor, Tensor]:
    """Return pixels [k, size] and weights [k, num_bins, size] on an axis, padded to the chunk's largest RoI."""
    low, width, first, last = (
        low[chunk, None, None],
        width[chunk, None, None],
        first[chunk, None],
        last[chunk, None],
    )
    pixels = first + torch.arange(int((last - first).max()) + 1, device=first.device)
    inside = pixels <= last
    pixels = torch.minimum(pixels, last)
    bins = torch.arange(num_bins, device=low.device)[:, None]
    return pixels, mean_of_hat(low, width, bins, pixels[:, None, :]) * inside[:, None, :]


def _chunks(chosen: Tensor, columns: Tensor, rows: Tensor, channels: int) -> list[Tensor]:
    """Split `chosen` into chunks whose padded patches have at most MAX_PATCH_ELEMENTS elements.

    A RoI that exceeds this limit forms a chunk alone.
    """
    chunks, start, max_columns, max_rows = [], 0, 0, 0
    # tolist() fails under the transforms of torch.func in PyTorch 2.4.
    widths, heights = map(int, columns[chosen].cpu()), map(int, rows[chosen].cpu())
    for end, (w, h) in enumerate(zip(widths, heights, strict=True)):
        max_columns, max_rows = max(max_columns, w), max(max_rows, h)
        if end > start and (end - start + 1) * max_columns * max_rows * channels > MAX_PATCH_ELEMENTS:
            chunks.append(chosen[start:end])
            start, max_columns, max_rows = end, w, h
    if start < len(chosen):
        chunks.append(chosen[start:])
    return chunks
