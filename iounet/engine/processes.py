"""The processes that train and evaluate together."""

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import ConfigError

_NOTHING = object()
Item = TypeVar("Item")


@dataclass(frozen=True)
class Process:
    """One of torchrun's processes, or the only one of plain python."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def gather(self, items: list[Item]) -> list[Item]:
        """All processes' items in the main process, the first of each, then the second; nothing in the others.

        Of items that were dealt out in turns, as :func:`iounet.data.eval_loader` deals images, this is the original
        order.
        """
        if self.world_size == 1:
            return items
        parts: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(items, parts)
        return _in_turns(parts or [])

    def all_gather(self, items: list[Item]) -> list[Item]:
        """What :meth:`gather` returns in the main process, in all processes."""
        if self.world_size == 1:
            return items
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, items)
        return _in_turns(parts)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of items that all have, dealt out in turns: :meth:`gather` undoes it."""
        return items[self.rank :: self.world_size]

    def maximum(self, value: int) -> int:
        """The largest of the processes' values, in all processes."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)


def _in_turns(parts: Iterable[list[Item]]) -> list[Item]:
    turns = itertools.zip_longest(*parts, fillvalue=_NOTHING)
    return [item for turn in turns for item in turn if item is not _NOTHING]  # type: ignore[misc]


def init_process(device: torch.device) -> Process:
    """This process, joined with the others if torchrun started it.

    ``torch.distributed.destroy_process_group`` leaves them.

    Raises:
        ConfigError: torchrun started it, and the device is a certain GPU.
    """
    if "WORLD_SIZE" not in os.environ:
        return Process(device)
    if device.type == "cuda":
        if device.index is not None:
            raise ConfigError(f"MODEL.DEVICE {device} is one GPU, but torchrun gives each process its own: choose cuda")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(hours=1)  # the others wait while the main process writes a report or builds the kernels
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    # After a restart the store still has the addresses of the processes before, and some would connect to them.
    store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return Process(device, dist.get_rank(), dist.get_world_size())
