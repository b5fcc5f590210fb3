"""Compiles the CUDA kernels with NVRTC, the compiler library that comes with PyTorch's CUDA wheels.

No CUDA toolkit, C++ compiler or GPU is needed. One program holds every kernel for one dtype of the features; compiling
it takes about two seconds. The cubin is kept in the build cache.
"""

import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import build_cache
from .build_cache import BuildError

SOURCES = Path(__file__).resolve().parent / "csrc"
INCLUDES = (SOURCES / "cuda", SOURCES / "nvrtc")
# Features, and the type that sums are computed in.
TYPES = {
    torch.float32: ("float", "float"),
    torch.float64: ("double", "double"),
    torch.float16: ("prroi_pool::Half", "float"),
    torch.bfloat16: ("prroi_pool::BFloat16", "float"),
}
# Those whose lanes work on several adjacent channels, and the others.
PACKED_KERNELS = ("forward_channels_last", "features_backward", "rois_backward_channels_last")
STRIDED_KERNELS = ("forward_strided", "rois_backward_strided")
OPTIONS = ("--std=c++17", "--ptxas-options=--verbose")


@dataclass(frozen=True)
class Cubin:
    """Machine code of the kernels for one dtype.

    Attributes:
        code: what `cuModuleLoadData` takes.
        symbols: C++ name of each kernel, as `kernel_name` returns it, → its name in the code.
    """

    code: bytes
    symbols: dict[str, str]


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of a kernel: registers of a thread, bytes of shared memory of a block, and bytes that a thread
    spills to local memory."""

    registers: int
    shared_bytes: int
    spilled_bytes: int


def kernel_name(kernel: str, dtype: torch.dtype, channels_at_once: int | None) -> str:
    """C++ name of a kernel for features of a dtype; `channels_at_once` of a lane, None if that is no parameter."""
    parameters = [*TYPES[dtype], *([] if channels_at_once is None else [str(channels_at_once)])]
    return f"prroi_pool::{kernel}<{', '.join(parameters)}>"


def kernel_names(dtype: torch.dtype) -> list[str]:
    """The kernels for features of this dtype."""
    at_once = (1,) if dtype == torch.float64 else (4, 1)
    names = [kernel_name(kernel, dtype, n) for kernel in PACKED_KERNELS for n in at_once]
    return names + [kernel_name(kernel, dtype, None) for kernel in STRIDED_KERNELS]


def load_cubin(dtype: torch.dtype, architecture: str) -> Cubin:
    """The kernels for a dtype, compiled for an architecture such as "90" unless the cache has them.

    Raises:
        BuildError: NVRTC is missing or does not know the architecture, or the cache cannot be written.
    """
    text = dtype_name(dtype)

    def build(folder: Path) -> None:
        print(f"prroi_pool: compiling the CUDA kernels for {text}, sm_{architecture} ...", file=sys.stderr, flush=True)
        start = time.monotonic()
        cubin, _ = compile_kernels(dtype, architecture)
        (folder / "kernels.cubin").write_bytes(cubin.code)
        (folder / "symbols.json").write_text(json.dumps(cubin.symbols), encoding="utf-8")
        print(f"prroi_pool: compiled in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    folder = build_cache.built(build_name(dtype, architecture), build)
    symbols = json.loads((folder / "symbols.json").read_text(encoding="utf-8"))
    return Cubin((folder / "kernels.cubin").read_bytes(), symbols)


def build_name(dtype: torch.dtype, architecture: str) -> str:
    """Names the folder in the build cache after everything that the cubin depends on."""
    parts = [nvrtc_version(), dtype_name(dtype), architecture]
    for path in sorted(path for folder in (SOURCES, *INCLUDES) for path in folder.iterdir() if path.is_file()):
        parts += [path.name, path.read_text(encoding="utf-8")]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"prroi_pool_cuda_{dtype_name(dtype)}_sm{architecture}_{key}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compile_kernels(dtype: torch.dtype, architecture: str) -> tuple[Cubin, dict[str, Resources]]:
    """Compiles all kernels for features of a dtype; needs no GPU.

    Args:
        architecture: compute capability without its point, such as "90".

    Returns:
        The machine code, and for each kernel what it uses.

    Raises:
        BuildError: NVRTC is missing, or refuses the source or the architecture.
    """
    names = kernel_names(dtype)
    options = [f"--gpu-architecture=sm_{architecture}", *OPTIONS]
    options += [f"--include-path={path}" for path in INCLUDES]
    nvrtc = _library()
    program = ctypes.c_void_p()
    source = (SOURCES / "cuda" / "kernels.cu").read_bytes()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None))
    try:
        for name in names:
            _check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        encoded = [os.fsencode(option) for option in options]
        status = nvrtc.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
        log = _read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if status != 0:
            raise BuildError(
                f"NVRTC {nvrtc_version()} cannot compile the CUDA kernels for sm_{architecture} "
                f"({_error_text(status)}):\n{log}"
            )
        symbols = {}
        for name in names:
            symbol = ctypes.c_char_p()
            _check(nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(symbol)))
            assert symbol.value is not None
            symbols[name] = symbol.value.decode()
        cubin = Cubin(_read(program, "CUBIN"), symbols)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin, _resources(log, symbols)


def _resources(log: str, symbols: dict[str, str]) -> dict[str, Resources]:
    result = {}
    for name, symbol in symbols.items():
        _, _, report = log.partition(f"Compiling entry function '{symbol}'")
        report = report.partition("Compiling entry function")[0]

        def number(pattern: str, report: str = report) -> int:
            match = re.search(pattern, report)
            return int(match[1]) if match else 0

        spilled = number(r"(\d+) bytes spill stores")
        result[name] = Resources(number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), spilled)
    return result


@functools.cache
def nvrtc_version() -> str:
    """Of the NVRTC found, such as "13.2"; BuildError without one."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


@functools.cache
def architectures() -> list[str]:
    """Those that the NVRTC found compiles for, such as ["75", "80", ...]; BuildError without one."""
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    numbers = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(numbers))
    return [str(number) for number in numbers]


@functools.cache
def _library() -> ctypes.CDLL:
    """NVRTC of the CUDA version that torch is built for."""
    if torch.version.cuda is None:
        raise BuildError("This PyTorch is built without CUDA. Install one with CUDA to use a GPU.")
    major = torch.version.cuda.split(".")[0]
    tried = []
    for path in _candidates(major):
        try:
            return ctypes.CDLL(path)
        except OSError as error:
            tried.append(str(error))
    package = f"nvidia-cuda-nvrtc-cu{major}" if int(major) < 13 else f"'nvidia-cuda-nvrtc=={major}.*'"
    raise BuildError(
        f"NVRTC, the CUDA {major} compiler library, was not found. PyTorch's own wheels bring it; install it with "
        f"`pip install {package}` or `conda install cuda-nvrtc`, or set CUDA_HOME to a CUDA {major} toolkit."
    )


def _candidates(major: str) -> Iterator[str]:
    """Where NVRTC may lie: where the wheels put it, beside torch, in a toolkit, and wherever the system looks."""
    pattern = "nvrtc64_*.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}*"
    folders = [Path(torch.__file__).parent / "lib", Path(sys.prefix) / "lib"]
    if (nvidia := importlib.util.find_spec("nvidia")) and nvidia.submodule_search_locations:
        for root in map(Path, nvidia.submodule_search_locations):
            folders += [root / f"cu{major}" / "lib", root / "cuda_nvrtc" / "lib", root / "cuda_nvrtc" / "bin"]
    # CUDA_HOME may be malformed, as `:/usr/local/cuda`, which is what appending to an unset variable gives.
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or ""
    homes = [Path(part.strip()) for part in named.split(os.pathsep) if part.strip()] + [Path("/usr/local/cuda")]
    folders += [home / name for home in homes for name in ("lib64", "lib", "bin")]
    for folder in folders:
        yield from (str(path) for path in sorted(folder.glob(pattern)) if "builtins" not in path.name)
    if sys.platform != "win32":
        yield f"libnvrtc.so.{major}"


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _error_text(status: int) -> str:
    function = _library().nvrtcGetErrorString
    function.restype = ctypes.c_char_p
    return function(status).decode()


def _check(status: int) -> None:
    if status != 0:
        raise BuildError(f"NVRTC: {_error_text(status)}")
