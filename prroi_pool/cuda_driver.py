"""Loads compiled kernels onto a GPU and launches them through the CUDA driver library.

Every machine with a GPU has the driver, so nothing has to be installed or linked. A call through ctypes costs a few
microseconds, as does a call through the package cuda-bindings.
"""

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from . import nvrtc
from .build_cache import BuildError

CU_STREAM_CAPTURE_MODE_RELAXED = 2

Size = tuple[int, int, int]
Argument = Any  # a ctypes object


def gpu_capabilities() -> list[tuple[int, int]]:
    """Return the distinct compute capabilities of this machine's GPUs, sorted."""
    return sorted({torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())})


class Driver:
    """Launches kernels on torch's current stream of a device."""

    def __init__(self) -> None:
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise BuildError(
                f"Cannot load the CUDA driver library: {error}. Install NVIDIA's driver, or start the container with "
                "access to the GPU (`--gpus all`)."
            ) from error
        self._functions: dict[tuple[int, str], ctypes.c_void_p] = {}
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._lock = threading.Lock()

    def launch(
        self, kernel: str, dtype: torch.dtype, device: int, grid: Size, block: Size, arguments: Sequence[Argument]
    ) -> None:
        """Launch a kernel for features of a dtype on torch's current stream of a device."""
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        with torch.cuda.device(device):
            # An autograd thread may not have made a CUDA call yet, and then has no current context.
            context = self._contexts.get(device) or self._context(device)
            self._check(self._library.cuCtxSetCurrent(context), "cuCtxSetCurrent")
            function = self._functions.get((device, kernel)) or self._load(kernel, dtype, device)
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            self._check(self._library.cuLaunchKernel(function, *grid, *block, 0, stream, pointers, None), kernel)

    def _context(self, device: int) -> ctypes.c_void_p:
        """Retain and return the device's primary context, which torch uses as well."""
        torch.cuda.init()
        handle, context = ctypes.c_int(), ctypes.c_void_p()
        self._check(self._library.cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
        self._check(self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "cuDevicePrimaryCtxRetain")
        self._contexts[device] = context
        return context

    def _load(self, kernel: str, dtype: torch.dtype, device: int) -> ctypes.c_void_p:
        with self._lock:
            if (device, kernel) not in self._functions:
                cubin = nvrtc.load_cubin(dtype, nvrtc.architecture(*torch.cuda.get_device_capability(device)))
                module = ctypes.c_void_p()
                with self._allowed_during_capture():
                    self._check(self._library.cuModuleLoadData(ctypes.byref(module), cubin.code), "cuModuleLoadData")
                for name, compiled in cubin.kernels.items():
                    function = ctypes.c_void_p()
                    symbol = compiled.symbol.encode()
                    self._check(self._library.cuModuleGetFunction(ctypes.byref(function), module, symbol), name)
                    self._functions[device, name] = function
            return self._functions[device, kernel]

    @contextlib.contextmanager
    def _allowed_during_capture(self) -> Iterator[None]:
        """Allow loading while a CUDA graph is captured. By default the driver refuses it."""
        if not torch.cuda.is_current_stream_capturing():
            yield
            return
        mode = ctypes.c_int(CU_STREAM_CAPTURE_MODE_RELAXED)
        exchange = self._library.cuThreadExchangeStreamCaptureMode
        self._check(exchange(ctypes.byref(mode)), "cuThreadExchangeStreamCaptureMode")
        try:
            yield
        finally:
            self._check(exchange(ctypes.byref(mode)), "cuThreadExchangeStreamCaptureMode")

    def _check(self, status: int, what: str) -> None:
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"CUDA error in {what}: {text.value.decode() if text.value else status}")
