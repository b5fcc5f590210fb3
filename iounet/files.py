"""Read JSON with errors that name the file, create output folders, and write files atomically."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import ConfigError, DataError, is_out_of_space


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: Path of the file.
        what: Kind of file, such as "annotation file", for error messages.

    Raises:
        DataError: The file cannot be read or is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such {what}; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except (ValueError, RecursionError) as error:  # not JSON, not text, or nested too deeply
        raise DataError(f"{path}: not valid JSON ({error}); if it is truncated, copy or download it again") from error


def make_folder(path: Path) -> None:
    """Create an output folder if it is missing, and check that it is writable.

    Call this before the work whose results go into the folder.

    Raises:
        ConfigError: Files cannot be written there.
        OSError: The disk is full.
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
        raise ConfigError(f"{path}: cannot be used as the output folder ({problem}); choose another") from None


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` when the block ends without an error.

    The content goes to a temporary file in the same folder, which is flushed to disk and renamed. So `path` has either
    the old content or the new content, even if the process is killed or the disk is full.

    Args:
        path: Path of the file; its folder is created if missing.
        mode: "w" for UTF-8 text, with undecodable bytes of file names escaped; "wb" for bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name is fixed, so the next write overwrites the leftovers of a killed process.
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
    """Write a UTF-8 text file atomically; see `replacing`."""
    with replacing(path) as file:
        file.write(text)


def write_json_list(path: Path, entries: Iterable[Any]) -> int:
    """Write a JSON list atomically while iterating over its entries, one per line; return their number."""
    count = 0
    with replacing(path) as file:
        file.write("[")
        for count, entry in enumerate(entries, start=1):
            file.write(("\n" if count == 1 else ",\n") + json.dumps(entry))
        file.write("\n]\n")
    return count
