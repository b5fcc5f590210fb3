"""Corrected copies of label files of any form: the checks that keep the files that were read as they are."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DataError
from ..files import replacing
from .labels import Box, LabelSet


def digest(data: bytes) -> str:
    """Of a file's content when it was read; for :func:`read_unchanged`."""
    return hashlib.sha256(data).hexdigest()


def read_unchanged(path: Path, digest_when_read: str | None) -> bytes:
    """The content of a label file that was read before.

    Args:
        path: of the file.
        digest_when_read: None: the file was not read before.

    Raises:
        DataError: the file has changed since, so that its boxes may stand elsewhere; or is gone.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file any more; read the labels again") from None
    if digest_when_read not in (None, digest(data)):
        raise DataError(f"{path}: has changed since its labels were read; read them again")
    return data


def check_moves(labels: LabelSet, boxes: Mapping[str, Box]) -> None:
    """Raises ValueError, which names the key, unless all keys are those of labels that may be moved."""
    movable = {label.key: label.movable for label in labels.boxes}
    for key in boxes:
        if key not in movable:
            raise ValueError(f"{labels.source} has no label '{key}'")
        if not movable[key]:
            raise ValueError(f"{key}: cannot be moved; see LabeledBox.movable")


def refuse_overwriting(outputs: Iterable[Path], sources: Iterable[Path]) -> None:
    """Raises DataError if a file to be written is one that was read; links are followed."""
    identities = {_identity(path): path for path in sources if path.exists()}
    for output in outputs:
        if output.exists() and _identity(output) in identities:
            source = identities[_identity(output)]
            raise DataError(f"{output}: is the label file {source} itself, which is never written over; name another")


def write_files(contents: Mapping[Path, bytes]) -> list[Path]:
    """Writes files, each whole or not at all; returns their paths.

    All contents come at once: nothing is written if one of the sources turns out to have changed.
    """
    for path, data in contents.items():
        with replacing(path, "wb") as file:
            file.write(data)
    return list(contents)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
