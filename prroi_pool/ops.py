"""Registers the operators with PyTorch's dispatcher, for torch.compile, torch.export, autograd and autocast.

This module declares three operators: `prroi_pool2d` and its two gradients. A compiler sees each of them as one node,
and its fake kernel gives the shape, dtype and strides of the output. csrc/operators.cpp implements the operators on the
CPU, `cuda_kernels.py` on CUDA, and `reference.py` where no kernels are built. `functional.py` calls them.

Autocast needs no rule: features keep their floating-point dtype, and RoIs are float32 or float64.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import extension, reference
from .extension import NAMESPACE

# One gradient per argument; None if it is not needed or the argument is not a tensor.
Gradients = tuple[Tensor | None, ...]
# Whether torch.compile supports the transforms of torch.func.
COMPILES_TRANSFORMS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)


def prroi_pool2d(features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> Tensor:
    """Compute `functional.prroi_pool2d`, checking only the batch indices (on the CPU)."""
    return _call("prroi_pool2d", features, rois, pooled_height, pooled_width, spatial_scale)


def _call(name: str, *arguments: Any) -> Tensor:
    # The transforms of torch.func reject what torch.library.register_autograd registers; they need autograd.Function.
    if transforms_are_active():
        return _FUNCTIONS[name].apply(*arguments)
    return getattr(_operators(), name)(*arguments)


def transforms_are_active() -> bool:
    # torch.compile of PyTorch 2.4 cannot trace the call below.
    if torch.compiler.is_compiling() and not COMPILES_TRANSFORMS:
        return False
    # autograd.Function itself uses this private function; there is no public one.
    return torch._C._are_functorch_transforms_active()


def _operators() -> Any:
    return getattr(torch.ops, NAMESPACE)


def is_channels_last(features: Tensor) -> bool:
    # Equivalent to is_contiguous(memory_format=torch.channels_last), which raises under vmap.
    return features.permute(0, 2, 3, 1).is_contiguous() and not features.is_contiguous()


def computed_dtype(features: Tensor) -> torch.dtype:
    """Return the dtype of the sums and of the RoIs in the computation."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def empty(shape: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _pool_by_reference(features: Tensor, rois: Tensor, bins: Sequence[int], spatial_scale: float) -> Tensor:
    """Return the reference's output in the dtype in which the kernels compute sums."""
    dtype = computed_dtype(features)
    pooled_height, pooled_width = bins
    return reference.prroi_pool2d(features.to(dtype), rois.to(dtype), pooled_height, pooled_width, spatial_scale)


def _vjp_inside_an_operator(pool: Callable[[Tensor], Tensor], argument: Tensor, grad_output: Tensor) -> Tensor:
    """Return the gradient of `argument`, an input of `pool`.

    The dispatcher disables autograd inside an operator; this function enables it again. `torch.func.vjp` would
    enable it too, but not inside a TorchDispatchMode, which torch.compile uses.
    """
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    autograd = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    with torch._C._ForceDispatchKeyGuard(include, exclude - autograd), torch.enable_grad():
        argument = argument.detach().requires_grad_()
        pooled = pool(argument)
        return torch.autograd.grad(pooled, argument, grad_output.to(pooled.dtype))[0]


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context that disables autocast, which would round the reference's matrix products."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


# ---- forward


def _forward_fake(
    features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> Tensor:
    return empty((rois.shape[0], features.shape[1], pooled_height, pooled_width), features, channels_last=False)


def _forward_by_reference(
    features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> Tensor:
    if rois.device.type == "cpu":
        _check_batch_index(rois, len(features))
    return _pool_by_reference(features, rois, (pooled_height, pooled_width), spatial_scale).to(features.dtype)


def _check_batch_index(rois: Tensor, num_images: int) -> None:
    batch_index = rois[:, 0]
    wrong = batch_index != batch_index.floor().clamp(0, num_images - 1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"rois[{row}, 0], the batch index, is {batch_index[row].item():g}, but must be an integer in "
            f"[0, {num_images}), as features holds {num_images} image(s); the columns of rois must be "
            "(batch_index, x1, y1, x2, y2)"
        )


def _save_for_forwards_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, _, _, ctx.spatial_scale = inputs
    ctx.features_shape = features.shape
    ctx.channels_last = is_channels_last(features)
    # Only the gradient of the RoIs needs the features' values. The gradient of the features needs only their layout.
    ctx.save_for_backward(features if ctx.needs_input_grad[1] else None, rois)


def _gradients_of_forward(ctx: Any, grad_output: Tensor) -> Gradients:
    features, rois = ctx.saved_tensors
    grad_features = grad_rois = None
    if ctx.needs_input_grad[0]:
        grad_features = _call(
            "features_backward", grad_output, rois, ctx.features_shape, ctx.channels_last, ctx.spatial_scale
        )
    if ctx.needs_input_grad[1]:
        grad_rois = _call("rois_backward", grad_output, features, rois, ctx.spatial_scale)
    return grad_features, grad_rois, None, None, None


# ---- gradient of the features


def _features_backward_fake(
    grad_output: Tensor, rois: Tensor, features_shape: list[int], channels_last: bool, spatial_scale: float
) -> Tensor:
    return empty(features_shape, grad_output, channels_last)


def _features_backward_by_reference(
    grad_output: Tensor, rois: Tensor, features_shape: list[int], channels_last: bool, spatial_scale: float
) -> Tensor:
    # Pooling is linear in the features, so their values do not affect this gradient.
    features = torch.zeros((), dtype=grad_output.dtype, device=grad_output.device).expand(features_shape)
    grad_features = _vjp_inside_an_operator(
        lambda features: _pool_by_reference(features, rois, grad_output.shape[2:], spatial_scale), features, grad_output
    )
    return empty(features_shape, grad_output, channels_last).copy_(grad_features)


def _save_for_features_backwards_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, rois, _, _, ctx.spatial_scale = inputs
    ctx.save_for_backward(grad_output, rois)


def _gradients_of_features_backward(ctx: Any, grad: Tensor) -> Gradients:
    # features_backward is the transpose of pooling, which is linear: <grad, backward(g)> = <pool(grad), g>.
    grad_output, rois = ctx.saved_tensors
    grad_grad_output = grad_rois = None
    if ctx.needs_input_grad[0]:
        grad_grad_output = _call("prroi_pool2d", grad, rois, *grad_output.shape[2:], ctx.spatial_scale)
    if ctx.needs_input_grad[1]:
        grad_rois = _call("rois_backward", grad_output, grad, rois, ctx.spatial_scale)
    return grad_grad_output, grad_rois, None, None, None


# ---- gradient of the RoIs


def _rois_backward_fake(grad_output: Tensor, features: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
    return torch.empty(rois.shape, dtype=rois.dtype, device=rois.device)


def _rois_backward_by_reference(grad_output: Tensor, features: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
    return _vjp_inside_an_operator(
        lambda rois: _pool_by_reference(features, rois, grad_output.shape[2:], spatial_scale), rois, grad_output
    )


def _save_for_rois_backwards_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, features, rois, ctx.spatial_scale = inputs
    ctx.save_for_backward(grad_output, features, rois)


def _gradients_of_rois_backward(ctx: Any, grad: Tensor) -> Gradients:
    # Rarely needed, so the reference computes it. The reference is differentiable any number of times.
    def rois_backward(grad_output: Tensor, features: Tensor, rois: Tensor) -> Tensor:
        pooled, vjp = torch.func.vjp(
            lambda rois: _pool_by_reference(features, rois, grad_output.shape[2:], ctx.spatial_scale), rois
        )[:2]
        return vjp(grad_output.to(pooled.dtype))[0]

    with _without_autocast(grad.device.type):
        return *torch.func.vjp(rois_backward, *ctx.saved_tensors)[1](grad), None


# ---- declaration


class _Operator(NamedTuple):
    schema: str
    fake: Callable[..., Tensor]
    by_reference: Callable[..., Tensor]
    save_for_gradients: Callable[..., None]
    gradients: Callable[..., Gradients]


_OPERATORS = {
    "prroi_pool2d": _Operator(
        "(Tensor features, Tensor rois, SymInt pooled_height, SymInt pooled_width, float spatial_scale) -> Tensor",
        _forward_fake,
        _forward_by_reference,
        _save_for_forwards_gradients,
        _gradients_of_forward,
    ),
    "features_backward": _Operator(
        "(Tensor grad_output, Tensor rois, SymInt[] features_shape, bool channels_last, float spatial_scale) -> Tensor",
        _features_backward_fake,
        _features_backward_by_reference,
        _save_for_features_backwards_gradients,
        _gradients_of_features_backward,
    ),
    "rois_backward": _Operator(
        "(Tensor grad_output, Tensor features, Tensor rois, float spatial_scale) -> Tensor",
        _rois_backward_fake,
        _rois_backward_by_reference,
        _save_for_rois_backwards_gradients,
        _gradients_of_rois_backward,
    ),
}


def _function(name: str, operator: _Operator) -> type[torch.autograd.Function]:
    """Return the operator as an autograd.Function."""
    members = {
        "forward": staticmethod(lambda *arguments: getattr(_operators(), name)(*arguments)),
        "setup_context": staticmethod(operator.save_for_gradients),
        "backward": staticmethod(operator.gradients),
        "generate_vmap_rule": True,
    }
    return type(name, (torch.autograd.Function,), members)


_FUNCTIONS = {name: _function(name, operator) for name, operator in _OPERATORS.items()}


def _load_and_call(name: str, by_reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the implementation of an operator that runs on any device until its kernels are loaded.

    A call loads the device's kernels, which replace this implementation in the dispatcher. If there are none, the call
    runs the reference.
    """

    def call(*arguments: Any) -> Tensor:
        device_type = arguments[0].device.type
        if extension.kernels(device_type) is None:
            with _without_autocast(device_type):
                return by_reference(*arguments)
        return getattr(_operators(), name)(*arguments)

    return call


def _declare(library: torch.library.Library) -> None:
    for name, operator in _OPERATORS.items():
        library.define(name + operator.schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
        library.impl(name, _load_and_call(name, operator.by_reference), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", operator.fake, lib=library)
        torch.library.register_autograd(
            f"{NAMESPACE}::{name}", operator.gradients, setup_context=operator.save_for_gradients, lib=library
        )


# When the module is reloaded, as in a notebook, the operators are already declared.
if not hasattr(_operators(), "prroi_pool2d"):
    _library = torch.library.Library(NAMESPACE, "FRAGMENT")
    _declare(_library)
