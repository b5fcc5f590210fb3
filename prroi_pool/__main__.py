"""Tells whether the compiled kernels are in use, and if not, why.

`--build` compiles them now. `compile --arch 75 80 90` compiles the CUDA kernels for GPUs of other machines, as for a
container image: no GPU, CUDA toolkit or C++ compiler is needed.
"""

import argparse
import io
import platform
import sys
from collections.abc import Callable

import torch

from . import build_cache, cuda_kernels, extension, nvrtc
from .build_cache import BuildError

NOT_BUILT = f"not built yet; the first use does it, or `python -m {__package__} --build` now"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--build", action="store_true", help="compile now instead of on first use; also after a failure"
    )
    commands = parser.add_subparsers(dest="command", metavar="compile")
    compiling = commands.add_parser("compile", help="compile the CUDA kernels for other GPUs")
    compiling.add_argument(
        "--arch", nargs="+", required=True, metavar="CC", help="compute capabilities, such as 75 80 90 (or 9.0)"
    )
    args = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths, and a compiler's words, on an ASCII terminal
    if args.command == "compile":
        return _compile([architecture.replace(".", "").removeprefix("sm_") for architecture in args.arch])
    print("prroi_pool: Precise RoI Pooling for PyTorch\n")
    _row("Python", platform.python_version())
    _row(
        "PyTorch",
        f"{torch.__version__}, " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"),
    )
    _row("C++ compiler", _try(extension.find_compiler))
    _row("NVRTC", _try(lambda: f"{nvrtc.nvrtc_version()}, {nvrtc.library_path()}"))
    _row("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch sees")
    _row("cache", _try(build_cache.cache_root))
    print()
    outcomes = [_report(device_type, args.build) for device_type in extension.DEVICE_TYPES]
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
    if device_type == "cuda":
        return _cuda_state(build)
    name = extension.build_name()
    if build:
        build_cache.forget_failure(name)
    elif not build_cache.find(name) and not build_cache.remembered_failure(name, builder=extension.compiler_identity()):
        return NOT_BUILT
    return f"ready: {extension.load(device_type).__file__}"


def _cuda_state(build: bool) -> str:
    if not torch.cuda.is_available():
        raise BuildError(
            f"PyTorch sees no GPU. `python -m {__package__} compile --arch 90` compiles for one elsewhere."
        )
    cuda_kernels.load()
    architecture = nvrtc.architecture(*torch.cuda.get_device_capability())
    folders = []
    for dtype in nvrtc.TYPES:
        name = nvrtc.build_name(dtype, architecture)
        if build:
            build_cache.forget_failure(name)
            nvrtc.load_cubin(dtype, architecture)
        if folder := build_cache.find(name):
            folders.append(str(folder))
    return "ready: " + "\n".join(folders) if folders else NOT_BUILT


def _compile(architectures: list[str]) -> int:
    """Compiles every CUDA kernel, into the cache, and prints a line for each."""
    try:
        for architecture in architectures:
            for dtype in nvrtc.TYPES:
                for name, kernel in nvrtc.load_cubin(dtype, architecture).kernels.items():
                    print(
                        f"sm_{architecture} {name.removeprefix('prroi_pool::'):<66} {kernel.registers:3} registers, "
                        f"{kernel.shared_bytes:5} bytes of shared memory, {kernel.spilled_bytes:3} bytes spilled",
                        flush=True,
                    )
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"compiled into {build_cache.cache_root()}; set TORCH_EXTENSIONS_DIR to it where it is used")
    return 0


def _try(find: Callable[[], object]) -> str:
    try:
        return str(find())
    except BuildError as error:
        return f"MISSING: {error}"


def _row(label: str, text: str) -> None:
    print(f"  {label:<13} " + text.replace("\n", "\n" + " " * 16))


if __name__ == "__main__":
    sys.exit(main())
