"""`python -m prroi_pool` tells whether the compiled kernels are in use, and if not why; `--build` compiles
them now."""

import argparse
import io
import platform
import sys
from collections.abc import Callable

import torch

from . import build_cache, extension
from .build_cache import BuildError


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument(
        "--build", action="store_true", help="compile now instead of on first use; also after a failure"
    )
    build = parser.parse_args().build

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths, and a compiler's words, on an ASCII terminal
    print("prroi_pool: Precise RoI Pooling for PyTorch\n")
    _row("Python", platform.python_version())
    _row(
        "PyTorch",
        f"{torch.__version__}, " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"),
    )
    _row("C++ compiler", _try(extension.find_compiler))
    _row("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch sees")
    _row("cache", _try(build_cache.cache_root))
    print()
    outcomes = [_report(device_type, build) for device_type in extension.DEVICE_TYPES]
    return 0 if all(outcomes) else 1


def _report(device_type: str, build: bool) -> bool:
    """Prints a device type's state; False if its kernels could not be built or loaded though a device needs them."""
    label = f"{device_type.upper()} kernels"
    needed = device_type == "cpu" or torch.cuda.is_available()
    try:
        _row(label, _state(device_type, build))
        return True
    except BuildError as error:
        _row(label, f"{'MISSING' if needed else 'none'}: {error}")
        if needed:
            _row("", "Until then plain PyTorch computes the same, slower.")
        return not needed


def _state(device_type: str, build: bool) -> str:
    if device_type == "cpu":
        name = extension.build_name()
        if build:
            build_cache.forget_failure(name)
        elif not build_cache.find(name) and not build_cache.remembered_failure(
            name, builder=extension.compiler_identity()
        ):
            return f"not built yet; the first use does it, or `python -m {__package__} --build` now"
    return f"ready: {extension.load(device_type).__file__}"


def _try(find: Callable[[], object]) -> str:
    try:
        return str(find())
    except BuildError as error:
        return f"MISSING: {error}"


def _row(label: str, text: str) -> None:
    print(f"  {label:<13} " + text.replace("\n", "\n" + " " * 16))


if __name__ == "__main__":
    sys.exit(main())
