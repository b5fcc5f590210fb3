"""Learning-rate schedule: warm-up, then step decay (paper, section 5) or a straight fall to zero."""

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
    """Multiplies the optimizer's learning rates, by iteration; to be stepped after each.

    Args:
        decay: "step", or "linear": from 1 at the first iteration to 0 after the last of ``num_iterations``.
        steps: iterations from which on the rate is multiplied by ``gamma`` once more, if decay is "step".
        warmup: for the first ``warmup_iterations`` iterations the rate is multiplied by ``warmup_factor``
            ("constant"), or by a factor that rises from there to 1 ("linear").

    Raises:
        OptionError: an unknown decay or warm-up, or steps that do not rise.
    """
    check_choice("warmup", warmup, ("constant", "linear"))
    check_choice("decay", decay, ("step", "linear"))
    if list(steps) != sorted(steps):
        raise OptionError("steps", f"must rise, got {tuple(steps)}")

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
