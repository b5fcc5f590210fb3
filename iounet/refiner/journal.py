"""What a long run has done so far, a line at a time, so that it can be stopped anywhere and go on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError


class Journal:
    """A file of JSON lines; the first tells of which run they are.

    Args:
        path: of the file; its folder is made.
        run: what the run's outcome depends on, as JSON.
        resume: go on with the file that lies there, if any.

    Raises:
        DataError: the file lies there and ``resume`` is False, or it is of another run.
    """

    def __init__(self, path: Path, run: dict[str, Any], *, resume: bool):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if not resume:
                raise DataError(
                    f"{path} is left of a run that was stopped: give --resume to go on with it, another output folder, "
                    "or delete that file to begin anew"
                )
            self._go_on(run)
        if not path.exists() or not path.stat().st_size:
            path.write_text(json.dumps(run) + "\n")
        self._file = open(path, "a")  # noqa: SIM115, closed by finish()

    def _go_on(self, run: dict[str, Any]) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a run that is killed may leave half a line
        try:
            first = json.loads(whole.split(b"\n", 1)[0]) if whole else run
            changed = [key for key in run if first.get(key) != run[key]]
        except (ValueError, AttributeError):
            raise DataError(f"{self.path} is damaged: delete it to begin anew") from None
        if changed:
            raise DataError(
                f"{self.path} is left of a run with another {' and another '.join(changed)}: give what that run was "
                "given, another output folder, or delete that file to begin anew"
            )
        if len(whole) < len(content):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The entries so far, oldest first, read from the file one by one.

        Raises:
            DataError: a line is no JSON object.
        """
        with open(self.path, encoding="utf-8", errors="replace") as file:
            next(file)
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    entry = None
                if not isinstance(entry, dict):
                    raise DataError(f"{self.path} is damaged: delete it to begin anew")
                yield entry

    def append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def finish(self) -> None:
        """Removes the file: what it held is elsewhere now."""
        self._file.close()
        self.path.unlink()
