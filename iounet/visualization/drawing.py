"""Draw outlines, arrows, texts and legends, and arrange pictures on sheets."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

DARK = (40, 40, 40)

_Rectangle = tuple[float, float, float, float]  # xyxy, pixels of the enlarged picture


class _Style(NamedTuple):
    name: str
    colour: tuple[int, int, int]
    line: str  # "solid", "dashed" or "arrow"


# Dashed and solid lines, for readers who cannot distinguish orange from green.
GROUND_TRUTH = _Style("ground truth", (255, 255, 255), "solid")
BEFORE = _Style("before", (255, 150, 20), "dashed")
AFTER = _Style("after", (40, 230, 110), "solid")
PATH = _Style("path of two corners", (80, 205, 255), "arrow")


def check_image(image: Tensor) -> None:
    """Raise ValueError unless the image has the shape [3, H, W]."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an RGB image of shape [3, H, W], got {list(image.shape)}")


def to_pil(image: Tensor) -> Image.Image:
    """Convert an RGB image [3, H, W], uint8 or float in [0, 1], to PIL."""
    if image.is_floating_point():
        image = (image.detach() * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float], style: _Style, line_width: int) -> None:
    """Draw an outline centred on the edges of a box, with a dark halo that makes it visible on light pictures."""
    x1, y1, x2, y2 = box
    dash = 4 * line_width if style.line == "dashed" else math.inf
    strokes = [(start, y, end, y) for start, end in _dashes(x1, x2, dash) for y in (y1, y2)]
    strokes += [(x, start, x, end) for start, end in _dashes(y1, y2, dash) for x in (x1, x2)]
    # Draw the whole halo first, so that it does not cover coloured strokes of the same box.
    for reach, colour in ((line_width / 2 + 1, "black"), (line_width / 2, style.colour)):
        for left, top, right, bottom in strokes:
            # PIL includes the row and the column of the last corner.
            corners = (left - reach, top - reach, right + reach - 1, bottom + reach - 1)
            draw.rectangle([round(corner) for corner in corners], fill=colour)


def _dashes(start: float, end: float, dash: float) -> list[tuple[float, float]]:
    """Return evenly spaced intervals. The first starts at `start` and the last ends at `end`."""
    length = end - start
    if math.isinf(dash) or length <= 0:
        return [(start, end)]
    dash = min(dash, length / 3)  # at least two dashes and a gap, even on the smallest box
    count = round((length / dash + 1) / 2)
    pitch = (length - dash) / (count - 1)
    return [(start + i * pitch, start + i * pitch + dash) for i in range(count)]


def draw_paths(picture: Image.Image, paths: Iterable[Sequence[Sequence[float]]], line_width: float) -> None:
    """Draw thin arrows with a dark halo along polylines of (x, y). Paths too short for a visible head are skipped."""
    fine = 4  # draw at this scale and reduce, because PIL does not anti-alias lines
    size = (picture.width * fine, picture.height * fine)
    halo, ink = Image.new("L", size), Image.new("L", size)
    for path in paths:
        points = [(x * fine, y * fine) for x, y in path]
        if math.dist(points[0], points[-1]) < 2 * line_width * fine:
            continue
        for layer, width in ((halo, line_width + 2), (ink, line_width)):
            _draw_arrow(ImageDraw.Draw(layer), points, round(width * fine), 5 * line_width * fine)
    for layer, colour in ((halo, "black"), (ink, PATH.colour)):
        picture.paste(colour, (0, 0), layer.reduce(fine))


def _draw_arrow(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], width: int, head: float) -> None:
    tip = points[-1]
    head = min(head, math.dist(points[0], tip))
    # The last steps may be tiny and point anywhere, so take the direction from a point at least a head's length away.
    base = [point for point in points if math.dist(point, tip) >= head]
    tail = base[-1]
    angle = math.atan2(tip[1] - tail[1], tip[0] - tail[0])
    barbs = [(tip[0] - head * math.cos(angle + turn), tip[1] - head * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
    neck = ((barbs[0][0] + barbs[1][0]) / 2, (barbs[0][1] + barbs[1][1]) / 2)
    draw.line([*points[: points.index(tail) + 1], neck], fill=255, width=width, joint="curve")
    draw.polygon([tip, *barbs], fill=255)
    draw.line([tip, *barbs, tip], fill=255, width=width // 2, joint="curve")


def draw_texts(
    draw: ImageDraw.ImageDraw,
    picture_size: tuple[int, int],
    boxes: list[list[float]],
    texts: list[str],
    font: ImageFont.FreeTypeFont,
    line_width: int,
) -> None:
    """Write each text beside its box, inside the picture. A text that would cover an earlier one is left out."""
    halo = max(1, round(font.size / 8))
    taken: list[_Rectangle] = []
    for (x1, y1, x2, y2), text in zip(boxes, texts, strict=True):
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font, stroke_width=halo)
        width, height = right - left, bottom - top
        above, below = y1 - height - line_width, y2 + line_width
        spots = [(x1, above), (x1, below), (x2 + line_width, y1), (x1 + line_width, y1 + line_width)]
        spots += [(x2 - width, above), (x2 - width, below), (x1 - line_width - width, y1)]
        for x, y in spots:
            x = max(0, min(x, picture_size[0] - width))
            y = max(0, min(y, picture_size[1] - height))
            spot = (x, y, x + width, y + height)
            if not any(_overlap(spot, other) for other in taken):
                taken.append(spot)
                draw.text((x - left, y - top), text, fill="white", font=font, stroke_width=halo, stroke_fill="black")
                break


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def legend(width: int, styles: list[_Style], font: ImageFont.FreeTypeFont, line_width: int) -> Image.Image:
    """Draw a strip with a sample of each line, in rows that fit `width`, or wider if a single sample needs it."""
    em = round(font.size)
    sample, gap, row_height = 3 * em, em // 2, 2 * em
    widths = [2 * gap + sample + math.ceil(font.getlength(style.name)) for style in styles]
    positions: list[tuple[float, float]] = []
    left, top = 0, 0
    for entry_width in widths:
        if left > 0 and left + entry_width + gap > width:
            left, top = 0, top + row_height
        positions.append((left + gap, top + row_height / 2))
        left += entry_width + gap
    strip = Image.new("RGB", (max(width, max(widths) + gap), top + row_height), DARK)
    draw = ImageDraw.Draw(strip)
    for (x, y), style in zip(positions, styles, strict=True):
        if style.line == "arrow":
            draw_paths(strip, [[(x, y), (x + sample, y)]], line_width)
        else:
            draw_box(draw, (x, y, x + sample, y), style, line_width)
        draw.text((x + sample + gap, y), style.name, fill="white", font=font, anchor="lm")
    return strip


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """Stack pictures vertically on white, aligned at the left."""
    stack = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        stack.paste(picture, (0, top))
        top += picture.height
    return stack


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange pictures on white, in rows of `columns`. Each picture is centred in its cell.

    Raises:
        ValueError: There are no pictures, or fewer than one column.
    """
    if not pictures or columns < 1:
        raise ValueError(f"expected at least 1 picture and 1 column, got {len(pictures)} and {columns}")
    gap = 8
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    widths = [max(picture.width for picture in pictures[column::columns]) for column in range(len(rows[0]))]
    heights = [max(picture.height for picture in row) for row in rows]
    size = (sum(widths) + gap * (len(widths) + 1), sum(heights) + gap * (len(heights) + 1))
    sheet = Image.new("RGB", size, "white")
    top = gap
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for picture, width in zip(row, widths, strict=False):  # the last row may be shorter
            sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
            left += width + gap
        top += height + gap
    return sheet
