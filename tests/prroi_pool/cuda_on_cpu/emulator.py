"""Runs CUDA kernels on the CPU, and raises an error if a GPU could give a different result or fail."""

import ctypes
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prroi_pool import extension

FOLDER = Path(__file__).parent
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fno-gnu-unique"]
# These sanitizers add hooks before memory accesses and at undefined behaviour. runtime.cpp defines the hooks.
KERNEL_FLAGS = [
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fno-extern-tls-init",
    "-fsanitize=thread,undefined",
    "-fno-sanitize-recover=all",
    "-fno-sanitize=null,unreachable,return",
]
DYNAMIC_SHARED_MEMORY = "cuda_on_cpu_dynamic_shared_memory"


def is_supported() -> bool:
    """Return whether the required tools exist: g++ and binutils, for programs in the ELF format."""
    compiler = extension.compiler_command()
    tools = (compiler, "addr2line", "objcopy", "readelf")
    if sys.platform != "linux" or not all(shutil.which(tool) for tool in tools):
        return False
    return "clang" not in _run(compiler, "--version")


class EmulationError(RuntimeError):
    """A GPU would refuse the launch, or the kernel could give a different result on a GPU."""


class Emulator:
    """CUDA kernels compiled for the CPU.

    The threads of a block run interleaved in random order. A launch fails on:

    - a race between threads of the same block or of two blocks;
    - a barrier that only some threads reach, and a shuffle or warp barrier with a wrong mask;
    - an access outside the tensors and shared variables, and a write to a read-only tensor;
    - a read of shared memory that the block has not written;
    - a misaligned address and other undefined behaviour.

    Args:
        kernels: the kernels to compile, as name expressions such as `"prroi_pool::forward<float, 4>"`.
        includes: headers that define the kernels, relative to `sources`.
        folder: an existing folder for the build.
        sources: folder of the kernels' source.
        seed: seed of the order in which threads run.
    """

    def __init__(
        self,
        kernels: Sequence[str],
        includes: Sequence[str],
        folder: Path,
        *,
        sources: Path = extension.SOURCES,
        seed: int = 0,
    ):
        self._kernels = frozenset(kernels)
        self._path = _build(kernels, includes, folder, sources)
        self._library = ctypes.CDLL(str(self._path))
        self._library.launch.argtypes = [ctypes.c_char_p, *[ctypes.c_uint] * 7, ctypes.c_void_p]
        self._library.launch_error.restype = ctypes.c_char_p
        symbols = _shared_symbols(self._path)
        # Kept alive, because the library does not copy them.
        self._shared = (_SharedVariable * len(symbols))(
            *((symbol.offset, symbol.bytes, _plain_name(symbol.name).encode()) for symbol in symbols)
        )
        dynamic = next(symbol for symbol in symbols if symbol.name == DYNAMIC_SHARED_MEMORY)
        self._library.set_shared_variables(self._shared, ctypes.c_size_t(len(symbols)), ctypes.c_size_t(dynamic.offset))
        self._library.set_seed(seed)
        self._ranges: list[_Range] = []

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: ctypes.Array,
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel, as `cuLaunchKernel` does. `arguments` are pointers to the kernel's arguments.

        The kernel may access only the tensors that `memory` allows.
        """
        if kernel not in self._kernels:
            raise KeyError(f"{kernel} is not one of the compiled kernels")
        ranges = (_Range * len(self._ranges))(*self._ranges)
        self._library.set_ranges(ranges, ctypes.c_size_t(len(ranges)))
        if self._library.launch(kernel.encode(), *grid, *block, shared_bytes, arguments) != 0:
            raise EmulationError(f"{kernel}: {self._error()}")

    def allow_dynamic_shared_memory(self, kernel: str, shared_bytes: int) -> None:
        """Allow a kernel more than 48 KB of dynamic shared memory, as `cuFuncSetAttribute` does."""
        if self._library.allow_dynamic_shared(kernel.encode(), ctypes.c_uint(shared_bytes)) != 0:
            raise EmulationError(f"{kernel}: {self._error()}")

    @contextmanager
    def memory(self, *readable: Tensor, writable: Sequence[Tensor] = ()) -> Iterator[None]:
        """Set the memory that kernels launched in this context may access.

        Kernels may read `readable`, and read and write `writable` and all tensors created in the context. Uninitialised
        tensors are filled with NaN, because a kernel must write them.
        """
        outer = self._ranges
        self._ranges = [_range_of(tensor, is_writable=False) for tensor in readable if tensor.numel() > 0]
        self._ranges += [_range_of(tensor, is_writable=True) for tensor in writable if tensor.numel() > 0]
        try:
            with _NewTensors((*readable, *writable), self._ranges):
                yield
        finally:
            self._ranges = outer

    def _error(self) -> str:
        """Return the error message, with addresses in the library replaced by source locations."""

        def place(match: re.Match) -> str:
            return _run("addr2line", "-e", self._path, hex(int(match[1], 16) - 1)).split()[0]

        message = re.sub(r"@([0-9a-f]+)", place, self._library.launch_error().decode())
        return re.sub(r"/\S*/", "", message)


class _Range(ctypes.Structure):
    _fields_ = [
        ("begin", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("element_bytes", ctypes.c_uint32),
        ("is_writable", ctypes.c_uint32),
    ]


class _SharedVariable(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("name", ctypes.c_char_p)]


class _NewTensors(TorchFunctionMode):
    """Records the memory of each tensor that is created in this mode, and keeps it alive."""

    def __init__(self, known: Sequence[Tensor], ranges: list[_Range]):
        super().__init__()
        self._tensors = list(known)
        self._ranges = ranges

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.numel() > 0 and not self._is_known(tensor):
                if "empty" in func.__name__ and tensor.is_floating_point():
                    tensor.fill_(float("nan"))
                self._tensors.append(tensor)
                self._ranges.append(_range_of(tensor, is_writable=True))
        return result

    def _is_known(self, tensor: Tensor) -> bool:
        data = tensor.untyped_storage().data_ptr()
        return any(known.untyped_storage().data_ptr() == data for known in self._tensors)


def _range_of(tensor: Tensor, *, is_writable: bool) -> _Range:
    if tensor.device.type != "cpu":
        raise ValueError(f"kernels run on the CPU, but got a tensor on {tensor.device}")
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    itemsize = tensor.element_size()
    return _Range(tensor.data_ptr(), (last + 1) * itemsize, itemsize, is_writable)


class _SharedSymbol(NamedTuple):
    name: str
    offset: int  # in thread-local memory
    bytes: int
    is_defined: bool


def _build(kernels: Sequence[str], includes: Sequence[str], folder: Path, sources: Path) -> Path:
    lines = ['#include "kernel_table.h"', *(f'#include "{name}"' for name in includes)]
    lines += ["namespace cuda_on_cpu {", "Kernel kernels[] = {"]
    lines += [f'    {{"{kernel}", Invoke<{kernel}>::call}},' for kernel in kernels]
    lines += ["};", f"const std::size_t num_kernels = {len(kernels)};", "}  // namespace cuda_on_cpu", ""]
    source, objects, runtime, library = (
        folder / name for name in ("kernels.cpp", "kernels.o", "runtime.o", "kernels.so")
    )
    source.write_text("\n".join(lines))
    paths = [f"-I{path}" for path in (FOLDER, sources, Path(torch.__file__).parent / "include")]
    _run(extension.find_compiler(), *FLAGS, *KERNEL_FLAGS, *paths, "-c", source, "-o", objects)
    # The dynamic shared memory of a kernel is an undefined symbol, under any name.
    names = [symbol.name for symbol in _shared_symbols(objects) if not symbol.is_defined]
    _run("objcopy", *(f"--redefine-sym={name}={DYNAMIC_SHARED_MEMORY}" for name in names), objects)
    runtime.write_bytes(_runtime())
    # -Bsymbolic: the process may have loaded a sanitizer, whose hooks must not replace those of runtime.cpp.
    _run(extension.find_compiler(), "-shared", "-Wl,-Bsymbolic", objects, runtime, "-o", library)
    return library


@functools.cache
def _runtime() -> bytes:
    """Compile runtime.cpp once for all emulators, and return the object file."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "runtime.o"
        _run(extension.find_compiler(), *FLAGS, "-c", FOLDER / "runtime.cpp", "-o", output)
        return output.read_bytes()


def _shared_symbols(path: Path) -> list[_SharedSymbol]:
    """Return the thread-local variables of an object file or library, which are the kernels' __shared__ variables."""
    result = []
    for line in _run("readelf", "--wide", "--syms", path).splitlines():
        match line.split():
            case [_, offset, size, "TLS", _, _, section, name] if section != "UND" or path.suffix == ".o":
                result.append(_SharedSymbol(name, int(offset, 16), int(size, 0), section != "UND"))
    return list(dict.fromkeys(result))  # a library lists exported symbols twice


def _plain_name(symbol: str) -> str:
    """Return `values` for `_ZZN8emulated9some_kernelEPfPKfE6values`."""
    return re.sub(r"^_ZZ.*E\d+", "", symbol)


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
