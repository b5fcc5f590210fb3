"""How commands end when something is wrong."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import OptionError, UserError


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the command with a line instead of a traceback after an error that its user can mend.

    An argument out of range is named as the option of its name.
    """
    try:
        yield
    except OptionError as error:
        sys.exit(f"ConfigError: --{error.argument.replace('_', '-')} {error.problem}")
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
