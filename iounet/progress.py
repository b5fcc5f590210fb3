"""Progress bars that are readable in a log file, too."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


def progress(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """Show tqdm's bar on standard error, or print occasional lines if standard error is not a terminal.

    Args:
        iterable: As for `tqdm.tqdm`.
        options: As for `tqdm.tqdm`.
    """
    if not sys.stderr.isatty():
        options |= {"mininterval": SECONDS_BETWEEN_LINES, "delay": SECONDS_BETWEEN_LINES, "file": _Lines(sys.stderr)}
    return tqdm(iterable, **options)


class _Lines:
    """A file wrapper that writes each state of a bar on a new line, where tqdm would overwrite the previous state."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if text := text.strip():
            self._file.write(f"{text}\n")

    def flush(self) -> None:
        self._file.flush()
