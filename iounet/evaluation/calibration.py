"""How far a predicted IoU can be taken at its word."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .figures import new_figure


@dataclass(frozen=True)
class Calibration:
    """Boxes grouped by their predicted IoU.

    Attributes:
        error: expected calibration error: the mean, over all boxes, of the distance between the mean predicted and the
            mean true IoU of a box's group; in [0, 1], 0 is perfect. NaN without boxes.
        bias: mean predicted less mean true IoU; above 0 the predictions are too high.
        counts, predicted, true (Tensor[G]): of each group its number of boxes and the means; 0 for one without boxes.
    """

    error: float
    bias: float
    counts: Tensor
    predicted: Tensor
    true: Tensor


def calibrate(predicted_ious: Tensor, ious: Tensor, *, num_groups: int = 10) -> Calibration:
    """Groups boxes into equal ranges of the predicted IoU over [0, 1]; predictions beyond count in the last.

    Args:
        predicted_ious (Tensor[N]), ious (Tensor[N]): predicted, and true.
    """
    group = (predicted_ious * num_groups).long().clamp(0, num_groups - 1)
    counts = torch.bincount(group, minlength=num_groups)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(group, values.double(), num_groups) / counts.clamp(min=1)

    predicted, true = mean(predicted_ious), mean(ious)
    difference = (predicted_ious.double() - ious).mean().item()
    error = ((predicted - true).abs() * counts).sum() / counts.sum()
    return Calibration(error.item(), difference, counts, predicted, true)


def calibration_figure(calibrations: dict[str, Calibration], path: Path) -> None:
    """Draws mean true against mean predicted IoU of each group, and below it how many boxes there are; a PNG file."""
    figure, canvas = new_figure((5, 5))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color="black", linewidth=1, linestyle="--", label="perfect")
    for name, calibration in calibrations.items():
        present = calibration.counts > 0
        label = f"{name}: error {calibration.error:.3f}"
        upper.plot(calibration.predicted[present], calibration.true[present], marker="o", label=label)
        num_groups = len(calibration.counts)
        middles = (torch.arange(num_groups) + 0.5) / num_groups
        lower.step(middles, calibration.counts, where="mid", label=name)
    upper.set_ylabel("mean true IoU")
    upper.legend(loc="upper left", fontsize="small")
    lower.set_ylabel("boxes")
    lower.set_xlabel("predicted IoU")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    canvas.print_png(path)
