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
    """The result of an iteration.

    Attributes:
        iteration: number of completed iterations.
        losses: losses by name, and their sum as "loss".
        gradient_norm: norm of the gradient of all parameters, before clipping.
        learning_rate: learning rate of this iteration.
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
    """Train on the batches, one step per batch, and yield after each step so that the caller can log or evaluate.

    Args:
        detector: maps images and targets to a dict of losses, which are summed; may be wrapped in
            DistributedDataParallel.
        batches: (images, targets), as yielded by `iounet.data.train_loader`.
        seed: the random numbers of an iteration (samples, jitter) depend only on the seed and the iteration, so that a
            resumed run continues like an uninterrupted one. Use a different seed for each process.
        start_iteration: number of iterations already done.
        clip_gradient: largest norm of the gradient of all parameters; 0 disables clipping.
        accumulation_steps: number of equal parts into which a batch is divided to save memory. The gradient and the
            reported losses are means over the parts. BatchNorm statistics are computed separately for each part.

    Raises:
        ValueError: if a batch cannot be divided into equal parts.
        NonFiniteLossError: if a loss or a gradient is NaN or infinite. The weights are those before this iteration.
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
            raise ValueError(f"a batch of {len(images)} images cannot be divided into {accumulation_steps} equal parts")
        optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        size = len(images) // accumulation_steps
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            # Processes exchange gradients once per step, with the last part.
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
                f"iteration {iteration}: a loss or the gradient norm is not finite ({shown}) on images "
                f"{[target['image_id'] for target in targets]}; check these images, lower the learning rate, lengthen "
                "the warm-up, or clip the gradient"
            )
        learning_rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        yield Step(iteration + 1, values, gradient_norm, learning_rate)
