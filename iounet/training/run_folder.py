"""The folder of a training run: everything needed to see what happened and to do it again."""

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms.v2.functional import pil_to_tensor


class RunFolder:
    """Writes config.yaml, environment.json, metrics.json (one JSON object a line) and TensorBoard logs.

    Args:
        path: made if it is not there.
        config: YAML text of the resolved configuration.
        start_iteration: iterations done before; rows of later ones, left by a run that was killed, are removed.
    """

    def __init__(self, path: Path, config: str, *, start_iteration: int = 0):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.yaml").write_text(config)
        (path / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
        self._metrics = path / "metrics.json"
        rows = self._metrics.read_text().splitlines() if self._metrics.exists() and start_iteration else []
        kept = [row for row in rows if _iteration(row) <= start_iteration]
        self._metrics.write_text("".join(f"{row}\n" for row in kept))
        purge_step = start_iteration + 1 if start_iteration else None
        self._tensorboard = SummaryWriter(path / "tensorboard", purge_step=purge_step)

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Appends a row to metrics.json, and each value to TensorBoard under its name."""
        with open(self._metrics, "a") as file:
            file.write(json.dumps({"iteration": iteration} | values) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, iteration)

    def log_evaluation(self, iteration: int, summary: dict) -> None:
        """Logs the table and the correlations, and the pictures of the report that lies in this folder.

        Args:
            summary: as :func:`iounet.evaluation.write_report` returns it.
        """
        groups = summary["table"] | {"correlation": summary["correlation"]}
        values = {f"{group}/{name}": value for group, columns in groups.items() for name, value in columns.items()}
        self.log(iteration, {name: value for name, value in values.items() if value is not None})
        for name in ("boxes", "correlation"):
            with Image.open(self.path / f"{name}.png") as picture:
                self._tensorboard.add_image(name, pil_to_tensor(picture.convert("RGB")), iteration)

    def close(self) -> None:
        self._tensorboard.close()


def _iteration(row: str) -> float:
    try:
        return json.loads(row)["iteration"]
    except json.JSONDecodeError:  # the row that a run was writing when it was killed
        return math.inf


def environment() -> dict[str, str | int | None]:
    """Versions and hardware that a result may depend on."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "gpu": torch.cuda.get_device_name() if cuda else None,
    } | {name: version(name) for name in ("torch", "torchvision", "pycocotools", "numpy", "pillow", "yacs")}
