"""What a process of a group of several does."""

import os
import sys

import torch

from iounet.commands import train


def as_member(rank, world_size, port, function, *arguments):
    """Calls a function in the environment that torchrun gives its processes."""
    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    function(*arguments)


def run_train(*arguments):
    sys.argv = ["train.py", *arguments]
    train.main()
