"""The functions of csrc/prroi_pool.h, by kernels that an emulator runs: chooses them as csrc/cuda/launch.cuh does."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .emulator import Emulator

# T, Acc, and their sizes
TYPES = {
    torch.float64: ("double", "double"),
    torch.float32: ("float", "float"),
    torch.float16: ("c10::Half", "float"),
    torch.bfloat16: ("c10::BFloat16", "float"),
}
INCLUDES = [
    "torch/headeronly/util/BFloat16.h",
    "torch/headeronly/util/Half.h",
    "cuda/channels_last.cuh",
    "cuda/strided.cuh",
]
WARP, STRIDED_WARPS, MAX_WARPS, BLOCK_CHANNELS = 32, 8, 16, 64


def kernel_names(dtypes: Sequence[torch.dtype] = tuple(TYPES)) -> list[str]:
    return [
        _name(function, layout, dtype)
        for dtype in dtypes
        for function in ("forward", "features_backward", "rois_backward")
        for layout in ("channels_last", "strided")
    ]


class CudaOnCpu:
    """`forward`, `features_backward` and `rois_backward` as in csrc/prroi_pool.h, allocating as prroi_pool.cu does."""

    def __init__(self, emulator: Emulator):
        self._emulator = emulator

    def forward(
        self, features: Tensor, rois: Tensor, height: int, width: int, channels_last: bool, spatial_scale: float
    ) -> Tensor:
        with self._emulator.memory(features, rois):
            output = _empty((len(rois), features.shape[1], height, width), features.dtype, channels_last)
            if output.numel() == 0:
                return output
            channels = features.shape[1]
            pack = 16 // features.element_size()
            if _is_packable(features, pack) and _is_packable(output, pack):
                layout, chunks, warps = "channels_last", -(-channels // (WARP * pack)), min(height, 8)
            else:
                layout, chunks, warps = "strided", -(-channels // BLOCK_CHANNELS), STRIDED_WARPS
            self._launch(
                "forward", layout, features.dtype, (len(rois), chunks), warps, output, features, rois, spatial_scale
            )
            return output

    def features_backward(
        self, grad_output: Tensor, rois: Tensor, shape: Sequence[int], channels_last: bool, spatial_scale: float
    ) -> Tensor:
        with self._emulator.memory(grad_output, rois):
            grad_features = _empty(shape, rois.dtype, channels_last).zero_()
            if grad_output.numel() > 0 and grad_features.numel() > 0:
                channels = grad_output.shape[1]
                if grad_features.stride(1) == 1:
                    layout, chunks, warps = "channels_last", -(-channels // (WARP * 4)), 8
                else:
                    layout, chunks, warps = "strided", -(-channels // BLOCK_CHANNELS), STRIDED_WARPS
                self._launch(
                    "features_backward",
                    layout,
                    grad_output.dtype,
                    (len(rois), chunks),
                    warps,
                    grad_features,
                    grad_output,
                    rois,
                    spatial_scale,
                )
            return grad_features.to(grad_output.dtype)

    def rois_backward(self, grad_output: Tensor, features: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
        with self._emulator.memory(grad_output, features, rois):
            grad_rois = torch.zeros_like(rois, memory_format=torch.contiguous_format)
            if grad_output.numel() > 0 and features.numel() > 0:
                memory_format = torch.channels_last if features.stride(1) == 1 else torch.contiguous_format
                grad_output = grad_output.contiguous(memory_format=memory_format)
                pack = 16 // rois.element_size()
                packable = _is_packable(features, pack) and _is_packable(grad_output, pack)
                self._launch(
                    "rois_backward",
                    "channels_last" if packable else "strided",
                    features.dtype,
                    (len(rois), 1),
                    MAX_WARPS,
                    grad_rois,
                    grad_output,
                    features,
                    rois,
                    spatial_scale,
                )
            return grad_rois

    def _launch(
        self,
        function: str,
        layout: str,
        dtype: torch.dtype,
        grid: tuple[int, int],
        warps: int,
        *arguments: Tensor | float,
    ) -> None:
        scalar = ctypes.c_double if dtype == torch.float64 else ctypes.c_float
        passed: list[ctypes.Structure | ctypes.c_void_p | ctypes.c_float | ctypes.c_double] = []
        for argument in arguments:
            if not isinstance(argument, Tensor):
                passed.append(scalar(argument))
            elif argument.dim() == 4:
                passed.append(_TensorView(argument.data_ptr(), argument.shape, argument.stride()))
            else:
                passed.append(ctypes.c_void_p(argument.contiguous().data_ptr()))
        pointers = (ctypes.c_void_p * len(passed))(*map(ctypes.addressof, passed))
        self._emulator.launch(_name(function, layout, dtype), (*grid, 1), (WARP, warps, 1), pointers)


class _TensorView(ctypes.Structure):
    """TensorView in csrc/cuda/tensor_view.cuh."""

    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_int64 * 4), ("stride", ctypes.c_int64 * 4)]

    def __init__(self, data: int, size: Sequence[int], stride: Sequence[int]):
        super().__init__(data, tuple(size), tuple(stride))


def _name(function: str, layout: str, dtype: torch.dtype) -> str:
    scalar, sum_ = TYPES[dtype]
    if layout == "strided":
        return f"prroi_pool::{function}_strided<{scalar}, {sum_}>"
    sizes = {
        "forward": 16 // dtype.itemsize,
        "features_backward": 4,
        "rois_backward": 2 if dtype == torch.float64 else 4,
    }
    return f"prroi_pool::{function}_channels_last<{scalar}, {sum_}, {sizes[function]}>"


def _is_packable(tensor: Tensor, pack: int) -> bool:
    """Whether the channels can be moved `pack` at a time."""
    batch, channel, row, column = tensor.stride()
    strides = (tensor.shape[1], batch, row, column)
    is_aligned = tensor.data_ptr() % (pack * tensor.element_size()) == 0
    return channel == 1 and is_aligned and all(stride % pack == 0 for stride in strides)


def _empty(shape: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, memory_format=memory_format)
