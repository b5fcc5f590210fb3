"""The processes of a distributed run."""

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
    """One of the processes started by torchrun, or the only process of a run without torchrun."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the main process (rank 0), which prints and writes files."""
        return self.rank == 0

    def gather(self, items: list[Item]) -> list[Item]:
        """Gather the items of all processes in the main process; return an empty list in the others.

        The first items of all processes come first, then the second ones, and so on. This restores the original order
        of items that were distributed round-robin, such as the images of `iounet.data.eval_loader`.
        """
        if self.world_size == 1:
            return items
        parts: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(items, parts)
        return _in_turns(parts or [])

    def all_gather(self, items: list[Item]) -> list[Item]:
        """Gather the items of all processes in every process, in the order of `gather`."""
        if self.world_size == 1:
            return items
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, items)
        return _in_turns(parts)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's round-robin share of items that all processes have; `gather` is the inverse."""
        return items[self.rank :: self.world_size]

    def maximum(self, value: int) -> int:
        """Return the largest value of all processes, in every process."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)


def _in_turns(parts: Iterable[list[Item]]) -> list[Item]:
    turns = itertools.zip_longest(*parts, fillvalue=_NOTHING)
    return [item for turn in turns for item in turn if item is not _NOTHING]  # type: ignore[misc]


def init_process(device: torch.device) -> Process:
    """Return this process, after joining the process group if torchrun started it.

    To leave the group, call ``torch.distributed.destroy_process_group``.

    Raises:
        ConfigError: if torchrun started the process, and the device is a specific GPU.
    """
    if "WORLD_SIZE" not in os.environ:
        return Process(device)
    if device.type == "cuda":
        if device.index is not None:
            raise ConfigError(
                f"MODEL.DEVICE {device} is a specific GPU, but with torchrun each process uses a different one; "
                "set MODEL.DEVICE cuda"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(hours=1)  # other processes wait while the main process writes a report or builds the kernels
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    # After a restart, the store still has the addresses of the previous processes; without the prefix, some processes
    # would connect to them.
    store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return Process(device, dist.get_rank(), dist.get_world_size())
