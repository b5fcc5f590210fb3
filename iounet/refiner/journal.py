"""A journal of a long run, with one line per finished item, from which a stopped run can be resumed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError


class Journal:
    """A file of JSON lines. The first line identifies the run.

    Args:
        path: journal file; its folder is created if missing.
        run: everything on which the results of the run depend, as JSON.
        resume: continue an existing file.

    Raises:
        DataError: the file exists and ``resume`` is False, or the file belongs to a different run or is damaged.
    """

    def __init__(self, path: Path, run: dict[str, Any], *, resume: bool):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if not resume:
                raise DataError(
                    f"{path} belongs to a run that was stopped; pass --resume to continue it, choose another output "
                    "folder, or delete the file to start over"
                )
            self._continue(run)
        if not path.exists() or not path.stat().st_size:
            path.write_text(json.dumps(run) + "\n")
        self._file = open(path, "a")  # noqa: SIM115, closed by finish()

    def _continue(self, run: dict[str, Any]) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a killed run may leave an incomplete line
        try:
            first = json.loads(whole.split(b"\n", 1)[0]) if whole else run
            changed = [key for key in run if first.get(key) != run[key]]
        except (ValueError, AttributeError):
            raise DataError(f"{self.path} is damaged; delete it to start over") from None
        if changed:
            raise DataError(
                f"{self.path} belongs to a run with a different {' and '.join(changed)}; repeat the command of that "
                "run, choose another output folder, or delete the file to start over"
            )
        if len(whole) < len(content):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the entries so far, oldest first, read from the file one by one.

        Raises:
            DataError: a line is not a JSON object.
        """
        with open(self.path, encoding="utf-8", errors="replace") as file:
            next(file)
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    entry = None
                if not isinstance(entry, dict):
                    raise DataError(f"{self.path} is damaged; delete it to start over")
                yield entry

    def append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def finish(self) -> None:
        """Delete the file. Call this only after its content has been written elsewhere."""
        self._file.close()
        self.path.unlink()
