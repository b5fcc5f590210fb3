"""The operator as PyTorch's dispatcher knows it: what makes torch.compile, torch.export, autograd and autocast work.

Three operators are declared: `prroi_pool2d` and its two gradients. A compiler sees each as one node, with the shape,
dtype and strides that its fake kernel tells. csrc/operators.cpp implements them; `functional.py` calls them.

Autocast needs no rule here: features of any floating dtype are pooled as they are, and RoIs stay float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import extension, reference
from .extension import NAMESPACE

# Of each argument; None where none is wanted, and for arguments that are no tensors.
Gradients = tuple[Tensor | None, ...]


def prroi_pool2d(features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> Tensor:
    """`functional.prroi_pool2d` on the compiled kernels, without the checks that need no look at the RoIs."""
    return _operators().prroi_pool2d(features, rois, pooled_height, pooled_width, spatial_scale)


def _operators() -> Any:
    return getattr(torch.ops, NAMESPACE)


def _is_channels_last(features: Tensor) -> bool:
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


def _empty(shape: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


# ---- forward


def _forward_fake(
    features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> Tensor:
    shape = (rois.shape[0], features.shape[1], pooled_height, pooled_width)
    return _empty(shape, features, _is_channels_last(features))


def _save_for_forwards_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, _, _, ctx.spatial_scale = inputs
    ctx.features_shape = features.shape
    ctx.channels_last = _is_channels_last(features)
    # Only the gradient of the RoIs needs the values of the features; that of the features needs their layout.
    ctx.save_for_backward(features if ctx.needs_input_grad[1] else None, rois)


def _gradients_of_forward(ctx: Any, grad_output: Tensor) -> Gradients:
    features, rois = ctx.saved_tensors
    grad_features = grad_rois = None
    if ctx.needs_input_grad[0]:
        grad_features = _operators().features_backward(
            grad_output, rois, ctx.features_shape, ctx.channels_last, ctx.spatial_scale
        )
    if ctx.needs_input_grad[1]:
        grad_rois = _operators().rois_backward(grad_output, features, rois, ctx.spatial_scale)
    return grad_features, grad_rois, None, None, None


# ---- gradient of the features


def _features_backward_fake(
    grad_output: Tensor, rois: Tensor, features_shape: list[int], channels_last: bool, spatial_scale: float
) -> Tensor:
    return _empty(features_shape, grad_output, channels_last)


def _save_for_features_backwards_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, rois, _, _, ctx.spatial_scale = inputs
    ctx.save_for_backward(grad_output, rois)


def _gradients_of_features_backward(ctx: Any, grad: Tensor) -> Gradients:
    # It is the transpose of the pooling, which is linear in the features: <grad, backward(g)> = <pool(grad), g>.
    grad_output, rois = ctx.saved_tensors
    grad_grad_output = grad_rois = None
    if ctx.needs_input_grad[0]:
        grad_grad_output = _operators().prroi_pool2d(grad, rois, *grad_output.shape[2:], ctx.spatial_scale)
    if ctx.needs_input_grad[1]:
        grad_rois = _operators().rois_backward(grad_output, grad, rois, ctx.spatial_scale)
    return grad_grad_output, grad_rois, None, None, None


# ---- gradient of the RoIs


def _rois_backward_fake(grad_output: Tensor, features: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
    return torch.empty(rois.shape, dtype=rois.dtype, device=rois.device)


def _save_for_rois_backwards_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, features, rois, ctx.spatial_scale = inputs
    ctx.save_for_backward(grad_output, features, rois)


def _gradients_of_rois_backward(ctx: Any, grad: Tensor) -> Gradients:
    # Rarely wanted, and so left to the reference, which differentiates without end.
    with torch.enable_grad():
        # Aliases, so that these derivatives stop at the arguments, while further ones go on to where they come from.
        inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors]
        grad_output, features, rois = inputs
        pooled_height, pooled_width = grad_output.shape[2:]
        pooled = reference.prroi_pool2d(features, rois, pooled_height, pooled_width, ctx.spatial_scale)
        (grad_rois,) = torch.autograd.grad(pooled, rois, grad_output, create_graph=True)
    return *torch.autograd.grad(grad_rois, inputs, grad, create_graph=torch.is_grad_enabled()), None


# ---- declaration


def _load_and_call(name: str) -> Callable[..., Tensor]:
    """An implementation for all devices, until that of the compiled kernels is there: it fetches it."""

    def call(*arguments: Any) -> Tensor:
        device_type = arguments[0].device.type
        if extension.kernels(device_type) is None:
            raise RuntimeError(
                f"prroi_pool has no compiled kernels for {device_type} tensors, and torch.compile and torch.export "
                "need them; `python -m prroi_pool` says why they are missing"
            )
        return getattr(_operators(), name)(*arguments)

    return call


def _declare(library: torch.library.Library) -> None:
    operators: dict[str, tuple[Callable[..., Any], ...]] = {
        "prroi_pool2d(Tensor features, Tensor rois, SymInt pooled_height, SymInt pooled_width, float spatial_scale) "
        "-> Tensor": (_forward_fake, _save_for_forwards_gradients, _gradients_of_forward),
        "features_backward(Tensor grad_output, Tensor rois, SymInt[] features_shape, bool channels_last, "
        "float spatial_scale) -> Tensor": (
            _features_backward_fake,
            _save_for_features_backwards_gradients,
            _gradients_of_features_backward,
        ),
        "rois_backward(Tensor grad_output, Tensor features, Tensor rois, float spatial_scale) -> Tensor": (
            _rois_backward_fake,
            _save_for_rois_backwards_gradients,
            _gradients_of_rois_backward,
        ),
    }
    for schema, (fake, setup_context, backward) in operators.items():
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
        name = schema.split("(")[0]
        library.impl(name, _load_and_call(name), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=library)


# A module imported anew, in a notebook say, finds the operators of the first time.
if not hasattr(_operators(), "prroi_pool2d"):
    _library = torch.library.Library(NAMESPACE, "FRAGMENT")
    _declare(_library)
