"""Exit messages of commands that fail."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import OptionError, UserError


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn an error that the user can fix into a one-line exit message instead of a traceback.

    The message for an argument out of range names the command-line option.
    """
    try:
        yield
    except OptionError as error:
        sys.exit(f"ConfigError: --{error.argument.replace('_', '-')} {error.problem}")
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
