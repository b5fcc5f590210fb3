"""Errors that a user can mend: each message names the cause and the cure, and the commands print it as one line."""

import errno
import math


class UserError(Exception):
    """Base of the errors that commands print without a traceback."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the key and the cure."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be used; the message names the file and the cure."""


class NonFiniteLossError(UserError, FloatingPointError):
    """Training diverged; the message names the iteration, the losses and the images."""


class DataError(UserError, ValueError):
    """Data that cannot be used; the message names the file, the item and the cure.

    Attributes:
        rule: the broken rule in a few words, the same for all items that break it; may be empty.
    """

    def __init__(self, message: str, rule: str = "") -> None:
        # A DataLoader raises a worker's error anew, with the worker's traceback as its message, which ours ends.
        if message.startswith("Caught DataError in DataLoader worker"):
            message = message.rpartition("DataError: ")[2].rstrip()
        super().__init__(message)
        self.rule = rule


class OptionError(ValueError):
    """An argument out of range.

    The message names the argument. `iounet.build`, which takes arguments from a configuration, turns it into a
    `ConfigError` that names the key.

    Attributes:
        argument: its name.
        problem: the rest of the message.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} {problem}")
        self.argument = argument
        self.problem = problem


def check_range(argument: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises OptionError unless the value lies in [low, high]; NaN does not."""
    if not low <= value <= high:
        limits = f"lie in [{low:g}, {high:g}]" if high < math.inf else f"be at least {low:g}"
        raise OptionError(argument, f"must {limits}; got {value}")


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises OptionError unless the value is one of the choices."""
    if value not in choices:
        raise OptionError(argument, f"must be one of {', '.join(choices)}; got '{value}'")


def is_out_of_space(error: OSError) -> bool:
    """Whether the disk is full, or the user's share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
