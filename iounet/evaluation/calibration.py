"""Measure how well the predicted IoU agrees with the true IoU, and calibrate it."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .figures import new_figure

# Minimum number of boxes to fit a calibration on.
MIN_BOXES = 100


@dataclass(frozen=True)
class Calibration:
    """Calibration of boxes that are divided into G groups by predicted IoU.

    Attributes:
        error: Expected calibration error in [0, 1], where 0 is perfect: the mean, over all boxes, of the distance
            between the mean predicted IoU and the mean true IoU of a box's group. NaN without boxes.
        bias: Mean predicted IoU minus mean true IoU. If positive, the predictions are too high.
        counts: int [G], the number of boxes in each group.
        predicted: float [G], the mean predicted IoU of each group, 0 for an empty group.
        true: float [G], the mean true IoU of each group, 0 for an empty group.
    """

    error: float
    bias: float
    counts: Tensor
    predicted: Tensor
    true: Tensor


def measure_calibration(predicted_ious: Tensor, ious: Tensor, *, num_groups: int = 10) -> Calibration:
    """Measure the calibration of predicted IoUs, grouped into equal ranges of [0, 1].

    Args:
        predicted_ious: float [N], predicted IoUs. Those outside [0, 1] count in the first or last group.
        ious: float [N], true IoUs.
        num_groups: Number of groups, G.
    """
    group = (predicted_ious * num_groups).long().clamp(0, num_groups - 1)
    counts = torch.bincount(group, minlength=num_groups)

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(group, values.double(), num_groups) / counts.clamp(min=1)

    predicted, true = mean(predicted_ious), mean(ious)
    bias = (predicted_ious.double() - ious).mean().item()
    error = ((predicted - true).abs() * counts).sum() / counts.sum()
    return Calibration(error.item(), bias, counts, predicted, true)


def calibrations_of(predicted_ious: Tensor, ious: Tensor) -> dict[str, Calibration]:
    """Measure the calibration of all candidates, and of those whose true IoU is at least 0.5."""
    matched = ious >= 0.5
    return {
        "all candidates": measure_calibration(predicted_ious, ious),
        "candidates of true IoU ≥ 0.5": measure_calibration(predicted_ious[matched], ious[matched]),
    }


def calibration_summary(calibrations: dict[str, Calibration]) -> dict[str, dict[str, float]]:
    """Return the error, bias and number of boxes of each calibration."""
    return {
        name: {"error": calibration.error, "bias": calibration.bias, "num_boxes": int(calibration.counts.sum())}
        for name, calibration in calibrations.items()
    }


def fit_calibration(outputs: Tensor, ious: Tensor) -> Tensor | None:
    """Fit Platt scaling of the IoU head's output, for `iounet.modeling.IoUHead.calibration`.

    Minimises the binary cross-entropy between `sigmoid(slope * output + offset)` and the true IoU (Platt,
    "Probabilistic Outputs for Support Vector Machines", 1999, with IoUs instead of classes). Two numbers cannot overfit
    a validation set. They keep the order of the predictions, whereas isotonic regression would create ties for NMS.

    Args:
        outputs: float [N], outputs of the IoU head's last layer.
        ious: float [N], true IoUs in [0, 1].

    Returns:
        float [2], the slope, which is positive, and the offset; None for fewer than `MIN_BOXES` boxes.
    """
    if len(outputs) < MIN_BOXES:
        return None
    outputs, ious = outputs.double(), ious.double()
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # logarithm of the slope, offset
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            logits = parameters[0].exp() * outputs + parameters[1]
            value = F.binary_cross_entropy_with_logits(logits, ious)
            value.backward()
        return value

    optimizer.step(loss)
    log_slope, offset = parameters.detach()
    return torch.stack([log_slope.exp(), offset]).float()


def calibration_figure(calibrations: dict[str, Calibration], path: Path) -> None:
    """Plot each group's mean true IoU against its mean predicted IoU, and its number of boxes below, to a PNG file."""
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
