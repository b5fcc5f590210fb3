"""`python -m prroi_pool` tells whether the compiled kernels are in use, and if not why; `--build` compiles
them now."""

import argparse
import platform
import sys
from collections.abc import Callable

import torch

from . import extension


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m prroi_pool", description=__doc__)
    parser.add_argument("--build", action="store_true", help="compile now instead of on first use")
    build = parser.parse_args().build

    print("prroi_pool: Precise RoI Pooling for PyTorch\n")
    _row("Python", platform.python_version())
    _row(
        "PyTorch",
        f"{torch.__version__}, " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"),
    )
    _row("C++ compiler", _try(extension.find_compiler))
    _row("ninja", _try(extension.find_ninja))
    _row("CUDA toolkit", _try(lambda: (home := extension.find_cuda_home(), extension.nvcc_version(home))))
    _row("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch sees")
    _row("architectures", _try(lambda: tuple(extension.cuda_architectures()), otherwise="none"))
    _row("cache", _try(extension.cache_root))
    print()
    outcomes = [_report(device_type, build) for device_type in extension.DEVICE_TYPES]
    return 0 if all(outcomes) else 1


def _report(device_type: str, build: bool) -> bool:
    """Prints a device type's state; False if its kernels could not be built or loaded though a device needs
    them."""
    label = f"{device_type.upper()} kernels"
    needed = device_type == "cpu" or torch.cuda.is_available()
    try:
        folder = extension.build_folder(device_type)
        if build or extension.is_built(folder):
            _row(label, f"ready: {extension.load(device_type).__file__}")
        else:
            _row(label, "not built yet; the first use does it, or `python -m prroi_pool --build` now")
        return True
    except extension.BuildError as error:
        _row(label, f"{'MISSING' if needed else 'none'}: {error}")
        if needed:
            _row("", "Until then plain PyTorch computes the same, slower.")
        return not needed


def _try(find: Callable[[], object], otherwise: str = "MISSING") -> str:
    try:
        found = find()
    except extension.BuildError as error:
        return f"{otherwise}: {error}"
    return ", ".join(map(str, found)) if isinstance(found, tuple) else str(found)


def _row(label: str, text: str) -> None:
    print(f"  {label:<13} " + text.replace("\n", "\n" + " " * 16))


if __name__ == "__main__":
    sys.exit(main())
