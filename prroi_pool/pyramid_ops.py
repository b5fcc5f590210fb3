"""Pooling from a pyramid as one operator, and the gradient of its RoIs as another, for exported programs.

With a single operator, ONNX pools each RoI only from its own level. With one operator per level, it would pool all RoIs
from all levels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .extension import NAMESPACE

# True while torch.export traces. PyTorch 2.4 and 2.5 lack this function; there, torch.export traces like torch.compile.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)

Maps = Sequence[Tensor]


def pyramid_pool(
    maps: Maps, rois: Tensor, levels: Tensor, pooled_height: int, pooled_width: int, spatial_scales: Sequence[float]
) -> Tensor:
    """Pool each RoI from its level. Arguments as in `pyramid.pool_pyramid`.

    The maps may differ in dtype. The result has the widest of their dtypes.
    """
    operator = getattr(torch.ops, NAMESPACE).pyramid_pool
    dtype = functools.reduce(torch.promote_types, (features.dtype for features in maps))
    return operator(
        [features.to(dtype) for features in maps], rois, levels, pooled_height, pooled_width, list(spatial_scales)
    )


def pyramid_rois_backward(
    grad_output: Tensor, maps: Maps, rois: Tensor, levels: Tensor, spatial_scales: Sequence[float]
) -> Tensor:
    """Return the gradient of the RoIs, Tensor[K, 5], given the gradient of the output, Tensor[K, C, P, Q]."""
    operator = getattr(torch.ops, NAMESPACE).pyramid_rois_backward
    return operator(grad_output, list(maps), rois, levels, list(spatial_scales))


def _members(levels: Tensor, num_levels: int) -> list[Tensor]:
    return [(levels == level).nonzero().squeeze(1) for level in range(num_levels)]


def _pool(maps: Maps, rois: Tensor, levels: Tensor, height: int, width: int, scales: Sequence[float]) -> Tensor:
    pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], height, width)
    for features, scale, members in zip(maps, scales, _members(levels, len(maps)), strict=True):
        pooled[members] = ops.prroi_pool2d(features, rois[members], height, width, scale)
    return pooled


def _rois_backward(grad_output: Tensor, maps: Maps, rois: Tensor, levels: Tensor, scales: Sequence[float]) -> Tensor:
    grad_rois = torch.zeros_like(rois)
    for features, scale, members in zip(maps, scales, _members(levels, len(maps)), strict=True):
        rois_backward = getattr(torch.ops, NAMESPACE).rois_backward
        grad_rois[members] = rois_backward(grad_output[members], features, rois[members], scale)
    return grad_rois


def _pool_fake(maps: Maps, rois: Tensor, levels: Tensor, height: int, width: int, scales: Sequence[float]) -> Tensor:
    return maps[0].new_empty(rois.shape[0], maps[0].shape[1], height, width)


def _save_for_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, rois, levels, _, _, ctx.spatial_scales = inputs
    ctx.save_for_backward(rois, levels, *maps)


def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    # Rarely needed, because training uses one operator per level. The operators called here are differentiable, so
    # derivatives of any order are available.
    rois, levels, *maps = ctx.saved_tensors
    grad_maps, grad_rois = [], torch.zeros_like(rois)
    operators = getattr(torch.ops, NAMESPACE)
    for level, (features, scale) in enumerate(zip(maps, ctx.spatial_scales, strict=True)):
        # RoIs of other levels become empty RoIs, so that tensor sizes do not depend on values.
        of_level = rois.masked_fill((levels != level)[:, None], 0)
        channels_last = ops.is_channels_last(features)
        grad_maps.append(operators.features_backward(grad_output, of_level, features.shape, channels_last, scale))
        grad_rois = grad_rois + operators.rois_backward(grad_output, features, of_level, scale)
    return grad_maps, grad_rois, None, None, None, None


def _declare(library: torch.library.Library) -> None:
    library.define(
        "pyramid_pool(Tensor[] maps, Tensor rois, Tensor levels, SymInt pooled_height, SymInt pooled_width, "
        "float[] spatial_scales) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    library.define(
        "pyramid_rois_backward(Tensor grad_output, Tensor[] maps, Tensor rois, Tensor levels, float[] spatial_scales) "
        "-> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    library.impl("pyramid_pool", _pool, "CompositeExplicitAutograd")
    library.impl("pyramid_rois_backward", _rois_backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::pyramid_pool", _pool_fake, lib=library)
    torch.library.register_fake(
        f"{NAMESPACE}::pyramid_rois_backward",
        lambda grad_output, maps, rois, levels, spatial_scales: torch.empty_like(rois),
        lib=library,
    )
    torch.library.register_autograd(
        f"{NAMESPACE}::pyramid_pool", _gradients, setup_context=_save_for_gradients, lib=library
    )


if not hasattr(getattr(torch.ops, NAMESPACE), "pyramid_pool"):
    _library = torch.library.Library(NAMESPACE, "FRAGMENT")
    _declare(_library)
