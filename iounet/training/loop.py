"""The training loop."""

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import NonFiniteLossError


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
    accumulation_steps: int = 1,
) -> Iterator[Step]:
    """Trains on the batches, one step each; whoever iterates logs, evaluates and saves between the steps.

    Args:
        detector: images and targets → dict of losses, to be summed; also as wrapped by DistributedDataParallel.
        batches: (images, targets) as :func:`iounet.data.train_loader` yields them.
        seed: what an iteration draws at random (samples, jitter) depends on it and the iteration's number alone, so
            that a resumed run goes on as the uninterrupted one; processes take different seeds.
        start_iteration: iterations done before.
        clip_gradient: largest norm of the gradient of all parameters; 0: not clipped.
        accumulation_steps: equal parts into which a batch is divided to save memory; the gradient is the mean of
            theirs, as are the losses reported. Norms that learn statistics take those of each part.

    Raises:
        ValueError: a batch cannot be divided into equal parts.
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
        if len(images) % accumulation_steps:
            raise ValueError(f"a batch of {len(images)} images has no {accumulation_steps} equal parts")
        optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        size = len(images) // accumulation_steps
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            # Gradients travel between processes once a step, with the last part's.
            waits = part.stop < len(images)
            with detector.no_sync() if waits and isinstance(detector, DistributedDataParallel) else nullcontext():
                of_part = detector(images[part], on_device[part])
                of_part["loss"] = sum(of_part.values())
                (of_part["loss"] / accumulation_steps).backward()
            for name, loss in of_part.items():
                losses[name] = losses.get(name, 0) + loss.detach() / accumulation_steps
        gradient_norm = nn.utils.clip_grad_norm_(trainable, clip_gradient or math.inf).item()
        values = {name: loss.item() for name, loss in losses.items()}
        if not math.isfinite(values["loss"] + gradient_norm):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in (values | {"gradient": gradient_norm}).items())
            raise NonFiniteLossError(
                f"iteration {iteration}: a loss or the norm of the gradient is not finite ({shown}) "
                f"on images {[target['image_id'] for target in targets]}; look at these images, lower the learning "
                "rate, lengthen the warm-up, or clip the gradient"
            )
        learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        yield Step(iteration + 1, values, gradient_norm, learning_rate)
