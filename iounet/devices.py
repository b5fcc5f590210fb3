"""Devices by their names."""

import torch

from .errors import ConfigError


def build_device(name: str) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1"; "auto": a GPU if there is one, else the CPU.

    Raises:
        ConfigError: torch knows no such device, sees no such GPU, or was built without support for the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'; choose cpu, cuda, cuda:1 (the second GPU) or auto") from None
    if device.type == "cuda":
        # Not a trial as below: each process of torchrun would take memory of the first GPU. cuda:999 overflows to -25.
        if not 0 <= (device.index or 0) < torch.cuda.device_count():
            raise ConfigError(f"no device {name}: torch sees {torch.cuda.device_count()} GPUs; choose cpu or auto")
        return device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # torch's own message is pages long
        raise ConfigError(f"device {name} cannot be used with this torch; choose cpu or auto") from None
    return device
