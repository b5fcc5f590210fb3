"""Time the stages of a computation on a CPU or GPU."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def clock(device: torch.device) -> float:
    """Return the time in seconds after the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Measures the seconds spent in each stage, excluding nested stages.

    Attributes:
        seconds: Stage → seconds.
    """

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time in this context, or in a decorated function, towards a stage."""
        self._lap()
        self._running.append(stage)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def _lap(self) -> None:
        now = clock(self._device)
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
