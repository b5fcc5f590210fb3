"""The training loop."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class NonFiniteLossError(FloatingPointError):
    """Training diverged; the message names the iteration, the losses and the images."""


@dataclass(frozen=True)
class Step:
    """What an iteration leaves.

    Attributes:
        iteration: how many iterations are done.
        losses: by name, and their sum as "loss".
        gradient_norm: of all parameters together, before it was clipped.
        learning_rate: the one used.
    """

    iteration: int
    losses: dict[str, float]
    gradient_norm: float
    learning_rate: float


def train_steps(
    detector: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[dict]]],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    *,
    device: torch.device,
    seed: int,
    start_iteration: int = 0,
    clip_gradient: float = 0.0,
) -> Iterator[Step]:
    """Trains on the batches, one step each; whoever iterates logs, evaluates and saves between the steps.

    Args:
        detector: images and targets → dict of losses, to be summed; also as wrapped by DistributedDataParallel.
        batches: (images, targets) as :func:`iounet.data.train_loader` yields them.
        seed: what an iteration draws at random (samples, jitter) depends on it and the iteration's number alone, so
            that a resumed run goes on as the uninterrupted one; processes take different seeds.
        start_iteration: iterations done before.
        clip_gradient: largest norm of the gradient of all parameters; 0: not clipped.

    Raises:
        NonFiniteLossError: a loss or a gradient is NaN or infinite. The weights are those before this iteration.
    """
    trainable = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    for iteration, (images, targets) in enumerate(batches, start=start_iteration):
        detector.train()
        torch.manual_seed(int(np.random.SeedSequence([seed, iteration]).generate_state(1, np.uint64)[0]))
        images = [image.to(device, non_blocking=True) for image in images]
        on_device = [
            {key: target[key].to(device, non_blocking=True) for key in ("boxes", "labels")} for target in targets
        ]
        losses = detector(images, on_device)
        total = sum(losses.values())
        values = {name: loss.item() for name, loss in losses.items()} | {"loss": total.item()}
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        gradient_norm = nn.utils.clip_grad_norm_(trainable, clip_gradient or math.inf).item()
        if not math.isfinite(total.item() + gradient_norm):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in (values | {"gradient": gradient_norm}).items())
            raise NonFiniteLossError(
                f"iteration {iteration}: a loss or the norm of the gradient is not finite ({shown}) "
                f"on images {[target['image_id'] for target in targets]}; look at these images, lower SOLVER.BASE_LR, "
                "lengthen SOLVER.WARMUP_ITERATIONS, or set SOLVER.CLIP_GRADIENT"
            )
        learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        yield Step(iteration + 1, values, gradient_norm, learning_rate)
