"""Data loaders for training and evaluation.

The image at each position of a training run, and its augmentation, depend only on the run's seed and the position.
A resumed run therefore gets the same batches as an uninterrupted run, with any number of workers.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from .coco import CocoDataset, Sample


def train_loader(
    dataset: CocoDataset,
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    start_iteration: int = 0,
    num_iterations: int,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Return a loader of batches ``(images, targets)``, two lists of length ``batch_size``, for the rest of a run.

    Epochs follow each other without a break, each in a new random order; a batch may contain the end of one epoch and
    the beginning of the next. Iteration k of rank r takes batch ``k * world_size + r`` of that sequence.

    Args:
        batch_size: number of images per process.
        num_workers: number of loading processes; 0 loads in the training process.
        seed: seed of the order and of the augmentation; the same on every rank.
        start_iteration: the iteration at which a resumed run continues.
        num_iterations: length of the whole run, counted from iteration 0.
    """
    batches = _TrainBatches(
        len(dataset),
        batch_size=batch_size,
        seed=seed,
        iterations=range(start_iteration, num_iterations),
        rank=rank,
        world_size=world_size,
    )
    return _loader(dataset, num_workers, batch_sampler=batches)


def eval_loader(
    dataset: CocoDataset, *, batch_size: int, num_workers: int, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """Return a loader of batches ``(images, targets)`` with every image once, in order.

    Rank r takes the images r, r + world_size, r + 2 * world_size, ... The last batch may be smaller: no image is
    repeated to pad batches or ranks.
    """
    return _loader(dataset, num_workers, sampler=range(rank, len(dataset), world_size), batch_size=batch_size)


# Purposes that separate the random streams derived from a run's seed.
_ORDER, _AUGMENTATION = 0, 1


class _TrainBatches(Sampler[list[Sample]]):
    def __init__(
        self, num_images: int, *, batch_size: int, seed: int, iterations: range, rank: int, world_size: int
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.iterations = iterations
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return len(self.iterations)

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch, order = -1, []
        for iteration in self.iterations:
            first = (iteration * self.world_size + self.rank) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.num_images != epoch:
                    epoch = position // self.num_images
                    order = self._order(epoch)
                index = order[position % self.num_images]
                batch.append(Sample(index, _mix(self.seed, _AUGMENTATION, position)))
            yield batch

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(_mix(self.seed, _ORDER, epoch))
        return torch.randperm(self.num_images, generator=generator).tolist()


def _mix(seed: int, purpose: int, number: int) -> int:
    # If seed and number were added, runs with seeds 0 and 1 would draw the same numbers at neighbouring positions.
    return int(np.random.SeedSequence([seed, purpose, number]).generate_state(1, np.uint64)[0])


def _collate(samples: list[tuple[Tensor, dict[str, Any]]]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def _loader(dataset: CocoDataset, num_workers: int, **batching: Any) -> DataLoader:
    return DataLoader(
        dataset,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=_collate,
        worker_init_fn=_leave_process_group,
        pin_memory=torch.cuda.is_available(),
        # Without this generator, each pass over the loader would draw from the global random state of training.
        generator=torch.Generator().manual_seed(0),
        **batching,
    )


def _leave_process_group(worker: int) -> None:
    """Move a loading process to its own session, so that signals to the process group do not reach it.

    Ctrl-C and torchrun signal whole process groups. A worker that exits would crash the training process in the middle
    of a step; a worker that ignores SIGTERM could not be terminated by the training process.
    """
    if hasattr(os, "setsid"):  # Windows has no such signals
        os.setsid()
