"""Faults of a training run, injected in a dedicated process.

The process is forked from a server that has imported everything, which takes one second instead of ten.
"""

import multiprocessing
import os
import signal
import sys

import torch
from alive import alive

from iounet.commands import train
from iounet.engine import run_folder, training


def train_with_faults(arguments, fault):
    """Run iounet-train and call ``fault(moment)`` at each moment.

    A moment is a string such as "step 3". There are moments at each step, and before, after or during each write of a
    file.
    """
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the loading processes
    os.setsid()  # so that a signal to the process group does not reach the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if a shell runs the tests in the background

    def around(owner, name, moment):
        function = getattr(owner, name)

        def wrapped(*args, **kwargs):
            fault(f"before {moment}")
            result = function(*args, **kwargs)
            fault(f"after {moment}")
            return result

        setattr(owner, name, wrapped)

    save, steps = torch.save, training.train_steps

    def save_by_halves(content, file):
        save(content, file)
        file.truncate(file.tell() // 2)
        fault("half a checkpoint")
        file.seek(0)
        save(content, file)

    def stepping(*args, **kwargs):
        for step in steps(*args, **kwargs):
            fault(f"step {step.iteration}")
            yield step

    torch.save, training.train_steps = save_by_halves, stepping
    around(training, "save_checkpoint", "a checkpoint")
    around(training, "prune_checkpoints", "old ones are removed")
    around(training, "evaluate_and_report", "an evaluation")
    around(training.RunFolder, "log", "a row")
    around(run_folder, "_add_rows", "a row of a table")
    sys.argv = ["train.py", *map(str, arguments)]
    train.main()


def no_fault(moment):
    pass


class Signal:
    """Fault: send a signal to the process group when a moment occurs for the ``count``-th time."""

    def __init__(self, number, moment, count=1):
        self.number, self.moment, self.count = number, moment, count

    def __call__(self, moment):
        self.count -= self.moment in ("any", moment)
        if self.count == 0:
            os.killpg(0, self.number)
            self.count = -1


class Watch:
    """Appends the numbers of live tensors and open files to a file, at the given steps."""

    def __init__(self, path, steps):
        self.path, self.moments = path, [f"step {step}" for step in steps]

    def __call__(self, moment):
        if moment in self.moments:
            with open(self.path, "a") as file:
                file.write(f"{alive()}\n")
