"""How well a predicted IoU agrees with the true one, and what makes it agree."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .figures import new_figure

# Fewer boxes tell little about how predictions err.
MIN_BOXES = 100


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


def measure_calibration(predicted_ious: Tensor, ious: Tensor, *, num_groups: int = 10) -> Calibration:
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


def calibrations_of(predicted_ious: Tensor, ious: Tensor) -> dict[str, Calibration]:
    """Of all candidates, and of those of a true IoU of 0.5 at least."""
    matched = ious >= 0.5
    return {
        "all candidates": measure_calibration(predicted_ious, ious),
        "candidates of true IoU ≥ 0.5": measure_calibration(predicted_ious[matched], ious[matched]),
    }


def calibration_summary(calibrations: dict[str, Calibration]) -> dict[str, dict[str, float]]:
    """Error, bias and number of boxes of each."""
    return {
        name: {"error": of.error, "bias": of.bias, "num_boxes": int(of.counts.sum())}
        for name, of in calibrations.items()
    }


def fit_calibration(outputs: Tensor, ious: Tensor) -> Tensor | None:
    """Platt scaling of the IoU head's output: what :attr:`iounet.modeling.IoUHead.calibration` holds.

    Platt, "Probabilistic Outputs for Support Vector Machines", 1999, with IoUs in the place of classes: minimises the
    binary cross-entropy of ``sigmoid(slope * output + offset)`` and the true IoU. Two numbers cannot overfit a
    validation set, and keep the order of the predictions, where isotonic regression would make ties for NMS to break.

    Args:
        outputs (Tensor[N]): of the last layer.
        ious (Tensor[N]): true, in [0, 1].

    Returns:
        Tensor[2]: slope, which is positive, and offset; None for fewer than MIN_BOXES boxes.
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
