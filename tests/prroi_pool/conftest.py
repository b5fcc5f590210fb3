"""Fixtures of the tests of prroi_pool: the implementations under test, and an independent oracle."""

import importlib
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cuda_on_cpu import INCLUDES, CudaOnCpu, Emulator, is_supported, kernel_names
from raw_kernels import pool_with
from torch import Tensor

import prroi_pool
from prroi_pool import extension, functional, reference


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return request.param


@pytest.fixture(scope="session")
def needs_emulator() -> None:
    if not is_supported():
        pytest.skip("needs g++ and binutils on Linux")


@pytest.fixture(scope="session")
def cuda_on_cpu(needs_emulator, tmp_path_factory) -> CudaOnCpu:
    return CudaOnCpu(Emulator(kernel_names(), INCLUDES, tmp_path_factory.mktemp("cuda_on_cpu")))


@pytest.fixture(params=["reference", "kernels", "CUDA kernels on the CPU"])
def pool(request, device) -> Callable[..., Tensor]:
    """Return `prroi_pool2d` of each implementation."""
    if request.param == "reference":
        return reference.prroi_pool2d
    if request.param == "kernels":
        request.getfixturevalue("kernels")
        return functional.prroi_pool2d
    if device != "cpu":
        pytest.skip("the CUDA kernels run on the GPU")
    return pool_with(request.getfixturevalue("cuda_on_cpu"))


@pytest.fixture
def kernels(device) -> None:
    """Build and load the compiled kernels, for tests that need them."""
    if shutil.which(extension.compiler_command()) is None:
        pytest.skip("needs a C++ compiler")
    extension.load(device)


@pytest.fixture(scope="session")
def without_kernels(tmp_path_factory) -> ModuleType:
    """Import a second copy of the package whose operators find no kernels, as on a machine without a compiler."""
    folder = tmp_path_factory.mktemp("without_kernels")
    package = Path(prroi_pool.__file__).parent
    shutil.copytree(package, folder / "without_kernels/prroi_pool", ignore=shutil.ignore_patterns("__pycache__"))
    sys.path.insert(0, str(folder))
    try:
        copy = importlib.import_module("without_kernels.prroi_pool")
    finally:
        sys.path.remove(str(folder))
    copy.extension.kernels = lambda device_type: None
    return copy


@pytest.fixture
def integrate() -> Callable[..., Tensor]:
    """Return pooling by Gauss–Legendre quadrature, exact because the integrand is bilinear between integers."""

    def interpolate(image: Tensor, x: float, y: float) -> Tensor:
        value = torch.zeros(image.shape[0], dtype=image.dtype)
        for j in (math.floor(y), math.floor(y) + 1):
            for i in (math.floor(x), math.floor(x) + 1):
                if 0 <= j < image.shape[1] and 0 <= i < image.shape[2]:
                    value += (1 - abs(x - i)) * (1 - abs(y - j)) * image[:, j, i]
        return value

    def nodes(low: float, high: float) -> list[tuple[float, float]]:
        """Return points and weights of the mean over [low, high], two points between adjacent breakpoints."""
        breakpoints = [low, *range(math.floor(low) + 1, math.ceil(high)), high]
        result = []
        for a, b in zip(breakpoints, breakpoints[1:], strict=False):
            for sign in (-1, 1):
                result.append(((a + b) / 2 + sign * (b - a) / 2 / math.sqrt(3), (b - a) / 2 / (high - low)))
        return result

    def integrate(features: Tensor, rois: Tensor, height: int, width: int, scale: float) -> Tensor:
        output = torch.zeros(len(rois), features.shape[1], height, width, dtype=torch.float64)
        features = features.double()
        for k, (n, *box) in enumerate(rois.double().tolist()):
            x1, y1, x2, y2 = (scale * coordinate for coordinate in box)
            for p in range(height):
                for q in range(width):
                    ys = nodes(y1 + (y2 - y1) * p / height, y1 + (y2 - y1) * (p + 1) / height)
                    xs = nodes(x1 + (x2 - x1) * q / width, x1 + (x2 - x1) * (q + 1) / width)
                    for y, weight_y in ys:
                        for x, weight_x in xs:
                            output[k, :, p, q] += weight_y * weight_x * interpolate(features[int(n)], x, y)
        return output

    return integrate
