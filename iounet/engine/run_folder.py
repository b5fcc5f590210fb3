"""The folder of a training run: everything needed to understand and repeat the run."""

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

HISTOGRAM_EDGES = [edge / 50 for edge in range(51)]  # TensorBoard's default bins are 10 % of the value wide, too coarse
LARGEST_DIFF = 1 << 20  # bytes; larger than the hand-written changes between two commits


class RunFolder:
    """Writer of config.yaml, environment.json, git.diff, metrics and TensorBoard logs.

    metrics.json has one JSON object per line, for training and evaluations. metrics.csv has the rows of training
    and evaluation.csv those of evaluations, with one column per value. git.diff is written if the code differs from its
    commit. A resumed run writes environment_ITERATION.json and git_ITERATION.diff in addition to the original files.

    Args:
        path: the folder; created if needed.
        config: YAML text of the resolved configuration.
        start_iteration: number of iterations already done; rows of later iterations, left by a killed run, are removed.

    Attributes:
        evaluated: the iterations whose evaluation has been logged.

    Raises:
        ConfigError: if no files can be written in the folder.
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
        # A new run purges as well: the folder may have logs of a run that was killed before its first checkpoint.
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
        """Append a row to metrics.json and to the CSV file, and each value to TensorBoard under its name."""
        row = {"iteration": iteration} | values
        with open(self._metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
        _add_rows(self.path / _table_of(row), [row])
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, iteration)

    def log_evaluation(self, iteration: int, summary: dict, candidates: dict[str, Tensor]) -> None:
        """Log the table, the correlations, the pictures of the report in this folder, and histograms.

        Args:
            summary: the summary returned by `iounet.evaluation.write_report`.
            candidates: name → Tensor[N] of values between 0 and 1, one per candidate.
        """
        groups = summary["table"] | {"correlation": summary["correlation"]}
        values = {f"{group}/{name}": value for group, columns in groups.items() for name, value in columns.items()}
        self.log(iteration, {name: value for name, value in values.items() if value is not None})
        for name in ("boxes", "changes", "correlation"):
            with Image.open(self.path / f"{name}.png") as picture:
                self._tensorboard.add_image(name, pil_to_tensor(picture.convert("RGB")), iteration)
        for name, ious in candidates.items():
            # Clamped, because a regressed IoU may slightly exceed 1. TensorBoard refuses empty histograms.
            if len(ious):
                self._tensorboard.add_histogram(f"candidates/{name}", ious.clamp(0, 1), iteration, HISTOGRAM_EDGES)
        self.evaluated.add(iteration)
        self.flush()

    def flush(self) -> None:
        """Flush TensorBoard, which buffers for up to two minutes and loses the buffer if the process is killed."""
        self._tensorboard.flush()

    def close(self) -> None:
        self._tensorboard.close()


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except json.JSONDecodeError:  # a row that was cut off when the run was killed
        return math.inf


def _table_of(row: dict) -> str:
    return "metrics.csv" if "loss" in row else "evaluation.csv"


def _add_rows(path: Path, rows: list[dict]) -> None:
    """Append rows to a CSV file; for a new column, rewrite the file with empty cells in earlier rows."""
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
    """Return the versions and the hardware that a result may depend on."""
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
    """Return the commit and the uncommitted changes of the code in a folder.

    Returns:
        state: ``{"commit": hash, "uncommitted": lines of git status}``; None if git is missing or the folder is not
            part of a checkout, as in an installed package.
        diff: diff of tracked files against the commit; empty if there are no changes, or more than LARGEST_DIFF bytes.
    """

    def git(*arguments: str) -> bytes:
        # Without locks, so that git commands of the user in the same checkout do not fail.
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", ".")  # also fails if the environment is inside another project's checkout
        commit = git("rev-parse", "HEAD").decode().strip()
        status = git("status", "--porcelain").decode(errors="replace").splitlines()
        diff = git("diff", "--no-ext-diff", "--no-color", "--binary", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None, b""
    return {"commit": commit, "uncommitted": status}, diff if len(diff) <= LARGEST_DIFF else b""
