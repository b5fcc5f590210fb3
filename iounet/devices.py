"""Select a device by name."""

import torch

from .errors import ConfigError


def build_device(name: str) -> torch.device:
    """Select a device by a name such as "cpu" or "cuda:1"; "auto" selects a GPU if available, otherwise the CPU.

    Raises:
        ConfigError: The name is unknown to torch, no such GPU is visible, or this build of torch does not support the
            device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'; choose cpu, cuda, cuda:1 (the second GPU) or auto") from None
    if device.type == "cuda":
        # A trial allocation, as below, would make every torchrun process occupy memory of the first GPU. The index of
        # cuda:999 overflows to -25.
        if not 0 <= (device.index or 0) < torch.cuda.device_count():
            raise ConfigError(
                f"device {name} not found: torch sees {torch.cuda.device_count()} GPUs; choose cpu or auto"
            )
        return device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # torch's message is pages long
        raise ConfigError(f"this build of torch does not support device {name}; choose cpu or auto") from None
    return device
