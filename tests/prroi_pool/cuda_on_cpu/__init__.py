"""Runs prroi_pool's CUDA kernels on the CPU, compiled from the same source, and checks every memory access."""

from .emulator import EmulationError, Emulator, is_supported
from .launcher import INCLUDES, CudaOnCpu, kernel_names

__all__ = ["INCLUDES", "CudaOnCpu", "EmulationError", "Emulator", "is_supported", "kernel_names"]
