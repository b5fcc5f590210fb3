"""Check that the output folder may be overwritten, and replace its content only after a run succeeds."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError
from ..files import make_folder
from .records import is_record

_UNFINISHED = ".unfinished"
# boxes.json comes first because it marks the folder as one that may be overwritten.
_CONTENT = ("boxes.json", "boxes.csv", "review.html", "labels")


def check_output(output: Path, source: Path) -> None:
    """Raise DataError if writing to `output` could change the data set or files that no earlier run wrote."""
    target, read = output.resolve(), source.resolve()
    if target.is_relative_to(read) or read.is_relative_to(target):
        raise DataError(f"{output}: overlaps the data set {source}; give a separate folder with --output")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is a file; give a folder with --output")
    others = output.is_dir() and any(path.name != _UNFINISHED for path in output.iterdir())
    if others and not is_record(output / "boxes.json"):
        raise DataError(
            f"{output}: contains files that iounet-tighten did not write; give an empty or a new folder with --output"
        )


@contextmanager
def replacing_content(output: Path) -> Iterator[Path]:
    """Yield a folder to write in. Its content replaces that of `output` when the block ends without an error.

    After an error or Ctrl-C, `output` is unchanged. Other files in it, such as decisions.json, stay.

    Raises:
        ConfigError: The folder cannot be created or written to.
        OSError: The disk is full.
    """
    existed = output.exists()
    unfinished = output / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
    try:
        make_folder(output)
        unfinished.mkdir()
        yield unfinished
        for name in _CONTENT:
            # Rename the old version: Ctrl-C during its deletion would leave the folder with neither version.
            if (output / name).exists():
                (output / name).replace(unfinished / f"{name}.old")
            (unfinished / name).replace(output / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not existed and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
