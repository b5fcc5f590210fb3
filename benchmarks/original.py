"""Compile the original authors' kernels (github.com/vacancy/PreciseRoIPooling) with nvcc, for comparison."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .workloads import BINS, Level


def prepare_original(library: ctypes.CDLL, operation: str, levels: list[Level]) -> Callable[[], None]:
    """Return a function that calls the authors' kernels (float32, contiguous) without the checks of their wrapper."""

    def arguments(level: Level) -> tuple:
        _, channels, height, width = level.features.shape
        sizes = [ctypes.c_int(size) for size in (channels, height, width, BINS, BINS)]
        return *sizes, ctypes.c_float(level.scale), ctypes.c_int(level.grad_output.numel())

    def pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
        return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]

    def stream() -> ctypes.c_void_p:
        return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)

    outputs = [torch.empty_like(level.grad_output) for level in levels]

    def forward(level: Level, output: Tensor) -> None:
        output.zero_()
        library.PrRoIPoolingForwardGpu(stream(), *pointers(level.features, level.rois, output), *arguments(level))

    def gradient(name: str, level: Level, output: Tensor, result: Tensor) -> None:
        result.zero_()
        tensors = pointers(level.features, level.rois, output, level.grad_output, result)
        getattr(library, name)(stream(), *tensors, *arguments(level), ctypes.c_int(result.numel()))

    feature_gradients = [torch.empty_like(level.features) for level in levels]
    roi_gradients = [torch.empty_like(level.rois) for level in levels]

    def run() -> None:
        for level, output, grad_features, grad_rois in zip(
            levels, outputs, feature_gradients, roi_gradients, strict=True
        ):
            if operation != "RoI gradient":
                forward(level, output)
            if operation == "forward + feature gradient":
                gradient("PrRoIPoolingBackwardGpu", level, output, grad_features)
            if operation == "RoI gradient":
                gradient("PrRoIPoolingCoorBackwardGpu", level, output, grad_rois)

    for level, output in zip(levels, outputs, strict=True):
        forward(level, output)
    return run


def compile_original(checkout: Path) -> ctypes.CDLL:
    source = checkout / "src" / "prroi_pooling_gpu_impl.cu"
    if not source.is_file():
        sys.exit(f"{source} is missing. --original must be a checkout of github.com/vacancy/PreciseRoIPooling.")
    library = Path(tempfile.mkdtemp()) / "original.so"
    nvcc = find_nvcc()
    subprocess.run([nvcc, "-O3", "-arch=native", "-shared", "-Xcompiler", "-fPIC", source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


def find_nvcc() -> str:
    """Return the path of nvcc in CUDA_HOME, on PATH or in /usr/local/cuda."""
    folders = [f"{os.environ['CUDA_HOME']}/bin"] if os.environ.get("CUDA_HOME") else []
    path = os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    nvcc = shutil.which("nvcc", path=path)
    if nvcc is None:
        sys.exit(
            "--original needs nvcc, which was not found. Install the CUDA toolkit, or set CUDA_HOME to its folder."
        )
    return nvcc
