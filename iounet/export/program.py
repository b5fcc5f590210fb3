"""Export the refiner as a torch.export program, either saved or compiled by AOTInductor.

Both kinds of file take the arguments of `ImageRefiner.forward`: an image, boxes and labels. Both call the operators of
prroi_pool, which ``import prroi_pool`` registers in Python. No C++ library registers them, so C++ programs cannot load
these files: AOTInductor's loader raises "Could not find schema for prroi_pool::pyramid_pool".
"""

import os
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..modeling import IoUNet
from ..refiner import IoURefiner
from .refiner import ExportableRefiner


class ImageRefiner(nn.Module):
    """`ExportableRefiner` for an image of any size, which this module normalises, resizes and pads.

    Args:
        detector: a trained IoU-Net.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: IoUNet):
        super().__init__()
        self.refiner = ExportableRefiner(detector)
        transform = detector.transform
        self.min_size, self.max_size = float(transform.min_size[-1]), float(transform.max_size)
        self.divisor = transform.size_divisible
        self.register_buffer("mean", torch.tensor(transform.image_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(transform.image_std)[:, None, None])

    def forward(self, image: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Refine boxes.

        Args:
            image (Tensor[1, 3, H, W]): float32, RGB in [0, 1].
            boxes (Tensor[N, 4]): float32, xyxy in pixels of the image.
            labels (Tensor[N]): int64; 0 for an unknown class.

        Returns:
            boxes, ious_before, ious and stops, as in `ExportableRefiner.forward`.
        """
        # The same as iounet.modeling.ImageTransform, in functions that torch.export can trace for all sizes.
        height, width = image.shape[-2:]
        scale = torch.sym_min(
            self.min_size / torch.sym_min(height, width), self.max_size / torch.sym_max(height, width)
        )
        whole = [torch.sym_int(side * scale) for side in (height, width)]
        visible: list[Any] = [torch.sym_max(side, 1) for side in whole]  # int or torch.SymInt
        below, right = (-side % self.divisor for side in visible)
        image = (image - self.mean) / self.std
        image = nn.functional.interpolate(image, size=visible, mode="bilinear", align_corners=False)
        image = nn.functional.pad(image, (0, right, 0, below))
        size, resized_size = (
            torch.stack([torch.scalar_tensor(side, device=image.device) for side in sides])
            for sides in ((height, width), whole)
        )
        return self.refiner(image, size, resized_size, boxes, labels)


def export_program(refiner: IoURefiner) -> torch.export.ExportedProgram:
    """Trace `ImageRefiner`. The sides of the image and the number of boxes are dynamic."""
    example = (
        torch.zeros(1, 3, 90, 120),
        torch.tensor([[10.0, 10.0, 60.0, 50.0], [0.0, 0.0, 100.0, 90.0], [20.0, 30.0, 40.0, 60.0]]),
        torch.zeros(3, dtype=torch.int64),
    )
    height, width = (torch.export.Dim(name, min=1, max=100_000) for name in ("height", "width"))
    count = torch.export.Dim("boxes")
    with torch.no_grad():
        return torch.export.export(
            ImageRefiner(refiner.detector), example, dynamic_shapes=({2: height, 3: width}, {0: count}, {0: count})
        )


def save_program(refiner: IoURefiner, path: str | Path) -> None:
    """Save the traced program, which runs with PyTorch's kernels.

    Args:
        refiner: the refiner to export.
        path: file to write; its name must end in ".pt2".
    """
    with warnings.catch_warnings():
        # PyTorch warns about constants that are slices of a larger tensor, but saves their values correctly.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(export_program(refiner), path)


def cxx() -> str:
    """Return the command of the C++ compiler that AOTInductor uses."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def compile_program(refiner: IoURefiner, path: str | Path) -> None:
    """Compile the program with AOTInductor for CPUs of the same kind as this machine's.

    Args:
        refiner: the refiner to export.
        path: file to write; its name must end in ".pt2".

    Raises:
        ConfigError: there is no C++ compiler.
    """
    if shutil.which(cxx()) is None:
        raise ConfigError(
            f"AOTInductor needs a C++ compiler: `{cxx()}` is not on PATH; install it, or set CXX to another compiler"
        )
    # By default, AOTInductor hard-codes this process's number of threads.
    configs = {"cpp.dynamic_threads": True}
    torch._inductor.aoti_compile_and_package(export_program(refiner), package_path=str(path), inductor_configs=configs)


def load_program(path: str | Path) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Load a file that `save_program` or `compile_program` wrote.

    Load only files that you trust, because they contain code.

    Returns:
        `ImageRefiner.forward` as a function.

    Raises:
        CheckpointError: the file is missing, or is not a program.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            is_compiled = any("/data/aotinductor/" in name for name in archive.namelist())
        if is_compiled:
            return torch._inductor.aoti_load_package(str(path))
        # The guards reject images that the program supports: their shorter side has at most 32 pixels after resizing.
        return torch.export.load(path).module(check_guards=False)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; check the path") from None
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path}: cannot be loaded as a torch.export program ({reason}); export it again"
        ) from None
