"""Figures of refinement: a box on the landscape of the objective, reasons to stop, and photographs before and after."""

from pathlib import Path

import torch
from card_photos import photographs, refiner
from figure_style import AFTER, BEFORE, CONTEXT, LOOSE, TIGHT, new_figure, outline, photo, plain, save
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from iounet.boxes import box_offsets, elementwise_iou
from iounet.evaluation.landscape import landscape
from iounet.postprocess import RefinementOptions, Stop, refinement_path

ROW, OBJECT = 0, 1  # the photograph and the object of the landscape
START = (0.2, 0.3)  # offsets of the first box: moved by 0.2 widths, exp(0.3) = 1.35 times as wide


def draw(folder: Path) -> None:
    _draw_landscape(folder / "method_refinement_landscape.png")
    _draw_stops(folder / "method_refinement_stops.png")
    _draw_photographs(folder / "method_refinement_photos.png")


def _draw_landscape(path: Path) -> None:
    image, target = photographs()[ROW]
    truth, label = target["boxes"][OBJECT], int(target["labels"][OBJECT])
    seen = landscape(refiner().detector, image, truth, label, start=START)
    figure = new_figure(3.3)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    photo(left, image, seen.path[0], margin=0.12)
    for box in seen.path[1:-1:2]:
        outline(left, box, "white", width=1, alpha=0.7)
    outline(left, seen.path[0], LOOSE, width=2.2)
    outline(left, seen.path[-1], TIGHT, width=2.5)
    first, last = (float(elementwise_iou(seen.path[step], truth)) for step in (0, -1))
    left.set_title(f"true IoU {first:.2f} → {last:.2f}", fontsize=11)

    # The energy falls more steeply farther from its peak, so the spacing of the levels grows.
    levels = -(torch.linspace(1, 0, 17) ** 2) * float(-seen.energy.min())
    shades = colormaps["Blues"](torch.linspace(0, 0.85, 16))
    right.contourf(seen.moved, seen.widened, seen.energy, levels=levels, colors=shades)
    way = box_offsets(seen.path, truth)
    right.plot(way[:, 0], way[:, 2], color="black", marker=".", markersize=5, linewidth=1)
    right.plot(way[0, 0], way[0, 2], "o", color=BEFORE, markersize=9, markeredgecolor="black")
    right.plot(way[-1, 0], way[-1, 2], "o", color=AFTER, markersize=9, markeredgecolor="black")
    right.plot(0, 0, "+", color="white", markersize=11, markeredgewidth=2.2)
    right.annotate("start", way[0, [0, 2]], (8, 4), textcoords="offset points", fontsize=10)
    style = {"textcoords": "offset points", "fontsize": 10, "ha": "center"}
    right.annotate("annotated box", (0, 0), (-50, -65), arrowprops={"arrowstyle": "-", "color": CONTEXT}, **style)
    plain(right).set_title("energy of boxes around the card", fontsize=11)
    right.set_xlabel("box moved sideways (box widths)", fontsize=10)
    right.set_ylabel("width of the box / the object's", fontsize=10)
    right.set_yticks([-0.693, 0, 0.693], ["½", "1", "2"])
    save(figure, path, photographs=True)


def bell(boxes: Tensor) -> Tensor:
    """Return a smooth objective, which is 1 for boxes centred at x = 0 and falls on both sides."""
    centre = (boxes[:, 0] + boxes[:, 2]) / 2
    return torch.exp(-centre.square() / 2)


def _draw_stops(path: Path) -> None:
    too_long = 7.0
    backtracking = RefinementOptions(num_steps=2, step_size=too_long, step_policy="backtracking")
    panels = (
        ("early stop", "the gain is\ntoo small", RefinementOptions(num_steps=20, step_size=0.3, early_stop=0.01)),
        ("degeneration", "the value\nfell", RefinementOptions(num_steps=20, step_size=too_long)),
        ("backtracking", "taken back\nand halved", backtracking),
    )
    figure = new_figure(2.4)
    axes = figure.subplots(1, 3, sharey=True)
    for of, (title, remark, options) in zip(axes, panels, strict=True):
        plain(of).set_title(title, fontsize=11)
        of.text(-2.7, 1.0, remark, fontsize=9, ha="left", va="top", color=CONTEXT)
        of.set_xticks([])
        of.set_yticks([])
        of.set_xlabel("position of the box", fontsize=10)
        _draw_ascent(of, options)
    axes[0].set_ylabel("predicted IoU", fontsize=10)
    save(figure, path)


def _draw_ascent(axes: Axes, options: RefinementOptions) -> None:
    """Draw the steps of a box on the curve of its objective, including steps that are undone."""
    tried: list[Tensor] = []

    def watched(boxes: Tensor) -> Tensor:
        tried.append(boxes.detach().clone())
        return bell(boxes)

    start = torch.tensor([[-2.5, -1.0, -0.5, 1.0]])  # two pixels wide, centred at x = -1.5
    path = list(refinement_path(watched, start, options))
    x = torch.linspace(-2.6, 2.6, 200)
    axes.plot(x, torch.exp(-x.square() / 2), color=CONTEXT, linewidth=1.2)
    at = start
    for boxes in tried[1:]:
        is_taken = any(boxes.equal(step.boxes) for step in path)
        _draw_step(axes, at, boxes, is_taken)
        at = boxes if is_taken else at
    end = path[-1]
    axes.plot(_centre(start), bell(start), "o", color="black", markersize=7)
    axes.plot(
        _centre(end.boxes), end.values, "o", color=BEFORE if int(end.stops) == Stop.FELL else AFTER, markersize=10
    )


def _draw_step(axes: Axes, start: Tensor, end: Tensor, is_taken: bool) -> None:
    points = [(float(_centre(boxes)), float(bell(boxes))) for boxes in (start, end)]
    if not is_taken:
        axes.plot(*points[1], "o", markerfacecolor="white", markeredgecolor=BEFORE, markersize=8, zorder=3)
    colour, line = ("black", "-") if is_taken else (BEFORE, "--")
    if abs(points[0][0] - points[1][0]) < 0.3:
        axes.plot(*points[1], "o", color="black", markersize=4)
        return
    arrow = {"arrowstyle": "->", "color": colour, "linestyle": line, "linewidth": 1.2}
    axes.annotate("", points[1], points[0], arrowprops=arrow | {"connectionstyle": "arc3,rad=-0.4", "shrinkB": 4})


def _centre(boxes: Tensor) -> Tensor:
    return (boxes[:, 0] + boxes[:, 2]) / 2


def _draw_photographs(path: Path) -> None:
    """Draw the first box of each photograph in examples/photos/loose.json before and after refinement."""
    careful, loose = photographs(), photographs("loose.json")
    figure = new_figure(2.75)
    axes = figure.subplots(2, len(careful))
    for column in range(len(careful)):
        image, target = careful[column]
        truth, label = target["boxes"][0], target["labels"][:1]
        start = loose[column][1]["boxes"][0]
        (end,) = refiner().refine(image, start[None], label).boxes
        for of, box, line, colour in (
            (axes[0, column], start, LOOSE, BEFORE),
            (axes[1, column], end, TIGHT, AFTER),
        ):
            photo(of, image, truth, margin=0.22)
            outline(of, box, line, width=2)
            of.set_title(f"IoU {elementwise_iou(box, truth):.2f}", fontsize=10, color=colour, weight="bold", pad=3)
    for of, name in ((axes[0, 0], "loose"), (axes[1, 0], "refined")):
        of.text(-0.08, 0.5, name, transform=of.transAxes, ha="right", va="center", rotation=90, fontsize=11)
    save(figure, path, photographs=True)
