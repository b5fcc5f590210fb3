"""prroi_pool's CUDA kernels on the CPU: the very source that nvcc compiles, several thousand times as slow."""

from .emulator import EmulationError, Emulator
from .launcher import INCLUDES, CudaOnCpu, kernel_names

__all__ = ["INCLUDES", "CudaOnCpu", "EmulationError", "Emulator", "kernel_names"]
