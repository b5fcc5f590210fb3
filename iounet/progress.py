"""Progress bars that a log file can hold, too."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


def progress(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """tqdm's bar on standard error; where that is no terminal, a line now and then instead.

    Args:
        iterable, options: as `tqdm.tqdm` takes them.
    """
    if not sys.stderr.isatty():
        options |= {"mininterval": SECONDS_BETWEEN_LINES, "delay": SECONDS_BETWEEN_LINES, "file": _Lines(sys.stderr)}
    return tqdm(iterable, **options)


class _Lines:
    """A file that puts each state of a bar on a line of its own, where tqdm would write over the one before."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if text := text.strip():
            self._file.write(f"{text}\n")

    def flush(self) -> None:
        self._file.flush()
