"""Learning-rate schedule: warm-up, then step decay (paper, section 5) or linear decay to zero."""

from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import OptionError, check_choice


def learning_rate_schedule(
    optimizer: Optimizer,
    *,
    decay: str,
    num_iterations: int,
    steps: Sequence[int],
    gamma: float,
    warmup: str,
    warmup_iterations: int,
    warmup_factor: float,
) -> LambdaLR:
    """Return a schedule that scales the optimizer's learning rates; call its ``step`` after each iteration.

    Args:
        decay: "step"; or "linear", a factor that falls from 1 at the first iteration to 0 after ``num_iterations``.
        steps: iterations at which the rate is multiplied by ``gamma``, if decay is "step".
        warmup: during the first ``warmup_iterations`` iterations, the rate is multiplied by ``warmup_factor``
            ("constant"), or by a factor that rises linearly from ``warmup_factor`` to 1 ("linear").

    Raises:
        OptionError: if decay or warm-up is unknown, or the steps do not ascend.
    """
    check_choice("warmup", warmup, ("constant", "linear"))
    check_choice("decay", decay, ("step", "linear"))
    if list(steps) != sorted(steps):
        raise OptionError("steps", f"must be in ascending order; got {tuple(steps)}")

    def factor(iteration: int) -> float:
        if decay == "linear":
            decayed = max(0.0, 1 - iteration / num_iterations)
        else:
            decayed = gamma ** bisect_right(steps, iteration)
        if iteration >= warmup_iterations:
            return decayed
        progress = iteration / warmup_iterations if warmup == "linear" else 0.0
        return decayed * (warmup_factor + (1 - warmup_factor) * progress)

    return LambdaLR(optimizer, factor)
