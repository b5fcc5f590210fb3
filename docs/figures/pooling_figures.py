"""Figures of what RoIPool, RoIAlign and PrRoI pooling read in a bin, and of their values as a box edge moves."""

from collections.abc import Callable
from pathlib import Path

import torch
from figure_style import AFTER, BEFORE, CONTEXT, DATA, new_figure, plain, save
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from prroi_pool import prroi_pool2d

BIN = (1.4, 1.45, 4.6, 3.4)  # xyxy on the feature map
MAP_HEIGHT, MAP_WIDTH = 5, 7
EDGES = torch.linspace(3, 9, 1201)  # positions of the right edge of the sliding RoI


def draw(folder: Path) -> None:
    _draw_bin(folder / "method_pooling_bin.png")
    _draw_sliding_edge(folder / "method_pooling_edge.png")


def _draw_bin(path: Path) -> None:
    figure = new_figure(2.3)
    axes = figure.subplots(1, 3)
    x1, y1, x2, y2 = BIN
    for of, title in zip(axes, ("RoIPool: whole pixels", "RoIAlign: four points", "PrRoI: the whole bin"), strict=True):
        _pixels(of)
        of.set_title(title, fontsize=11)
        of.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="black", linewidth=1.8, zorder=4))
    # Like roi_pool, round the corners and include the last pixel.
    left, top, right, bottom = (round(corner) for corner in BIN)
    for column in range(left, right + 1):
        for row in range(top, bottom + 1):
            axes[0].plot(column, row, "o", color=BEFORE, markersize=9, zorder=3)
    rounded = {"edgecolor": BEFORE, "linewidth": 1.5, "linestyle": "--", "zorder": 3}
    axes[0].add_patch(Rectangle((left - 0.4, top - 0.4), right - left + 0.8, bottom - top + 0.8, fill=False, **rounded))
    for x in (0.25, 0.75):
        for y in (0.25, 0.75):
            axes[1].plot(x1 + x * (x2 - x1), y1 + y * (y2 - y1), "X", color=BEFORE, markersize=9, zorder=3)
    axes[2].add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, color=AFTER, alpha=0.55, zorder=3))
    save(figure, path)


def _pixels(axes: Axes) -> None:
    rows, columns = torch.meshgrid(torch.arange(MAP_HEIGHT), torch.arange(MAP_WIDTH), indexing="ij")
    axes.plot(columns.flatten(), rows.flatten(), "o", color="#c9c9c9", markersize=4, zorder=2)
    axes.set_xlim(-0.6, MAP_WIDTH - 0.4)
    axes.set_ylim(MAP_HEIGHT - 0.4, -0.6)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#d0d0d0")


def pooled_values() -> dict[str, tuple[Tensor, Tensor]]:
    """Return operator → (values of a bin with its right edge at EDGES, derivatives with respect to that edge)."""
    generator = torch.Generator().manual_seed(8)
    row = torch.linspace(0, 1, 12, dtype=torch.float64) + 0.5 * torch.rand(12, generator=generator, dtype=torch.float64)
    features = row.expand(1, 1, 6, 12).contiguous()
    rois = torch.zeros(len(EDGES), 5, dtype=torch.float64)
    rois[:, 1], rois[:, 2], rois[:, 3], rois[:, 4] = 1.0, 1.0, EDGES, 4.0
    operators: dict[str, Callable[[Tensor], Tensor]] = {
        "RoIPool": lambda rois: roi_pool(features, rois, 1, 1.0),
        "RoIAlign": lambda rois: roi_align(features, rois, 1, 1.0, sampling_ratio=2),
        "PrRoI": lambda rois: prroi_pool2d(features, rois, 1, 1, 1.0),
    }
    curves = {}
    for name, operator in operators.items():
        values = operator(rois).flatten()
        slopes = torch.gradient(values, spacing=(EDGES.double(),))[0]
        # At a step, where no derivative exists, interrupt the curve.
        curves[name] = (values, slopes.masked_fill(slopes.abs() > 0.5, torch.nan))
    exact = rois.requires_grad_()
    (gradient,) = torch.autograd.grad(operators["PrRoI"](exact).sum(), exact)
    curves["PrRoI"] = (curves["PrRoI"][0], gradient[:, 3])
    return curves


def _draw_sliding_edge(path: Path) -> None:
    figure = new_figure(3.5)
    axes = figure.subplots(2, 3, sharex=True, height_ratios=(1.1, 1))
    remarks = {"RoIPool": "steps", "RoIAlign": "kinks", "PrRoI": "smooth"}
    for column, (name, (values, slopes)) in enumerate(pooled_values().items()):
        colour = AFTER if name == "PrRoI" else BEFORE
        upper, lower = axes[:, column]
        upper.set_title(f"{name}: {remarks[name]}", fontsize=11)
        upper.plot(EDGES, values, color=colour, linewidth=2)
        upper.set_ylim(0.2, 1.45)
        lower.axhline(0, color=CONTEXT, linewidth=0.7)
        lower.plot(EDGES, slopes, color=colour, linewidth=1.6)
        lower.set_ylim(-0.33, 0.33)
        lower.set_xlabel("right edge of the box (pixels)", fontsize=9)
        for of in (upper, lower):
            plain(of)
            of.set_xticks(range(3, 10))
            of.grid(axis="x", color="#e4e4e4", linewidth=0.8)
            of.tick_params(left=column == 0, labelleft=column == 0)
    axes[0, 0].set_ylabel("pooled value", fontsize=10)
    axes[1, 0].set_ylabel("derivative", fontsize=10)
    axes[1, 0].text(6, 0.25, "0 almost everywhere", fontsize=9, ha="center", color=DATA)
    axes[1, 1].text(6, 0.25, "jumps", fontsize=9, ha="center", color=DATA)
    axes[1, 2].text(6, 0.25, "continuous", fontsize=9, ha="center", color=DATA)
    save(figure, path)
