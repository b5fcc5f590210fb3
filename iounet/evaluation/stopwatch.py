"""How long the stages of a computation take, on a CPU or a GPU."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def clock(device: torch.device) -> float:
    """Seconds, once the device has finished what it was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Seconds spent in each stage, without the stages that are entered within it.

    Attributes:
        seconds: stage → seconds.
    """

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """What runs in this context, or in a function that it decorates, belongs to the stage."""
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
