"""prroi_pool's CUDA kernels compiled for the CPU, behind the interface of its compiled modules.

They run several hundred times as long as those made for the CPU, but are the very source that nvcc compiles.
"""

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prroi_pool import extension

FOLDER = Path(__file__).parent
# Undefined behaviour ends the process: an index beyond a table, or an address that a GPU could not load from.
FLAGS = ["-O2", "-std=c++17", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-shared", "-fPIC"]
INCLUDES = [extension.SOURCES / "cuda", Path(torch.__file__).parent / "include"]


class CudaOnCpu:
    """`forward`, `features_backward` and `rois_backward` as in csrc/prroi_pool.h, allocating as prroi_pool.cu does."""

    def __init__(self, folder: Path):
        library = folder / "kernels.so"
        includes = [f"-I{path}" for path in INCLUDES]
        command = [extension.find_compiler(), *FLAGS, *includes, FOLDER / "kernels.cpp", "-o", library]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(str(library))

    def forward(
        self, features: Tensor, rois: Tensor, height: int, width: int, channels_last: bool, spatial_scale: float
    ) -> Tensor:
        output = _full((len(rois), features.shape[1], height, width), float("nan"), features.dtype, channels_last)
        if output.numel() > 0:
            self._launch("forward", features.dtype, output, features, rois.contiguous(), spatial_scale)
        return output

    def features_backward(
        self, grad_output: Tensor, rois: Tensor, shape: Sequence[int], channels_last: bool, spatial_scale: float
    ) -> Tensor:
        grad_features = _full(shape, 0, rois.dtype, channels_last)
        if grad_output.numel() > 0 and grad_features.numel() > 0:
            self._launch(
                "features_backward", grad_output.dtype, grad_features, grad_output, rois.contiguous(), spatial_scale
            )
        return grad_features.to(grad_output.dtype)

    def rois_backward(self, grad_output: Tensor, features: Tensor, rois: Tensor, spatial_scale: float) -> Tensor:
        grad_rois = torch.zeros_like(rois, memory_format=torch.contiguous_format)
        if grad_output.numel() > 0 and features.numel() > 0:
            memory_format = torch.channels_last if features.stride(1) == 1 else torch.contiguous_format
            grad_output = grad_output.contiguous(memory_format=memory_format)
            self._launch(
                "rois_backward", features.dtype, grad_rois, grad_output, features, rois.contiguous(), spatial_scale
            )
        return grad_rois

    def _launch(self, name: str, dtype: torch.dtype, *arguments: Tensor | float) -> None:
        """Tensors of four dimensions go with their sizes and strides."""
        converted = []
        for argument in arguments:
            if not isinstance(argument, Tensor):
                converted.append(ctypes.c_double(argument))
                continue
            if argument.device.type != "cpu":
                raise ValueError(f"{name} runs on the CPU, but got a tensor on {argument.device}")
            converted.append(ctypes.c_void_p(argument.data_ptr()))
            if argument.dim() == 4:
                converted.append((ctypes.c_int64 * 8)(*argument.shape, *argument.stride()))
        function = getattr(self._library, f"{name}_{str(dtype).removeprefix('torch.')}")
        if function(*converted) != 0:
            raise RuntimeError(f"{name}: a GPU would refuse this launch")


def _full(shape: Sequence[int], value: float, dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, memory_format=memory_format).fill_(value)
