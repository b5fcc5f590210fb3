"""The operator as PyTorch's dispatcher knows it: what makes torch.compile, torch.export, autograd and autocast work.

Three operators are registered: `prroi_pool2d` and its two gradients. A compiler sees each as one node, with the shape,
dtype and strides that its fake kernel tells. They run the compiled kernels; `functional.py` calls them.

Autocast needs no rule here: features of any floating dtype are pooled as they are, and RoIs stay float32.
"""

from types import ModuleType

import torch
from torch import Tensor

from . import extension, reference

# Two copies of this folder, vendored by two projects, can be imported into one process: each has its own operators.
NAMESPACE = __package__.replace(".", "_")


def prroi_pool2d(features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> Tensor:
    """`functional.prroi_pool2d` on the compiled kernels, without the checks that need no look at the RoIs."""
    return _operators().prroi_pool2d(features, rois, pooled_height, pooled_width, spatial_scale)


def _operators():
    return getattr(torch.ops, NAMESPACE)


def _kernels(tensor: Tensor) -> ModuleType:
    kernels = extension.kernels(tensor.device.type)
    if kernels is None:
        raise RuntimeError(
            f"prroi_pool has no compiled kernels for {tensor.device.type} tensors, and torch.compile and torch.export "
            "need them; `python -m prroi_pool` says why they are missing"
        )
    return kernels


def _is_channels_last(features: Tensor) -> bool:
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


def _empty(shape: tuple[int, ...], like: Tensor, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def computed(tensor: Tensor) -> Tensor:
    """In the dtype that the sums are computed in."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _readable(tensor: Tensor) -> Tensor:
    """As the kernels take features: those for CUDA read half types, too."""
    return tensor if tensor.is_cuda else computed(tensor)


def _rois_for(tensor: Tensor, rois: Tensor) -> Tensor:
    """The RoIs in the dtype that the kernels take beside features of this tensor's dtype."""
    return rois.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)


# ---- forward


def _forward(features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> Tensor:
    if rois.device.type == "cpu":
        check_batch_index(rois, len(features))
    pooled = _kernels(features).forward(
        _readable(features),
        _rois_for(features, rois),
        pooled_height,
        pooled_width,
        _is_channels_last(features),
        spatial_scale,
    )
    return pooled.to(features.dtype)


def _forward_fake(
    features: Tensor, rois: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> Tensor:
    shape = (rois.shape[0], features.shape[1], pooled_height, pooled_width)
    return _empty(shape, features, _is_channels_last(features))


def check_batch_index(rois: Tensor, num_images: int) -> None:
    """Raises ValueError for a RoI whose image does not exist. On the CPU only: a GPU would have to be waited for."""
    batch_index = rois.detach()[:, 0]
    nearest = batch_index.floor().clamp(0, num_images - 1)
    if not torch.equal(batch_index, nearest):
        row = int((batch_index != nearest).nonzero()[0])
        raise ValueError(
            f"rois[{row}, 0], the batch index, is {batch_index[row].item():g}, but must be an integer in "
            f"[0, {num_images}) for features of {num_images} image(s); are the columns "
            "(batch_index, x1, y1, x2, y2)?"
        )


def _save_for_forwards_gradients(ctx, inputs, output) -> None:
    features, rois, _, _, ctx.spatial_scale = inputs
    ctx.features_shape = features.shape
    ctx.channels_last = _is_channels_last(features)
    # Only the gradient of the RoIs needs the values of the features; that of the features needs their layout.
    ctx.save_for_backward(features if ctx.needs_input_grad[1] else None, rois)


def _gradients_of_forward(ctx, grad_output: Tensor):
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


def _features_backward(
    grad_output: Tensor, rois: Tensor, features_shape: list[int], channels_last: bool, spatial_scale: float
) -> Tensor:
    grad_features = _kernels(grad_output).features_backward(
        _readable(grad_output), _rois_for(grad_output, rois), features_shape, channels_last, spatial_scale
    )
    return grad_features.to(grad_output.dtype)


def _features_backward_fake(
    grad_output: Tensor, rois: Tensor, features_shape: list[int], channels_last: bool, spatial_scale: float
) -> Tensor:
    return _empty(features_shape, grad_output, channels_last)


def _save_for_features_backwards_gradients(ctx, inputs, output) -> None:
    grad_output, rois, _, _, ctx.spatial_scale = inputs
    ctx.save_for_backward(grad_output, rois)


def _gradients_of_features_backward(ctx, grad: Tensor):
    # It is the transpose of the pooling, which is linear in the features: <grad, backward(g)> = <pool(grad), g>.
    grad_output, rois = ctx.saved_tensors
    grad_grad_output = grad_rois = None
    if ctx.needs_input_grad[0]:
        grad_grad_output = _operators().prroi_pool2d(grad, rois, *grad_output.shape[2:], ctx.spatial_scale)
    if ctx.needs_input_grad[1]:
        grad_rois = _operators().rois_backward(grad_output, grad, rois, ctx.spatial_scale)
    return grad_grad_output, grad_rois, None, None, None


# ---- gradient of the RoIs


def _rois_backward(grad_output: Tensor, features: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
    values = _readable(features)
    grad_rois = _kernels(features).rois_backward(
        grad_output.to(values.dtype), values, _rois_for(features, rois), spatial_scale
    )
    return grad_rois.to(rois.dtype)


def _rois_backward_fake(grad_output: Tensor, features: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
    return torch.empty(rois.shape, dtype=rois.dtype, device=rois.device)


def _save_for_rois_backwards_gradients(ctx, inputs, output) -> None:
    grad_output, features, rois, ctx.spatial_scale = inputs
    ctx.save_for_backward(grad_output, features, rois)


def _gradients_of_rois_backward(ctx, grad: Tensor):
    # Rarely wanted, and so left to the reference, which differentiates without end.
    with torch.enable_grad():
        # Aliases, so that these derivatives stop at the arguments, while further ones go on to where they come from.
        inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors]
        grad_output, features, rois = inputs
        pooled = reference.prroi_pool2d(features, rois, *grad_output.shape[2:], ctx.spatial_scale)
        (grad_rois,) = torch.autograd.grad(pooled, rois, grad_output, create_graph=True)
    return *torch.autograd.grad(grad_rois, inputs, grad, create_graph=torch.is_grad_enabled()), None


# ---- registration


def _register(library: torch.library.Library) -> None:
    operators = {
        "prroi_pool2d(Tensor features, Tensor rois, SymInt pooled_height, SymInt pooled_width, float spatial_scale) "
        "-> Tensor": (_forward, _forward_fake, _save_for_forwards_gradients, _gradients_of_forward),
        "features_backward(Tensor grad_output, Tensor rois, SymInt[] features_shape, bool channels_last, "
        "float spatial_scale) -> Tensor": (
            _features_backward,
            _features_backward_fake,
            _save_for_features_backwards_gradients,
            _gradients_of_features_backward,
        ),
        "rois_backward(Tensor grad_output, Tensor features, Tensor rois, float spatial_scale) -> Tensor": (
            _rois_backward,
            _rois_backward_fake,
            _save_for_rois_backwards_gradients,
            _gradients_of_rois_backward,
        ),
    }
    for schema, (implementation, fake, setup_context, backward) in operators.items():
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
        name = schema.split("(")[0]
        library.impl(name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=library)


# A module imported anew, in a notebook say, finds the operators of the first time.
if not hasattr(_operators(), "prroi_pool2d"):
    _library = torch.library.Library(NAMESPACE, "FRAGMENT")
    _register(_library)
