"""Errors that a user can fix. The commands print their messages as one line, without a traceback."""

import errno
import math


class UserError(Exception):
    """Base class of the errors that commands print without a traceback."""


class ConfigError(UserError, ValueError):
    """The configuration cannot be used; the message names the key and the remedy."""


class CheckpointError(UserError, RuntimeError):
    """The checkpoint cannot be used; the message names the file and the remedy."""


class NonFiniteLossError(UserError, FloatingPointError):
    """Training diverged; the message names the iteration, the losses and the images."""


class DataError(UserError, ValueError):
    """The data cannot be used; the message names the file, the item and the remedy.

    Attributes:
        rule: The violated rule in a few words, the same for all items that violate it; may be empty.
    """

    def __init__(self, message: str, rule: str = "") -> None:
        # DataLoader re-raises a worker's error with the worker's traceback as the message; our message is its end.
        if message.startswith("Caught DataError in DataLoader worker"):
            message = message.rpartition("DataError: ")[2].rstrip()
        super().__init__(message)
        self.rule = rule


class OptionError(ValueError):
    """An argument is out of range; the message names the argument.

    `iounet.build`, which takes arguments from a configuration, turns this error into a `ConfigError` that names the
    key.

    Attributes:
        argument: Name of the argument.
        problem: The rest of the message.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} {problem}")
        self.argument = argument
        self.problem = problem


def check_range(argument: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise `OptionError` unless the value lies in [low, high]; NaN does not."""
    if not low <= value <= high:
        limits = f"lie in [{low:g}, {high:g}]" if high < math.inf else f"be at least {low:g}"
        raise OptionError(argument, f"must {limits}; got {value}")


def check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `OptionError` unless the value is one of the choices."""
    if value not in choices:
        raise OptionError(argument, f"must be one of {', '.join(choices)}; got '{value}'")


def is_out_of_space(error: OSError) -> bool:
    """Whether the error means that the disk is full or the user's quota is exceeded."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
