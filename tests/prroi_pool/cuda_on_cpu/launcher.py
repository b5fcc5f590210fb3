"""Implements csrc/prroi_pool.h with the CUDA kernels: `CudaKernels` launches them, and the emulator runs them."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from prroi_pool import nvrtc
from prroi_pool.cuda_kernels import CudaKernels

from .emulator import Emulator

INCLUDES = ["cuda/kernels.cu"]


def kernel_names(dtypes: Sequence[torch.dtype] = tuple(nvrtc.TYPES)) -> list[str]:
    return [name for dtype in dtypes for name in nvrtc.kernel_names(dtype)]


class CudaOnCpu:
    """Pools from one map, with the signatures of csrc/prroi_pool.h.

    Args:
        emulator: emulator with the compiled kernels.
        launcher: `CudaKernels`, or a modified copy.
    """

    def __init__(self, emulator: Emulator, launcher: type[CudaKernels] = CudaKernels):
        self._emulator = emulator
        self._kernels = launcher(_Driver(emulator))

    def forward(self, features: Tensor, rois: Tensor, height: int, width: int, spatial_scale: float) -> Tensor:
        with self._emulator.memory(features, rois):
            return self._kernels.forward([features], rois, None, height, width, [spatial_scale])

    def features_backward(
        self, grad_output: Tensor, rois: Tensor, shape: Sequence[int], channels_last: bool, spatial_scale: float
    ) -> Tensor:
        with self._emulator.memory(grad_output, rois):
            return self._kernels.features_backward(grad_output, rois, None, [shape], [channels_last], [spatial_scale])[
                0
            ]

    def rois_backward(self, grad_output: Tensor, features: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
        with self._emulator.memory(grad_output, features, rois):
            return self._kernels.rois_backward(grad_output, [features], rois, None, [spatial_scale])

    @property
    def of_pyramid(self) -> "OfPyramid":
        """Return the kernels with the signatures of `CudaKernels`, for pyramids."""
        return OfPyramid(self._emulator, self._kernels)


class OfPyramid:
    def __init__(self, emulator: Emulator, kernels: CudaKernels):
        self._emulator = emulator
        self._kernels = kernels

    def forward(self, maps, rois, levels, *arguments) -> Tensor:
        with self._emulator.memory(*maps, rois, levels):
            return self._kernels.forward(maps, rois, levels, *arguments)

    def features_backward(self, grad_output, rois, levels, *arguments) -> list[Tensor]:
        with self._emulator.memory(grad_output, rois, levels):
            return self._kernels.features_backward(grad_output, rois, levels, *arguments)

    def rois_backward(self, grad_output, maps, rois, levels, spatial_scales) -> Tensor:
        with self._emulator.memory(grad_output, *maps, rois, levels):
            return self._kernels.rois_backward(grad_output, maps, rois, levels, spatial_scales)


class _Driver:
    """Replaces `cuda_driver.Driver`."""

    def __init__(self, emulator: Emulator):
        self._emulator = emulator

    def launch(self, kernel, dtype, device, grid, block, arguments) -> None:
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self._emulator.launch(kernel, grid, block, pointers)
