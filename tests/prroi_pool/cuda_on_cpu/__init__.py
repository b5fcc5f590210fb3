"""prroi_pool's CUDA kernels on the CPU, compiled from the source that nvcc compiles; each memory access is checked."""

from .emulator import EmulationError, Emulator, is_supported
from .launcher import INCLUDES, CudaOnCpu, kernel_names

__all__ = ["INCLUDES", "CudaOnCpu", "EmulationError", "Emulator", "is_supported", "kernel_names"]
