"""Precise RoI Pooling on CUDA: chooses kernels and launch sizes, and allocates outputs.

One launch pools from one map or from all levels of a pyramid. csrc/cuda/tensors.cuh defines the kernels' structures.
"""

import ctypes
import math
import struct
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from . import nvrtc
from .build_cache import BuildError
from .cuda_driver import Argument, Driver, Size, gpu_capabilities
from .extension import NAMESPACE
from .ops import computed_dtype, empty

# Limits of a GPU: threads of a warp, and the largest second dimension of a grid.
WARP, MAX_CHUNKS = 32, 65535
# Limits of the kernels: levels of a pyramid, and warps in a block.
MAX_LEVELS, WARPS = 8, 8
# Side in pixels of the square tile whose feature gradient one block computes.
TILE = 8
# Size of FeatureMap in tensors.cuh.
MAP_BYTES = 64


class Launch(Protocol):
    """Interface of `cuda_driver.Driver` and of the emulator in the tests."""

    def launch(
        self, kernel: str, dtype: torch.dtype, device: int, grid: Size, block: Size, arguments: Sequence[Argument]
    ) -> None: ...


class CudaKernels:
    """The operator and its two gradients on CUDA.

    `maps` are features [N, C, H_l, W_l] of one dtype: a single map, or the levels of a pyramid. `rois` [K, 5] are
    float32 or float64. `levels` is a contiguous Tensor[K] of int64, the index of each RoI's map, or None for a single
    map. A RoI pools to 0 if it has no area, or if its batch index or level does not exist.
    """

    def __init__(self, driver: Launch):
        self._driver = driver

    def forward(
        self,
        maps: Sequence[Tensor],
        rois: Tensor,
        levels: Tensor | None,
        pooled_height: int,
        pooled_width: int,
        spatial_scales: Sequence[float],
    ) -> Tensor:
        """Return the pooled features: a contiguous Tensor[K, C, pooled_height, pooled_width]."""
        rois = _readable(rois, maps[0])
        output = maps[0].new_empty(len(rois), maps[0].shape[1], pooled_height, pooled_width)
        if output.numel() > 0:
            arguments = [_pointer(output), *_arguments(maps, rois, levels, output.shape, spatial_scales)]
            at_once = _channels_at_once(maps)
            if at_once is None:
                self._launch("forward_strided", maps[0], None, len(rois), WARPS, arguments)
            else:
                self._launch("forward_channels_last", maps[0], at_once, len(rois), min(WARPS, pooled_height), arguments)
        return output

    def features_backward(
        self,
        grad_output: Tensor,
        rois: Tensor,
        levels: Tensor | None,
        shapes: Sequence[Sequence[int]],
        channels_last: Sequence[bool],
        spatial_scales: Sequence[float],
    ) -> list[Tensor]:
        """Return the gradients of the maps in the dtype of `grad_output`. The result is deterministic."""
        rois = _readable(rois, grad_output)
        maps = [empty(shape, grad_output, last) for shape, last in zip(shapes, channels_last, strict=True)]
        num_tiles = sum(m.shape[0] * _divide_up(m.shape[2], TILE) * _divide_up(m.shape[3], TILE) for m in maps)
        if num_tiles > 0 and maps[0].shape[1] > 0:
            grads = self._channels_to_the_end(grad_output)
            arguments = [_pointer(grads), *_arguments(maps, rois, levels, grad_output.shape, spatial_scales)]
            at_once = 4 if _is_packable(grads.permute(0, 3, 1, 2)) else 1
            self._launch("features_backward", maps[0], at_once, num_tiles, WARPS, arguments)
        return maps

    def rois_backward(
        self,
        grad_output: Tensor,
        maps: Sequence[Tensor],
        rois: Tensor,
        levels: Tensor | None,
        spatial_scales: Sequence[float],
    ) -> Tensor:
        """Return the gradient of the RoIs, Tensor[K, 5] in their dtype; 0 for batch_index. Deterministic."""
        if grad_output.numel() == 0:
            return rois.new_zeros(rois.shape)
        dtype, rois = rois.dtype, _readable(rois, maps[0])
        grad_output = grad_output.to(maps[0].dtype).contiguous()
        at_once = _channels_at_once(maps)
        # One partial gradient per chunk of channels. They are summed in a fixed order.
        partial_grads = rois.new_empty(_num_chunks(grad_output.shape[1], rois.dtype, at_once), len(rois), 5)
        arguments = [_pointer(partial_grads), _pointer(grad_output)]
        arguments += _arguments(maps, rois, levels, grad_output.shape, spatial_scales)
        if at_once is None:
            self._launch("rois_backward_strided", maps[0], None, len(rois), WARPS, arguments)
        else:
            warps = min(WARPS, grad_output.shape[2])
            self._launch("rois_backward_channels_last", maps[0], at_once, len(rois), warps, arguments)
        return (partial_grads.sum(0) if len(partial_grads) > 1 else partial_grads[0]).to(dtype)

    def _channels_to_the_end(self, grad_output: Tensor) -> Tensor:
        """Return the gradient as a contiguous Tensor[K, pooled_height, pooled_width, C]."""
        if (moved := grad_output.permute(0, 2, 3, 1)).is_contiguous():
            return moved
        grad_output = grad_output.contiguous()
        num_rois, channels, *bins = grad_output.shape
        moved = grad_output.new_empty(num_rois, *bins, channels)
        if moved.numel() > 0:
            sizes = [ctypes.c_int(channels), ctypes.c_int(bins[0] * bins[1])]
            name = nvrtc.kernel_name("channels_to_the_end", moved.dtype, None)
            grid = (num_rois, _divide_up(channels, WARP), 1)
            arguments = [_pointer(moved), _pointer(grad_output), *sizes]
            self._driver.launch(name, moved.dtype, _index(moved), grid, (WARP, WARPS, 1), arguments)
        return moved

    def _launch(
        self,
        kernel: str,
        like: Tensor,
        at_once: int | None,
        grid_width: int,
        warps: int,
        arguments: Sequence[Argument],
    ) -> None:
        grid = (grid_width, _num_chunks(like.shape[1], like.dtype, at_once), 1)
        if grid[1] > MAX_CHUNKS:
            raise ValueError(f"features have {like.shape[1]} channels, more than the CUDA kernels support")
        name = nvrtc.kernel_name(kernel, like.dtype, at_once)
        self._driver.launch(name, like.dtype, _index(like), grid, (WARP, warps, 1), arguments)


@cache
def load() -> CudaKernels:
    """Load the kernels for this machine's GPUs, and register them as the operators' CUDA implementation.

    The float32 kernels are compiled now. The kernels for another dtype are compiled on its first use.

    Raises:
        BuildError: the driver or NVRTC is missing, or the kernels cannot be compiled for any GPU of this machine.
    """
    errors = []
    capabilities = gpu_capabilities()
    for capability in capabilities:
        try:
            nvrtc.load_cubin(torch.float32, nvrtc.architecture(*capability))
        except BuildError as error:  # an unsupported GPU beside a supported one matters only if it is used
            errors.append(error)
    if len(errors) == len(capabilities) > 0:
        raise errors[0]
    kernels = CudaKernels(Driver())
    _register(kernels, NAMESPACE)
    return kernels


def _register(kernels: CudaKernels, namespace: str) -> None:
    def prroi_pool2d(features: Tensor, rois: Tensor, height: int, width: int, spatial_scale: float) -> Tensor:
        return kernels.forward([features], rois, None, height, width, [spatial_scale])

    def features_backward(
        grad_output: Tensor, rois: Tensor, shape: Sequence[int], channels_last: bool, spatial_scale: float
    ) -> Tensor:
        return kernels.features_backward(grad_output, rois, None, [shape], [channels_last], [spatial_scale])[0]

    def rois_backward(grad_output: Tensor, features: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
        return kernels.rois_backward(grad_output, [features], rois, None, [spatial_scale])

    for implementation in (prroi_pool2d, features_backward, rois_backward):
        name = implementation.__name__
        # When the package is reloaded, as in a notebook, the implementation is already registered.
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", "CUDA"):
            library = torch.library.Library(namespace, "IMPL")
            library.impl(name, implementation, "CUDA")
            _libraries.append(library)  # deleting a library deregisters its implementation


_libraries: list[torch.library.Library] = []


def _readable(rois: Tensor, features: Tensor) -> Tensor:
    return rois.to(computed_dtype(features)).contiguous()


def _channels_at_once(maps: Sequence[Tensor]) -> int | None:
    """Return how many channels a lane loads per instruction; None if channels are not adjacent in every map."""
    if any(features.stride(1) != 1 for features in maps):
        return None
    return 4 if all(map(_is_packable, maps)) else 1


def _is_packable(features: Tensor) -> bool:
    """Return whether alignment and strides allow loading four channels at once."""
    if features.dtype == torch.float64 or features.shape[1] % 4 != 0:
        return False
    aligned = features.data_ptr() % (4 * features.element_size()) == 0
    return aligned and all(features.stride(d) % 4 == 0 for d in (0, 2, 3))


def _num_chunks(channels: int, dtype: torch.dtype, at_once: int | None) -> int:
    """Return the number of blocks among which the channels are divided."""
    of_warp = 2 if dtype == torch.float64 else 4  # ChannelsOfWarp of tiles.cuh
    return _divide_up(channels, WARPS * of_warp if at_once is None else WARP * at_once)


def _divide_up(a: int, b: int) -> int:
    return -(-a // b)


def _arguments(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    output_shape: Sequence[int],
    spatial_scales: Sequence[float],
) -> list[Argument]:
    """Pack the structures Pyramid and RoIs of tensors.cuh."""
    if len(maps) > MAX_LEVELS:
        raise ValueError(f"the pyramid has {len(maps)} maps, but the CUDA kernels support at most {MAX_LEVELS}")
    if math.prod(output_shape[1:]) >= 2**31:
        raise ValueError(
            f"an output of {list(output_shape[1:])} per RoI is too large for the CUDA kernels (2**31 elements or more)"
        )
    double = rois.dtype == torch.float64
    pyramid = ctypes.create_string_buffer(MAX_LEVELS * (MAP_BYTES + (8 if double else 4)) + 16)
    for n, features in enumerate(maps):
        images, _, height, width = features.shape
        struct.pack_into("=8q", pyramid, n * MAP_BYTES, features.data_ptr(), images, height, width, *features.stride())
    scales = [*spatial_scales, *[0.0] * (MAX_LEVELS - len(maps))]
    struct.pack_into(
        f"={MAX_LEVELS}{'d' if double else 'f'}qq",
        pyramid,
        MAX_LEVELS * MAP_BYTES,
        *scales,
        0 if levels is None else levels.data_ptr(),
        len(maps),
    )
    described = ctypes.create_string_buffer(24)
    struct.pack_into("=q4i", described, 0, rois.data_ptr(), *output_shape)
    return [pyramid, described]


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _index(tensor: Tensor) -> int:
    return tensor.device.index or 0
