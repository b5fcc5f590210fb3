"""The folder of a training run: everything needed to see what happened and to do it again."""

import csv
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms.v2.functional import pil_to_tensor

from ..files import make_folder, replacing, write_text

HISTOGRAM_EDGES = [edge / 50 for edge in range(51)]  # TensorBoard's own are a tenth of the value apart
LARGEST_DIFF = 1 << 20  # bytes; more than anybody writes by hand between two commits


class RunFolder:
    """Writes config.yaml, environment.json, git.diff, metrics and TensorBoard logs.

    metrics.json holds a JSON object a line, of training and of evaluations; metrics.csv those of training and
    evaluation.csv those of evaluations, a column for each name. git.diff is there if the code differs from its commit.
    A resumed run writes environment_ITERATION.json and git_ITERATION.diff, beside those that it began with.

    Args:
        path: made if it is not there.
        config: YAML text of the resolved configuration.
        start_iteration: iterations done before; rows of later ones, left by a run that was killed, are removed.

    Attributes:
        evaluated: the iterations that have a row of their evaluation.

    Raises:
        ConfigError: no files can be written in the folder.
    """

    def __init__(self, path: Path, config: str, *, start_iteration: int = 0):
        self.path = path
        make_folder(path)
        write_text(path / "config.yaml", config)
        self._write_environment(f"_{start_iteration:07d}" if start_iteration else "")
        self._metrics = path / "metrics.json"
        lines = self._metrics.read_text().splitlines() if self._metrics.exists() and start_iteration else []
        kept = [line for line in lines if _iteration(line) <= start_iteration]
        with replacing(self._metrics) as file:
            file.writelines(f"{line}\n" for line in kept)
        rows = [json.loads(line) for line in kept]
        self.evaluated = {row["iteration"] for row in rows if _table_of(row) == "evaluation.csv"}
        for name in ("metrics.csv", "evaluation.csv"):
            (path / name).unlink(missing_ok=True)
            _add_rows(path / name, [row for row in rows if _table_of(row) == name])
        # From the start, too: a run that was killed before its first checkpoint is begun anew in its folder.
        self._tensorboard = SummaryWriter(path / "tensorboard", purge_step=start_iteration + 1)

    def _write_environment(self, suffix: str) -> None:
        state, diff = git_state(Path(__file__).parent)
        content = {"command": shlex.join(sys.argv), "working_directory": os.getcwd(), "git": state} | environment()
        write_text(self.path / f"environment{suffix}.json", json.dumps(content, indent=2) + "\n")
        changes = self.path / f"git{suffix}.diff"
        changes.unlink(missing_ok=True)
        if diff:
            changes.write_bytes(diff)

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Appends a row to metrics.json and to its table, and each value to TensorBoard under its name."""
        row = {"iteration": iteration} | values
        with open(self._metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
        _add_rows(self.path / _table_of(row), [row])
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, iteration)

    def log_evaluation(self, iteration: int, summary: dict, candidates: dict[str, Tensor]) -> None:
        """Logs the table and the correlations, the pictures of the report that lies in this folder, and histograms.

        Args:
            summary: as :func:`iounet.evaluation.write_report` returns it.
            candidates: name → Tensor[N] of values between 0 and 1, one for each candidate.
        """
        groups = summary["table"] | {"correlation": summary["correlation"]}
        values = {f"{group}/{name}": value for group, columns in groups.items() for name, value in columns.items()}
        self.log(iteration, {name: value for name, value in values.items() if value is not None})
        for name in ("boxes", "changes", "correlation"):
            with Image.open(self.path / f"{name}.png") as picture:
                self._tensorboard.add_image(name, pil_to_tensor(picture.convert("RGB")), iteration)
        for name, ious in candidates.items():
            # Clamped, as the regressed IoU overshoots a little. TensorBoard refuses a histogram of nothing.
            if len(ious):
                self._tensorboard.add_histogram(f"candidates/{name}", ious.clamp(0, 1), iteration, HISTOGRAM_EDGES)
        self.evaluated.add(iteration)
        self.flush()

    def flush(self) -> None:
        """Writes what TensorBoard would hold back for up to two minutes, and lose if the process is killed."""
        self._tensorboard.flush()

    def close(self) -> None:
        self._tensorboard.close()


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except json.JSONDecodeError:  # the row that a run was writing when it was killed
        return math.inf


def _table_of(row: dict) -> str:
    return "metrics.csv" if "loss" in row else "evaluation.csv"


def _add_rows(path: Path, rows: list[dict]) -> None:
    """Appends rows to a CSV file; a new column has it written anew, with nothing there in the rows before."""
    if not rows:
        return
    with open(path, "a+", newline="") as file:
        file.seek(0)
        before = csv.DictReader(file)
        columns = list(before.fieldnames or [])
        new_columns = list(dict.fromkeys(name for row in rows for name in row if name not in columns))
        if new_columns:
            rows = [*before, *rows]
            file.truncate(0)
        file.seek(0, os.SEEK_END)
        writer = csv.DictWriter(file, columns + new_columns)
        if new_columns:
            writer.writeheader()
        writer.writerows(rows)


def environment() -> dict[str, str | int | None]:
    """Versions and hardware that a result may depend on."""
    cuda = torch.cuda.is_available()
    hardware: dict[str, str | int | None] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }
    return hardware | {
        name: version(name) for name in ("torch", "torchvision", "pycocotools", "numpy", "pillow", "yacs")
    }


def git_state(folder: Path) -> tuple[dict | None, bytes]:
    """What git knows of the code in a folder.

    Returns:
        state: ``{"commit": hash, "uncommitted": lines of git status}``; None where git is missing, or the folder
            is not part of a checkout, such as an installed package.
        diff: from the commit, of tracked files; empty if there is none, or one of more than LARGEST_DIFF bytes.
    """

    def git(*arguments: str) -> bytes:
        # Without locks: whoever works in the checkout meanwhile is not disturbed.
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", ".")  # fails for an environment inside of somebody's checkout, too
        commit = git("rev-parse", "HEAD").decode().strip()
        status = git("status", "--porcelain").decode(errors="replace").splitlines()
        diff = git("diff", "--no-ext-diff", "--no-color", "--binary", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None, b""
    return {"commit": commit, "uncommitted": status}, diff if len(diff) <= LARGEST_DIFF else b""
