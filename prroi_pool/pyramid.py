"""Pools from all levels of a pyramid in one launch of the CUDA kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import _len_torch_dispatch_stack

from .cuda_kernels import MAX_LEVELS, CudaKernels
from .ops import is_channels_last

# maps, rois -> pooled
Pool = Callable[[Sequence[Tensor], Tensor], Tensor]


def fits_one_launch(maps: Sequence[Tensor], rois: Tensor) -> bool:
    """Return whether the kernels can pool from these maps in one launch.

    The number of maps must not exceed the kernels' limit, and the maps may differ only in height and width. Returns
    False for traced tensors and tensor subclasses, and while a dispatch mode is active, because such a mode must see
    the operators.
    """
    kinds = {(features.dtype, features.shape[:-2], features.device) for features in maps}
    if len(maps) > MAX_LEVELS or len(kinds) > 1:
        return False
    # The kernels read memory. Subclasses such as FakeTensor may have none, and in a lazily negated tensor (is_neg) the
    # memory still holds the values before negation.
    tensors = [*maps, rois]
    is_plain = all(type(tensor) in (Tensor, Parameter) and not tensor.is_neg() for tensor in tensors)
    return is_plain and _len_torch_dispatch_stack() == 0


def pool_pyramid(
    kernels: CudaKernels,
    level_by_level: Pool,
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
) -> Tensor:
    """Pool each RoI from its level.

    Args:
        kernels: CUDA kernels.
        level_by_level: computes the same result from maps and RoIs with differentiable operators. It is used for
            higher-order derivatives.
        maps: Tensor[N, C, H_l, W_l] of one dtype.
        rois: Tensor[K, 5], float32 or float64.
        levels: Tensor[K] of int64, the index in `maps` of each RoI's map.
        output_size: number of bins, (height, width).
        spatial_scales: factor from image to feature coordinates of each map.

    Returns:
        Contiguous Tensor[K, C, *output_size], differentiable in maps and RoIs any number of times.
    """
    scales = tuple(spatial_scales)
    return _PyramidPool.apply(kernels, level_by_level, levels.contiguous(), output_size, scales, rois, *maps)


class _PyramidPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: CudaKernels,
        level_by_level: Pool,
        levels: Tensor,
        output_size: tuple[int, int],
        spatial_scales: Sequence[float],
        rois: Tensor,
        *maps: Tensor,
    ) -> Tensor:
        ctx.kernels, ctx.level_by_level, ctx.spatial_scales = kernels, level_by_level, spatial_scales
        ctx.shapes = [features.shape for features in maps]
        ctx.channels_last = [is_channels_last(features) for features in maps]
        # Only the gradient of the RoIs needs the maps' values.
        ctx.save_for_backward(levels, rois, *(maps if ctx.needs_input_grad[5] else []))
        return kernels.forward(maps, rois, levels, *output_size, spatial_scales)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        levels, rois, *maps = ctx.saved_tensors
        wanted = ctx.needs_input_grad[5:]
        # Gradients are enabled here only with create_graph=True, when the result must be differentiable.
        gradients = _by_operators if torch.is_grad_enabled() else _by_kernels
        return None, None, None, None, None, *gradients(ctx, grad_output, wanted, levels, rois, maps)


def _by_kernels(
    ctx: Any, grad_output: Tensor, wanted: Sequence[bool], levels: Tensor, rois: Tensor, maps: Sequence[Tensor]
) -> list[Tensor | None]:
    grad_rois: Tensor | None = None
    grad_maps: Sequence[Tensor | None] = [None] * len(ctx.shapes)
    if wanted[0]:
        grad_rois = ctx.kernels.rois_backward(grad_output, maps, rois, levels, ctx.spatial_scales)
    if any(wanted[1:]):
        grad_maps = ctx.kernels.features_backward(
            grad_output, rois, levels, ctx.shapes, ctx.channels_last, ctx.spatial_scales
        )
    return [grad_rois, *grad_maps]


def _by_operators(
    ctx: Any, grad_output: Tensor, wanted: Sequence[bool], levels: Tensor, rois: Tensor, maps: Sequence[Tensor]
) -> list[Tensor | None]:
    if not maps:  # not saved: pooling is linear in the maps, so their values do not affect this gradient
        zero = torch.zeros((), dtype=grad_output.dtype, device=grad_output.device)
        maps = [zero.expand(shape).requires_grad_() for shape in ctx.shapes]
    inputs = [tensor for tensor, is_wanted in zip([rois, *maps], wanted, strict=True) if is_wanted]
    found = iter(torch.autograd.grad(ctx.level_by_level(maps, rois), inputs, grad_output, create_graph=True))
    return [next(found) if is_wanted else None for is_wanted in wanted]
