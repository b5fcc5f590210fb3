"""Learning-rate schedule: warm-up, then step decay (paper, section 5)."""

from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_step_schedule(
    optimizer: Optimizer,
    *,
    steps: Sequence[int],
    gamma: float,
    warmup: str,
    warmup_iterations: int,
    warmup_factor: float,
) -> LambdaLR:
    """Multiplies the optimizer's learning rates, by iteration; to be stepped after each.

    Args:
        steps: iterations from which on the rate is multiplied by ``gamma`` once more.
        warmup: for the first ``warmup_iterations`` iterations the rate is multiplied by ``warmup_factor``
            ("constant"), or by a factor that rises from there to 1 ("linear").

    Raises:
        ValueError: an unknown warm-up, or steps that do not rise.
    """
    if warmup not in ("constant", "linear"):
        raise ValueError(f"unknown warm-up '{warmup}': SOLVER.WARMUP is constant or linear")
    if list(steps) != sorted(steps):
        raise ValueError(f"SOLVER.STEPS must rise, got {tuple(steps)}")

    def factor(iteration: int) -> float:
        decay = gamma ** bisect_right(steps, iteration)
        if iteration >= warmup_iterations:
            return decay
        progress = iteration / warmup_iterations if warmup == "linear" else 0.0
        return decay * (warmup_factor + (1 - warmup_factor) * progress)

    return LambdaLR(optimizer, factor)
