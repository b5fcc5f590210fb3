"""What a terminal can show."""

import io
import sys


def print_any_name() -> None:
    """From here on, standard output shows characters that it does not have as escapes, instead of ending the command.

    Such as those of file names that are no text, and of class names where Windows has a code page.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
