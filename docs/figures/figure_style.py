"""Colours, sizes and file format shared by the figures of the method pages."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

WIDTH = 7.0  # inches; the site shows a figure about 700 pixels wide, so 10 points stay readable
DPI = 170
PALETTE_SIZE = 160  # colours of a figure with photographs

BEFORE = "#e8820c"  # orange: a loose box, or the method that IoU-Net replaces
AFTER = "#12944a"  # green: a refined box, or IoU-Net
DATA = "#2369a8"  # blue: values and candidates
CONTEXT = "#8a8a8a"  # grey: axes, curves and remarks
LOOSE = "#ff9614"  # the lighter orange and green of the project's pictures, for lines on photographs
TIGHT = "#28e66e"


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of this height and width in inches. Its white background stays readable on a dark page."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def plain(axes: Axes) -> Axes:
    """Remove the upper and right side of the frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return axes


def photo(axes: Axes, image: Tensor, around: Tensor | None = None, margin: float = 0.25) -> None:
    """Show an image [3, H, W] without axes; with a box ``around`` [4], only a square around the box."""
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="bilinear")
    axes.set_axis_off()
    if around is None:
        return
    x1, y1, x2, y2 = around.tolist()
    height, width = image.shape[1:]
    side = min((1 + 2 * margin) * max(x2 - x1, y2 - y1), height, width)
    left = min(max((x1 + x2 - side) / 2, 0), width - side)
    top = min(max((y1 + y2 - side) / 2, 0), height - side)
    axes.set_xlim(left - 0.5, left + side - 0.5)
    axes.set_ylim(top + side - 0.5, top - 0.5)


def outline(axes: Axes, box: Tensor, colour: str, *, width: float = 2, line: str = "-", alpha: float = 1) -> None:
    """Draw a box [4]. A wide line gets a dark halo, which makes it visible on a light photograph."""
    # imshow puts the centre of a pixel, not its corner, at whole coordinates.
    x1, y1, x2, y2 = (box - 0.5).tolist()
    halo = [(width + 1.2, "black", 0.5 * alpha)] if width >= 1 else []
    for line_width, line_colour, strength in (*halo, (width, colour, alpha)):
        style = {"linewidth": line_width, "edgecolor": line_colour, "alpha": strength, "linestyle": line}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))


def save(figure: Figure, path: Path, *, photographs: bool = False, exact: Sequence[str] = ()) -> None:
    """Write a PNG file.

    A figure with photographs is reduced to a palette to keep the file small. The colours of this module and those in
    ``exact`` are kept, so that lines and texts have the same colours in all figures.
    """
    figure.savefig(path, facecolor="white", bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
    if not photographs:
        return
    with Image.open(path) as picture:
        pixels = picture.convert("RGB")
    reduced = pixels.quantize(PALETTE_SIZE, method=Image.Quantize.MEDIANCUT)
    palette, indices = (reduced.getpalette() or [])[: 3 * PALETTE_SIZE], np.array(reduced)
    for colour in (BEFORE, AFTER, LOOSE, TIGHT, "#ffffff", "#000000", *exact):
        indices[(np.asarray(pixels) == _rgb(colour)).all(-1)] = len(palette) // 3
        palette += _rgb(colour)
    result = Image.fromarray(indices, "P")
    result.putpalette(palette)
    result.save(path, optimize=True)


def _rgb(colour: str) -> list[int]:
    return list(bytes.fromhex(colour.removeprefix("#")))
