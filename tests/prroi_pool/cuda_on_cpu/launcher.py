"""The functions of csrc/prroi_pool.h by the CUDA kernels, launched as on a GPU by `CudaKernels`, but emulated."""

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
    """Pools from one map, with the signatures of csrc/prroi_pool.h, or from the maps of a pyramid.

    Args:
        launcher: `CudaKernels`, or a changed copy
    """

    def __init__(self, emulator: Emulator, launcher: type[CudaKernels] = CudaKernels):
        self._emulator = emulator
        self._kernels = launcher(_Driver(emulator))

    def forward(self, features: Tensor, rois: Tensor, height: int, width: int, spatial_scale: float) -> Tensor:
        return self.pyramid_forward([features], rois, None, height, width, [spatial_scale])

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

    def pyramid_forward(
        self,
        maps: Sequence[Tensor],
        rois: Tensor,
        levels: Tensor | None,
        height: int,
        width: int,
        spatial_scales: Sequence[float],
    ) -> Tensor:
        with self._emulator.memory(*maps, rois, *([] if levels is None else [levels])):
            return self._kernels.forward(maps, rois, levels, height, width, spatial_scales)


class _Driver:
    """In place of `cuda_driver.Driver`."""

    def __init__(self, emulator: Emulator):
        self._emulator = emulator

    def launch(self, kernel, dtype, device, grid, block, arguments) -> None:
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self._emulator.launch(kernel, grid, block, pointers)
