"""Compiles the CUDA kernels with NVRTC, the compiler library in PyTorch's CUDA wheels.

No CUDA toolkit, C++ compiler or GPU is needed. One program contains all kernels for one dtype of the features. It
compiles in about three seconds, and the build cache keeps the resulting cubin.
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
# C++ types of the features and of the sums over them.
TYPES = {
    torch.float32: ("float", "float"),
    torch.float64: ("double", "double"),
    torch.float16: ("prroi_pool::Half", "float"),
    torch.bfloat16: ("prroi_pool::BFloat16", "float"),
}
# In packed kernels a lane may process several adjacent channels; strided kernels accept any memory layout.
PACKED_KERNELS = ("forward_channels_last", "features_backward", "rois_backward_channels_last")
STRIDED_KERNELS = ("forward_strided", "rois_backward_strided")
TRANSPOSITION = "channels_to_the_end"
# Up to NVRTC 13.0, generic lambdas are host functions without --device-as-default-execution-space.
OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "--ptxas-options=--verbose")
OLDEST_ARCHITECTURE = 70
COMPILATION_FAILED = 6  # NVRTC_ERROR_COMPILATION


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel and the resources that ptxas reports for it.

    Attributes:
        symbol: name in the machine code.
        registers: registers per thread.
        shared_bytes: shared memory per block.
        spilled_bytes: bytes per thread that are stored to local memory for lack of registers.
    """

    symbol: str
    registers: int
    shared_bytes: int
    spilled_bytes: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for one dtype, as input for `cuModuleLoadData`, and its kernels by `kernel_name`."""

    code: bytes
    kernels: dict[str, Kernel]


def kernel_name(kernel: str, dtype: torch.dtype, channels_at_once: int | None) -> str:
    """Return the C++ name of a kernel for features of a dtype.

    Args:
        channels_at_once: adjacent channels that a lane processes; None for kernels without this template parameter.
    """
    parameters = [TYPES[dtype][0]] if kernel == TRANSPOSITION else [*TYPES[dtype]]
    parameters += [] if channels_at_once is None else [str(channels_at_once)]
    return f"prroi_pool::{kernel}<{', '.join(parameters)}>"


def kernel_names(dtype: torch.dtype) -> list[str]:
    """Return the C++ names of all kernels for features of a dtype."""
    at_once = (1,) if dtype == torch.float64 else (4, 1)
    names = [kernel_name(kernel, dtype, n) for kernel in PACKED_KERNELS for n in at_once]
    return names + [kernel_name(kernel, dtype, None) for kernel in (*STRIDED_KERNELS, TRANSPOSITION)]


def load_cubin(dtype: torch.dtype, architecture: str) -> Cubin:
    """Return the kernels for a dtype and an architecture such as "90", from the cache or newly compiled.

    Raises:
        BuildError: NVRTC is missing, does not support the architecture or (CompilationError) rejects the source, or the
            cache is not writable.
    """

    def build(folder: Path) -> None:
        text = f"the CUDA kernels for {dtype_name(dtype)}, sm_{architecture}"
        print(f"prroi_pool: compiling {text} (once per machine) ...", file=sys.stderr, flush=True)
        start = time.monotonic()
        cubin = compile_kernels(dtype, architecture)
        (folder / "kernels.cubin").write_bytes(cubin.code)
        kernels = {name: asdict(kernel) for name, kernel in cubin.kernels.items()}
        (folder / "kernels.json").write_text(json.dumps(kernels, indent=1), encoding="utf-8")
        print(f"prroi_pool: compiled in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    name = build_name(dtype, architecture)
    # Looked up first: a finished build needs no NVRTC.
    folder = build_cache.find(name) or build_cache.built(name, build, builder=compiler_identity())
    kernels = json.loads((folder / "kernels.json").read_text(encoding="utf-8"))
    return Cubin((folder / "kernels.cubin").read_bytes(), {name: Kernel(**kernel) for name, kernel in kernels.items()})


def build_name(dtype: torch.dtype, architecture: str) -> str:
    """Return the cubin's name in the build cache, which contains a hash of everything that the cubin depends on."""
    parts = [text.encode() for text in (str(torch.version.cuda), *OPTIONS, *kernel_names(dtype))]
    for path in [SOURCES / "bilinear_integral.h", *sorted(path for folder in INCLUDES for path in folder.iterdir())]:
        parts += [os.fsencode(path.name), path.read_bytes()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return f"prroi_pool_cuda_{dtype_name(dtype)}_sm{architecture}_{key}"


def compiler_identity() -> str:
    """Return NVRTC's version. A failed compilation is retried when this text changes."""
    return f"NVRTC {nvrtc_version()}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compile_kernels(dtype: torch.dtype, architecture: str) -> Cubin:
    """Compile all kernels for features of a dtype. No GPU is needed.

    Args:
        dtype: dtype of the features.
        architecture: compute capability without the dot, such as "90".

    Raises:
        BuildError: NVRTC is missing, does not support the architecture, or (CompilationError) rejects the source.
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
            # Other failures, such as lack of memory, are not caused by the source, and a retry may succeed.
            error = CompilationError if status == COMPILATION_FAILED else BuildError
            raise error(
                f"NVRTC {nvrtc_version()} failed to compile the CUDA kernels for sm_{architecture} "
                f"({_error_text(status)}):\n{log or '(no output)'}"
            )
        kernels = {}
        for name in names:
            symbol = ctypes.c_char_p()
            _check(nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(symbol)))
            assert symbol.value is not None, "the name expression was added before compilation"
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
    """Return the architecture to compile for on a GPU of the given compute capability.

    This is the GPU's own architecture if the cache has its kernels or NVRTC supports it. Otherwise it is the newest
    older architecture of the same major version, whose code the GPU can run.
    """
    own = f"{major}{minor}"
    if find_in_cache(own):
        return own
    known = [name for name in architectures() if name[:-1] == str(major) and int(name[-1]) <= minor]
    return known[-1] if known else own


def find_in_cache(architecture: str) -> bool:
    """Return whether the cache has all kernels for an architecture, so that NVRTC is not needed."""
    return all(build_cache.find(build_name(dtype, architecture)) for dtype in TYPES)


def check(architecture: str) -> None:
    """Raise BuildError unless the cache has the kernels for an architecture or NVRTC can compile for it."""
    if not find_in_cache(architecture):
        _check_is_known(architecture)


def _check_is_known(architecture: str) -> None:
    if architecture not in architectures():
        raise BuildError(
            f"NVRTC {nvrtc_version()} does not support sm_{architecture}. It supports sm_"
            + ", sm_".join(architectures())
            + f". Install a PyTorch built for a CUDA version that supports sm_{architecture}."
        )


@functools.cache
def nvrtc_version() -> str:
    """Return the version of NVRTC, such as "13.2". Raise BuildError if NVRTC is missing."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def library_path() -> str:
    return _library()._name


@functools.cache
def architectures() -> list[str]:
    """Return the architectures that NVRTC can compile the kernels for, such as ["75", "80", ...].

    Raises:
        BuildError: NVRTC is missing.
    """
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    numbers = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(numbers))
    # Older architectures do not support __grid_constant__.
    return [str(number) for number in numbers if number >= OLDEST_ARCHITECTURE]


@functools.cache
def _library() -> ctypes.CDLL:
    """Load NVRTC of the CUDA version that torch is built for."""
    if torch.version.cuda is None:
        raise BuildError("This PyTorch is built without CUDA. To use a GPU, install a CUDA build of PyTorch.")
    major = torch.version.cuda.split(".")[0]
    for path in _candidates(major):
        if os.path.isabs(path):
            # NVRTC loads its second library by name and does not look in its own folder.
            for builtins in Path(path).parent.glob("*nvrtc-builtins*"):
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(builtins))
        with contextlib.suppress(OSError):
            return ctypes.CDLL(path)
    package = f"nvidia-cuda-nvrtc-cu{major}" if int(major) < 13 else f"'nvidia-cuda-nvrtc=={major}.*'"
    others = sorted(str(path) for folder in _folders(major) for path in folder.glob(_file_pattern("")))
    raise BuildError(
        f"NVRTC, the CUDA {major} compiler library, was not found"
        + (f" (found files of another version, or damaged ones: {', '.join(others)})" if others else "")
        + f". PyTorch's CUDA wheels include it. Install it with `pip install {package}` or `conda install cuda-nvrtc`, "
        f"or set CUDA_HOME to a CUDA {major} toolkit."
    )


def _candidates(major: str) -> Iterator[str]:
    """Yield the paths to try: files in `_folders`, then the library's name for the system's own search."""
    for folder in _folders(major):
        yield from (str(path) for path in sorted(folder.glob(_file_pattern(major))))
    if sys.platform != "win32":
        yield f"libnvrtc.so.{major}"


def _file_pattern(major: str) -> str:
    """Return a glob pattern for names such as libnvrtc.so.13, libnvrtc.so.12.4.127 and nvrtc64_130_0.dll."""
    return f"nvrtc64_{major}*.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}*"


def _folders(major: str) -> list[Path]:
    """Return the folders that may contain NVRTC: those of torch, of NVIDIA's wheels and of a CUDA toolkit."""
    folders = [Path(torch.__file__).parent / "lib", Path(sys.prefix) / "lib"]
    if (nvidia := importlib.util.find_spec("nvidia")) and nvidia.submodule_search_locations:
        for root in map(Path, nvidia.submodule_search_locations):
            folders += [root / f"cu{major}" / "lib", root / "cuda_nvrtc" / "lib", root / "cuda_nvrtc" / "bin"]
    # CUDA_HOME may be malformed: appending to an unset variable gives `:/usr/local/cuda`.
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
        raise BuildError(f"A call to NVRTC failed: {_error_text(status)}")
