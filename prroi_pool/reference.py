"""The definition of Precise RoI Pooling in plain torch: the oracle of the tests, and the fallback on any
device.

The integral of the paper's equation 4 separates into one weight for each column of a bin, times one for each
row. On an axis where the RoI starts at `low`, bin b is the set of points low + width * (b + t) with t in [0,
1], so pixel i weighs

    ∫₀¹ K(low - i + width * (b + t)) dt,    K(x) = max(0, 1 - |x|).

No area divides and no antiderivatives are subtracted, so a RoI of 0.01 px keeps its precision. For bins of many
pixels, where differences of shares of the bin cancel, weights are computed in float64 whatever the dtype of the
features; `csrc/bilinear_integral.h`, which has the same formula for bins below a pixel, has another for those.
Gradients of any order are available.
"""

from typing import Any

import torch
from torch import Tensor

# Elements of the gathered patches that may be alive at once: 256 MiB of float32.
MAX_PATCH_ELEMENTS = 1 << 26
# Other devices may lack float64; their weights are computed on the CPU.
DEVICES_WITH_FLOAT64 = ("cpu", "cuda")


def prroi_pool2d(features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> Tensor:
    """The same contract as `functional.prroi_pool2d`, without its checks of the arguments.

    A batch index outside of the features pools to 0, on every device. Memory is bounded by
    `MAX_PATCH_ELEMENTS`, unless the RoIs require a gradient: autograd then keeps the pixels below every RoI
    for its backward pass."""
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
    # RoIs of like size share a chunk, because a chunk's patches are as large as its largest.
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
        # Sums of nothing: they keep the result differentiable, with gradients of 0.
        return result + features.flatten()[:0].sum() + rois.flatten()[:0].sum()
    return result.index_copy(0, chosen.to(features.device), torch.cat(outputs))


def mean_of_hat(low: Tensor, width: Tensor, bins: Tensor, pixels: Tensor) -> Tensor:
    """∫₀¹ K(low - pixels + width * (bins + t)) dt for the hat function K and width > 0, elementwise.

    The hat is linear between its knots -1, 0 and 1, so the mean is, for its rising and its falling side, the
    share of the bin on that side times the hat at the middle of that share.
    """
    return _MeanOfHat.apply(low, width, bins, pixels)


class _MeanOfHat(torch.autograd.Function):
    """With its derivatives by low and width written out, and themselves left to autograd.

    Autograd alone would differentiate the knots' places in the bin, too. That adds nothing, as K is
    continuous there, but in floating point it adds nothing times 1 / width: for tiny bins noise, or NaN.
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
    """The bin's shares on the rising and the falling side of the hat, and their middles, in bins from the
    RoI's start."""
    # Differences between pixel and RoI come first, as they are exact nearby: tiny bins must tell pixels
    # apart.
    offset = low - pixels
    enter, peak, leave = (_clamp_to_unit(knot - offset, width, bins) for knot in (-1, 0, 1))
    return peak - enter, leave - peak, bins + (enter + peak) / 2, bins + (peak + leave) / 2


def _clamp_to_unit(distance: Tensor, width: Tensor, bins: Tensor) -> Tensor:
    """distance / width - bins, clamped to [0, 1]. Where it is clamped nothing infinite reaches a derivative."""
    t = (distance / width).detach() - bins
    inside = (t > 0) & (t < 1)
    return torch.where(inside, torch.where(inside, distance, 0) / width - bins, (t >= 1).to(t.dtype))


def _bins(
    low: Tensor, high: Tensor, spatial_scale: float, num_bins: int, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Start of the first bin [K] and width of a bin [K] (0 for a RoI without area or with a non-finite
    coordinate), both float64, and the first and the last pixel [K] that the RoI touches, clipped to the axis;
    first > last when it touches none."""
    # Decided in the dtype given, as in the kernels: a width may underflow to 0, or overflow.
    width = (high - low) * spatial_scale / num_bins
    valid = (width > 0) & width.isfinite()
    low, high = low.double(), high.double()
    width = (high - low) * spatial_scale / num_bins
    # Replaced before any division, so that no NaN can reach a gradient.
    width = torch.where(valid, width, 0)
    low = torch.where(valid, low * spatial_scale, 0)
    first = low.detach().floor().clamp(0, size).long()
    last = (low + width * num_bins).detach().ceil().clamp(-1, size - 1).long()
    return low, width, first, last


def _weights(
    low: Tensor, width: Tensor, first: Tensor, last: Tensor, chunk: Tensor, num_bins: int
) -> tuple[Tensor, Tensor]:
    """Pixels of an axis [k, size] and their weights [k, num_bins, size], padded to the chunk's largest
    RoI."""
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
    """Splits `chosen` so that the padded patches of each part have at most MAX_PATCH_ELEMENTS elements (or
    one RoI)."""
    chunks, start, max_columns, max_rows = [], 0, 0, 0
    # Not tolist(), which fails under the transforms of torch.func in PyTorch 2.4.
    widths, heights = map(int, columns[chosen].cpu()), map(int, rows[chosen].cpu())
    for end, (w, h) in enumerate(zip(widths, heights, strict=True)):
        max_columns, max_rows = max(max_columns, w), max(max_rows, h)
        if end > start and (end - start + 1) * max_columns * max_rows * channels > MAX_PATCH_ELEMENTS:
            chunks.append(chosen[start:end])
            start, max_columns, max_rows = end, w, h
    if start < len(chosen):
        chunks.append(chosen[start:])
    return chunks
