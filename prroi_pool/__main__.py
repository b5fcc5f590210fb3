"""Report whether the compiled kernels are ready, and the reason if they are not.

`--build` compiles the kernels now. `compile --arch 75 80 90` compiles the CUDA kernels for the GPUs of other machines,
for example while you build a container image. That command needs no GPU, CUDA toolkit or C++ compiler.
"""

import argparse
import io
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable

import torch

from . import build_cache, cuda_driver, extension, nvrtc
from .build_cache import BuildError

NOT_BUILT = f"not built yet; will be compiled on first use. To compile now, run `python -m {__package__} --build`"


def main() -> int:
    program = f"python -m {__package__}"
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [-h] [--build]\n       {program} compile --arch CC [CC ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--build",
        action="store_true",
        help="compile the kernels now instead of on first use, even if an earlier build failed",
    )
    commands = parser.add_subparsers(
        dest="command",
        title="command",
        metavar="compile",
        prog=program,
        help="compile the CUDA kernels for the GPUs of other machines",
    )
    compiling = commands.add_parser("compile", description="Compile the CUDA kernels for the GPUs of other machines.")
    compiling.add_argument(
        "--arch",
        nargs="+",
        required=True,
        metavar="CC",
        help="compute capabilities of the GPUs, such as 75 80 90; also accepted: 9.0, sm_90",
    )
    args = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An ASCII terminal cannot print every path or compiler message.
        sys.stdout.reconfigure(errors="backslashreplace")
    if args.command == "compile":
        return _compile([_architecture(text) for text in args.arch])
    print("prroi_pool: Precise RoI Pooling for PyTorch\n")
    _row("Python", platform.python_version())
    _row(
        "PyTorch",
        f"{torch.__version__}, " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"),
    )
    # If one of these two is missing and needed, the reports on the kernels below say how to install it.
    _row("C++ compiler", _found(extension.find_compiler))
    if torch.version.cuda:
        _row("NVRTC", _found(lambda: f"{nvrtc.nvrtc_version()}, {nvrtc.library_path()}"))
    _row("GPU", _gpus() or "none visible to PyTorch")
    _row("cache", _cache())
    print()
    outcomes = [_report(device_type, args.build) for device_type in extension.DEVICE_TYPES]
    return 0 if all(outcomes) else 1


def _gpus() -> str:
    """Return names and compute capabilities, such as "2 x NVIDIA H200 (9.0)"; an empty string without a GPU."""
    names = Counter(
        f"{torch.cuda.get_device_name(device)} ({'.'.join(map(str, torch.cuda.get_device_capability(device)))})"
        for device in range(torch.cuda.device_count())
    )
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())


def _report(device_type: str, build: bool) -> bool:
    """Print the state of a device type's kernels. Return False if they cannot be built or loaded."""
    label = f"{device_type.upper()} kernels"
    try:
        _row(label, _cpu_state(build) if device_type == "cpu" else _cuda_state(build))
        return True
    except BuildError as error:
        _row(label, f"MISSING: {error}")
        _row("", "Plain PyTorch gives the same results more slowly.")
        return False


def _cpu_state(build: bool) -> str:
    name = extension.build_name()
    if build:
        build_cache.forget_failure(name)
    elif not build_cache.find(name) and not build_cache.remembered_failure(name, builder=extension.compiler_identity()):
        return NOT_BUILT
    return f"ready: {extension.load('cpu').__file__}"


def _cuda_state(build: bool) -> str:
    if not torch.cuda.is_available():
        return "not needed without a GPU" + (
            f"; to compile them for another machine, run `python -m {__package__} compile --arch 90`"
            if torch.version.cuda
            else ""
        )
    extension.load("cuda")
    lines = []
    for architecture in _architectures():
        ready = [nvrtc.dtype_name(dtype) for dtype in nvrtc.TYPES if _is_ready(dtype, architecture, build)]
        if len(ready) == len(nvrtc.TYPES):
            lines.append(f"ready for sm_{architecture}")
        elif ready:
            lines.append(f"ready for sm_{architecture}, {', '.join(ready)}; other dtypes: {NOT_BUILT}")
        else:
            lines.append(f"for sm_{architecture}: {NOT_BUILT}")
    return "\n".join(lines)


def _architectures() -> list[str]:
    """Return the architectures to compile for on this machine's GPUs."""
    return [nvrtc.architecture(*capability) for capability in cuda_driver.gpu_capabilities()]


def _is_ready(dtype: torch.dtype, architecture: str, build: bool) -> bool:
    """Return whether the kernels are compiled. With `build`, compile them first.

    Raises:
        BuildError: the compilation fails, or failed before.
    """
    name = nvrtc.build_name(dtype, architecture)
    if build:
        build_cache.forget_failure(name)
    if not build and not build_cache.find(name):
        if not build_cache.remembered_failure(name, builder=nvrtc.compiler_identity()):
            return False
    nvrtc.load_cubin(dtype, architecture)
    return True


def _architecture(text: str) -> str:
    """Return "90" for 90, 9.0, sm_90 or compute_90."""
    return re.sub(r"^(sm|compute)_|\.", "", text.strip().lower())


def _compile(architectures: list[str]) -> int:
    """Compile every CUDA kernel into the cache and print a line for each. Return the exit code."""
    folders = set()
    try:
        for architecture in architectures:
            nvrtc.check(architecture)  # refuse an unsupported one before compiling anything
        for architecture in architectures:
            for dtype in nvrtc.TYPES:
                name = nvrtc.build_name(dtype, architecture)
                build_cache.forget_failure(name)
                for kernel_name, kernel in nvrtc.load_cubin(dtype, architecture).kernels.items():
                    print(
                        f"sm_{architecture:<3} {kernel_name.replace('prroi_pool::', ''):<47} "
                        f"{kernel.registers:3} registers, {kernel.shared_bytes:5} bytes shared, "
                        f"{kernel.spilled_bytes:3} bytes spilled",
                        flush=True,
                    )
                if folder := build_cache.find(name):
                    folders.add(str(folder.parent))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"The kernels are in {', '.join(sorted(folders))}. Set TORCH_EXTENSIONS_DIR to this folder on the machines "
        "that use them."
    )
    return 0


def _found(find: Callable[[], str]) -> str:
    try:
        return find()
    except BuildError:
        return "not found"


def _cache() -> str:
    try:
        return str(build_cache.cache_root())
    except BuildError as error:
        return f"MISSING: {error}"


def _row(label: str, text: str) -> None:
    print(f"  {label:<13} " + text.replace("\n", "\n" + " " * 16))


if __name__ == "__main__":
    sys.exit(main())
