"""Writing corrected copies of label files without ever overwriting the files that were read."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DataError
from ..files import replacing
from .labels import Box, LabelSet


def digest(data: bytes) -> str:
    """Return the digest of a file's content, for `read_unchanged`."""
    return hashlib.sha256(data).hexdigest()


def read_unchanged(path: Path, digest_when_read: str | None) -> bytes:
    """Read a label file again and check that it has not changed.

    Args:
        path: the file.
        digest_when_read: digest of the content when it was first read; None skips the check.

    Raises:
        DataError: if the file no longer exists, or has changed, in which case keys may refer to other boxes.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: the file no longer exists; read the labels again") from None
    if digest_when_read not in (None, digest(data)):
        raise DataError(f"{path}: the file has changed since its labels were read; read them again")
    return data


def check_moves(labels: LabelSet, boxes: Mapping[str, Box]) -> None:
    """Raise ValueError if a key does not belong to a movable label; the message names the key."""
    movable = {label.key: label.movable for label in labels.boxes}
    for key in boxes:
        if key not in movable:
            raise ValueError(f"{labels.source} has no label '{key}'")
        if not movable[key]:
            raise ValueError(f"{key}: the label cannot be moved; see LabeledBox.movable")


def refuse_overwriting(outputs: Iterable[Path], sources: Iterable[Path]) -> None:
    """Raise DataError if an output file is one of the source files; links are followed."""
    identities = {_identity(path): path for path in sources if path.exists()}
    for output in outputs:
        if output.exists() and _identity(output) in identities:
            source = identities[_identity(output)]
            raise DataError(f"{output}: would overwrite the label file {source}; choose another output")


def write_files(contents: Mapping[Path, bytes]) -> list[Path]:
    """Write each file completely or not at all; return the paths.

    The caller collects all contents first, so that nothing is written if one of the sources has changed.
    """
    for path, data in contents.items():
        with replacing(path, "wb") as file:
            file.write(data)
    return list(contents)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
