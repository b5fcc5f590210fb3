"""Correlation of class score and predicted IoU with the true IoU (arXiv 1807.11590, Figure 2)."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor

from .figures import new_figure

# More points would hide one another without changing the shape of the cloud.
_MAX_DRAWN = 5000


def pearson(x: Tensor | Sequence[float], y: Tensor | Sequence[float]) -> float:
    """Return Pearson's correlation coefficient of two samples of equal length, in [-1, 1].

    NaN if it is undefined: for fewer than two points, or if all `x` or all `y` are equal.

    Raises:
        ValueError: The samples are not 1-d, or differ in length.
    """
    x, y = (torch.as_tensor(values, dtype=torch.float64, device="cpu") for values in (x, y))
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"expected samples of shape [N], [N]; got {list(x.shape)}, {list(y.shape)}")
    # Test before centring, because rounding can give a centred constant sample a tiny variance.
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y / (x.norm() * y.norm())).clamp(-1, 1))


def correlation_figure(
    ious: Tensor, scores: Tensor, predicted_ious: Tensor, path: str | Path, *, min_iou: float = 0.5
) -> dict[str, float]:
    """Plot the paper's Figure 2: class score and predicted IoU against the true IoU.

    Use the detections before NMS. Few badly placed boxes survive NMS, which leaves little to correlate.

    Args:
        ious: float [N], true IoUs, as returned by `iounet.boxes.best_iou`.
        scores: float [N], class scores.
        predicted_ious: float [N], predicted IoUs.
        path: The PNG file to write, 1200 × 600 pixels. Its folder must exist.
        min_iou: Boxes with a smaller true IoU are left out of the figure and of the returned numbers. The paper uses
            0.5.

    Returns:
        `score` and `predicted_iou`, the correlation (see `pearson`) of each with the true IoU, and `num_boxes`. They
            cover all boxes, even if the figure shows a sample.
    """
    ious, scores, predicted_ious = (values.detach().cpu() for values in (ious, scores, predicted_ious))
    kept = ious >= min_iou
    ious, scores, predicted_ious = ious[kept], scores[kept], predicted_ious[kept]
    correlations = {"score": pearson(ious, scores), "predicted_iou": pearson(ious, predicted_ious)}

    figure, canvas = new_figure((8, 4))
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    drawn = torch.randperm(len(ious), generator=torch.Generator().manual_seed(0))[:_MAX_DRAWN]
    _scatter(left, ious[drawn], scores[drawn], "class score", correlations["score"])
    _scatter(right, ious[drawn], predicted_ious[drawn], "predicted IoU", correlations["predicted_iou"])
    right.plot((min_iou, 1), (min_iou, 1), color="black", linewidth=1, linestyle="--", label="perfect prediction")
    right.legend(loc="lower right", fontsize="small")
    # Show the whole range of both axes, so that figures of different runs can be compared.
    left.update_datalim([(min_iou, 0), (1, 1)])
    left.autoscale_view()
    canvas.print_png(path)
    return correlations | {"num_boxes": len(ious)}


def _scatter(axes: Axes, ious: Tensor, values: Tensor, name: str, correlation: float) -> None:
    # Draw few points darker, so that a small data set does not look empty.
    alpha = min(0.8, max(0.15, 300 / max(1, len(ious))))
    axes.margins(0.02)
    axes.scatter(ious.numpy(), values.numpy(), s=9, alpha=alpha, color="tab:blue", edgecolors="none")
    axes.set_title(f"{name}: " + ("r undefined" if math.isnan(correlation) else f"Pearson r = {correlation:.3f}"))
    axes.set_xlabel("IoU with the ground truth")
    axes.set_ylabel(name)
    axes.grid(alpha=0.25)
