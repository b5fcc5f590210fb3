"""Compiles the CUDA kernels with NVRTC, the compiler library that comes with PyTorch's CUDA wheels.

No CUDA toolkit, C++ compiler or GPU is needed. One program holds every kernel for one dtype of the features; compiling
it takes about three seconds. The cubin is kept in the build cache.
"""

import contextlib
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
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import build_cache
from .build_cache import BuildError, CompilationError

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
TRANSPOSITION = "channels_to_the_end"
# Generic lambdas are host functions otherwise, up to NVRTC 13.0.
OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "--ptxas-options=--verbose")
OLDEST_ARCHITECTURE = 70
COMPILATION_FAILED = 6  # NVRTC_ERROR_COMPILATION


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: its name in the machine code, and what ptxas reports of it.

    Attributes:
        registers: of a thread.
        shared_bytes: shared memory of a block.
        spilled_bytes: what a thread stores in local memory for want of registers.
    """

    symbol: str
    registers: int
    shared_bytes: int
    spilled_bytes: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for one dtype, as `cuModuleLoadData` takes it, and its kernels by `kernel_name`."""

    code: bytes
    kernels: dict[str, Kernel]


def kernel_name(kernel: str, dtype: torch.dtype, channels_at_once: int | None) -> str:
    """C++ name of a kernel for features of a dtype; `channels_at_once` of a lane, None if that is no parameter."""
    parameters = [TYPES[dtype][0]] if kernel == TRANSPOSITION else [*TYPES[dtype]]
    parameters += [] if channels_at_once is None else [str(channels_at_once)]
    return f"prroi_pool::{kernel}<{', '.join(parameters)}>"


def kernel_names(dtype: torch.dtype) -> list[str]:
    """The kernels for features of this dtype."""
    at_once = (1,) if dtype == torch.float64 else (4, 1)
    names = [kernel_name(kernel, dtype, n) for kernel in PACKED_KERNELS for n in at_once]
    return names + [kernel_name(kernel, dtype, None) for kernel in (*STRIDED_KERNELS, TRANSPOSITION)]


def load_cubin(dtype: torch.dtype, architecture: str) -> Cubin:
    """The kernels for a dtype, compiled for an architecture such as "90" unless the cache has them.

    Raises:
        BuildError: NVRTC is missing or does not know the architecture, or the cache cannot be written.
    """

    def build(folder: Path) -> None:
        text = f"the CUDA kernels for {dtype_name(dtype)}, sm_{architecture}"
        print(f"prroi_pool: compiling {text}, once for this machine ...", file=sys.stderr, flush=True)
        start = time.monotonic()
        cubin = compile_kernels(dtype, architecture)
        (folder / "kernels.cubin").write_bytes(cubin.code)
        kernels = {name: asdict(kernel) for name, kernel in cubin.kernels.items()}
        (folder / "kernels.json").write_text(json.dumps(kernels, indent=1), encoding="utf-8")
        print(f"prroi_pool: compiled in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    name = build_name(dtype, architecture)
    # A finished build needs no compiler.
    folder = build_cache.find(name) or build_cache.built(name, build, builder=compiler_identity())
    kernels = json.loads((folder / "kernels.json").read_text(encoding="utf-8"))
    return Cubin((folder / "kernels.cubin").read_bytes(), {name: Kernel(**kernel) for name, kernel in kernels.items()})


def build_name(dtype: torch.dtype, architecture: str) -> str:
    """Names the folder in the build cache after what the cubin depends on."""
    parts = [text.encode() for text in (str(torch.version.cuda), *OPTIONS, *kernel_names(dtype))]
    for path in [SOURCES / "bilinear_integral.h", *sorted(path for folder in INCLUDES for path in folder.iterdir())]:
        parts += [os.fsencode(path.name), path.read_bytes()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return f"prroi_pool_cuda_{dtype_name(dtype)}_sm{architecture}_{key}"


def compiler_identity() -> str:
    """What a failed compilation depended on besides the sources: once this has changed, it is tried again."""
    return f"NVRTC {nvrtc_version()}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compile_kernels(dtype: torch.dtype, architecture: str) -> Cubin:
    """Compiles all kernels for features of a dtype; needs no GPU.

    Args:
        architecture: compute capability without its point, such as "90".

    Raises:
        BuildError: NVRTC is missing, does not know the architecture, or (CompilationError) refuses the source.
    """
    _check_is_known(architecture)
    nvrtc = _library()
    program = ctypes.c_void_p()
    source = (SOURCES / "cuda" / "kernels.cu").read_bytes()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None))
    try:
        names = kernel_names(dtype)
        for name in names:
            _check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        options = [f"--gpu-architecture=sm_{architecture}", *OPTIONS, *(f"--include-path={path}" for path in INCLUDES)]
        encoded = [os.fsencode(option) for option in options]
        status = nvrtc.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
        log = _read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        if status != 0:
            # Other failures, such as a lack of memory, are not the source's, and may pass.
            error = CompilationError if status == COMPILATION_FAILED else BuildError
            raise error(
                f"NVRTC {nvrtc_version()} cannot compile the CUDA kernels for sm_{architecture}, "
                f"{_error_text(status)}:\n{log or '(nothing printed)'}"
            )
        kernels = {}
        for name in names:
            symbol = ctypes.c_char_p()
            _check(nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(symbol)))
            assert symbol.value is not None, "it was asked for before the compilation"
            kernels[name] = _described(symbol.value.decode(), log)
        return Cubin(_read(program, "CUBIN"), kernels)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _described(symbol: str, log: str) -> Kernel:
    report = log.partition(f"Compiling entry function '{symbol}'")[2].partition("Compiling entry function")[0]

    def number(pattern: str) -> int:
        match = re.search(pattern, report)
        return int(match[1]) if match else 0

    spilled = number(r"(\d+) bytes spill stores")
    return Kernel(symbol, number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), spilled)


def architecture(major: int, minor: int) -> str:
    """The one to compile for on a GPU of a compute capability: its own, or the nearest before it of the same major
    version that NVRTC knows, whose code it runs, too."""
    own = f"{major}{minor}"
    if find_in_cache(own):
        return own
    known = [name for name in architectures() if name[:-1] == str(major) and int(name[-1]) <= minor]
    return known[-1] if known else own


def find_in_cache(architecture: str) -> bool:
    """Whether the cache has the kernels for an architecture, all of them, which then need no NVRTC."""
    return all(build_cache.find(build_name(dtype, architecture)) for dtype in TYPES)


def check(architecture: str) -> None:
    """Raises BuildError unless the cache has the kernels for an architecture, or NVRTC compiles for it."""
    if not find_in_cache(architecture):
        _check_is_known(architecture)


def _check_is_known(architecture: str) -> None:
    if architecture not in architectures():
        raise BuildError(
            f"NVRTC {nvrtc_version()} does not compile for sm_{architecture}, but for sm_"
            + ", sm_".join(architectures())
            + ". Another GPU needs a PyTorch built for a CUDA version that knows it."
        )


@functools.cache
def nvrtc_version() -> str:
    """Of the NVRTC found, such as "13.2"; BuildError without one."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def library_path() -> str:
    return _library()._name


@functools.cache
def architectures() -> list[str]:
    """Those that the NVRTC found compiles the kernels for, such as ["75", "80", ...]; BuildError without one."""
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    numbers = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(numbers))
    # Older ones have no __grid_constant__.
    return [str(number) for number in numbers if number >= OLDEST_ARCHITECTURE]


@functools.cache
def _library() -> ctypes.CDLL:
    """NVRTC of the CUDA version that torch is built for."""
    if torch.version.cuda is None:
        raise BuildError("This PyTorch is built without CUDA. Install one with CUDA to use a GPU.")
    major = torch.version.cuda.split(".")[0]
    for path in _candidates(major):
        if os.path.isabs(path):
            # NVRTC looks for its second library by name, and not in its own folder.
            for builtins in Path(path).parent.glob("*nvrtc-builtins*"):
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(builtins))
        with contextlib.suppress(OSError):
            return ctypes.CDLL(path)
    package = f"nvidia-cuda-nvrtc-cu{major}" if int(major) < 13 else f"'nvidia-cuda-nvrtc=={major}.*'"
    others = sorted(str(path) for folder in _folders(major) for path in folder.glob(_file_pattern("")))
    raise BuildError(
        f"NVRTC, the CUDA {major} compiler library, was not found"
        + (f" (of another version, or damaged: {', '.join(others)})" if others else "")
        + f". PyTorch's own wheels bring it; install it with `pip install {package}` or `conda install cuda-nvrtc`, or "
        f"set CUDA_HOME to a CUDA {major} toolkit."
    )


def _candidates(major: str) -> Iterator[str]:
    """Where NVRTC may lie: in one of the folders, or wherever the system looks."""
    for folder in _folders(major):
        yield from (str(path) for path in sorted(folder.glob(_file_pattern(major))))
    if sys.platform != "win32":
        yield f"libnvrtc.so.{major}"


def _file_pattern(major: str) -> str:
    """NVRTC's file name: libnvrtc.so.13, libnvrtc.so.12.4.127, libnvrtc.so.11.2, nvrtc64_130_0.dll."""
    return f"nvrtc64_{major}*.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}*"


def _folders(major: str) -> list[Path]:
    """Where the wheels put NVRTC, beside torch, and in a toolkit."""
    folders = [Path(torch.__file__).parent / "lib", Path(sys.prefix) / "lib"]
    if (nvidia := importlib.util.find_spec("nvidia")) and nvidia.submodule_search_locations:
        for root in map(Path, nvidia.submodule_search_locations):
            folders += [root / f"cu{major}" / "lib", root / "cuda_nvrtc" / "lib", root / "cuda_nvrtc" / "bin"]
    # CUDA_HOME may be malformed, as `:/usr/local/cuda`, which is what appending to an unset variable gives.
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or ""
    homes = [Path(part.strip()) for part in named.split(os.pathsep) if part.strip()] + [Path("/usr/local/cuda")]
    return folders + [home / name for home in homes for name in ("lib64", "lib", "bin")]


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
