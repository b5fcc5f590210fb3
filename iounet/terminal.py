"""Configure standard output."""

import io
import sys


def print_any_name() -> None:
    """Make standard output escape characters that it cannot encode, instead of raising an error.

    Such characters occur in file names that are not valid text, and in class names under a Windows code page.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
