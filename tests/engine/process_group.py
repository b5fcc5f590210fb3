"""Functions to run in the processes of a group."""

import os
import sys

import torch

from iounet.commands import train


def as_member(rank, world_size, port, function, *arguments):
    """Call a function with the environment variables that torchrun sets."""
    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    function(*arguments)


def run_train(*arguments):
    sys.argv = ["train.py", *arguments]
    train.main()
