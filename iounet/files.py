"""Reading JSON with errors that name the file, folders for output, and writing files that are never half there."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import ConfigError, DataError, is_out_of_space


def read_json(path: str | Path, what: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        what: it should hold, such as "annotation file"; for the messages.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such {what}; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except (ValueError, RecursionError) as error:  # not JSON, not text at all, or nested without end
        raise DataError(f"{path}: is not JSON ({error}); it may be truncated: copy or download it again") from error


def make_folder(path: Path) -> None:
    """Makes a folder for output, if it is not there, and sees that files can be written in it.

    Called before the work whose results it is for.

    Raises:
        ConfigError: no files can be written there.
        OSError: the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        if is_out_of_space(error):
            raise
        file = next((part for part in (path, *path.parents) if part.exists() and not part.is_dir()), None)
        problem = f"{file} is a file" if file else error.strerror
        raise ConfigError(f"{path}: cannot be used as the folder for output ({problem}); choose another") from None


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write that replaces ``path`` once the block ends without an error.

    The content is written under a temporary name in the same folder, flushed to the disk and renamed. So ``path`` holds
    either the old content or the new one, even if the process is killed or the disk is full.

    Args:
        path: its folder is made.
        mode: "w" for text in UTF-8, with escapes for the bytes of file names that are no text; "wb" for bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a killed process left is overwritten by the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
        with open(temporary, mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file of UTF-8, whole or not at all; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(text)


def write_json_list(path: Path, entries: Iterable[Any]) -> int:
    """Writes a JSON list as its entries come, one a line, whole or not at all; the number of entries."""
    count = 0
    with replacing(path) as file:
        file.write("[")
        for count, entry in enumerate(entries, start=1):
            file.write(("\n" if count == 1 else ",\n") + json.dumps(entry))
        file.write("\n]\n")
    return count
