"""The output folder: apart from the data set, and never half there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError
from .records import is_record

_UNFINISHED = ".unfinished"
# boxes.json first: it marks the folder as one that may be written to again.
_CONTENT = ("boxes.json", "boxes.csv", "review.html", "labels")


def check_output(output: Path, source: Path) -> None:
    """Raises DataError if writing to ``output`` could touch the data set, or files that are not of an earlier run."""
    target, read = output.resolve(), source.resolve()
    if target.is_relative_to(read) or read.is_relative_to(target):
        raise DataError(f"{output}: overlaps the data set {source}; give a folder of its own with --output")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is a file; give a folder with --output")
    others = output.is_dir() and any(path.name != _UNFINISHED for path in output.iterdir())
    if others and not is_record(output / "boxes.json"):
        raise DataError(f"{output}: holds files of others; give an empty or a new folder with --output")


@contextmanager
def replacing_content(output: Path) -> Iterator[Path]:
    """A folder to write in, whose content replaces that of ``output`` once the block ends without an error.

    After an error or Ctrl-C, ``output`` is as it was. What it holds besides, such as decisions.json, stays.
    """
    existed = output.exists()
    unfinished = output / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for name in _CONTENT:
            old, new = output / name, unfinished / name
            if old.is_dir():
                shutil.rmtree(old)
            new.replace(old)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not existed and not any(output.iterdir()):
            output.rmdir()
