"""The output folder: apart from the data set, and never half there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError
from ..files import make_folder
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

    Raises:
        ConfigError: no files can be written there.
        OSError: the disk is full.
    """
    existed = output.exists()
    unfinished = output / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        make_folder(output)
        unfinished.mkdir()
        yield unfinished
        for name in _CONTENT:
            # Renamed, not deleted: that takes no time in which Ctrl-C could leave neither the old nor the new.
            if (output / name).exists():
                (output / name).replace(unfinished / f"{name}.old")
            (unfinished / name).replace(output / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not existed and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
