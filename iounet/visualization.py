"""Pictures of boxes before and after refinement."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Smaller pictures are enlarged: on them, lines and text would hide the boxes they mark.
_MIN_SIDE = 640

_Rectangle = tuple[float, float, float, float]  # xyxy, pixels of the enlarged picture


class _Style(NamedTuple):
    name: str
    colour: tuple[int, int, int]
    dashed: bool


# Dashed and solid, for readers to whom orange and green look alike.
_GROUND_TRUTH = _Style("ground truth", (255, 255, 255), dashed=False)
_BEFORE = _Style("before", (255, 150, 20), dashed=True)
_AFTER = _Style("after", (40, 230, 110), dashed=False)


def draw_refinement(
    image: Tensor,
    before: Tensor,
    after: Tensor,
    ground_truth: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    before_ious: Tensor | None = None,
    after_ious: Tensor | None = None,
) -> Image.Image:
    """Boxes before (dashed, orange) and after refinement (solid, green), each with its predicted IoUs.

    Args:
        image: RGB [3, H, W], uint8, or float in [0, 1].
        before: float [N, 4], xyxy in pixels of ``image``.
        after: float [N, 4], the same boxes, in the same order.
        ground_truth: float [M, 4], drawn in white.
        labels: int [N], written by name where there are ``class_names``, else as numbers.
        class_names: the name of each label, ``class_names[label]``.
        before_ious: float [N], the predicted IoUs of ``before``.
        after_ious: float [N], the predicted IoUs of ``after``.

    Returns:
        An RGB picture: above a legend, the image, enlarged by a whole factor if its longer side is below 640
        pixels. The arguments are left as they were.

    Raises:
        ValueError: a shape is not as above.
    """
    _check_shapes(image, before, after, ground_truth, labels, before_ious, after_ious)
    factor = max(1, math.ceil(_MIN_SIDE / max(image.shape[1:])))
    photo = _to_pil(image)
    photo = photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.BICUBIC)
    line_width = max(2, round(max(photo.size) / 320))
    font = ImageFont.load_default(size=max(14, max(photo.size) // 45))

    # The dashes go on top: where a box stayed in place, its green shows between them.
    layers = [(_AFTER, after), (_BEFORE, before)]
    if ground_truth is not None:
        layers.insert(0, (_GROUND_TRUTH, ground_truth))
    draw = ImageDraw.Draw(photo)
    for style, boxes in layers:
        for box in (boxes.detach() * factor).tolist():
            _draw_box(draw, box, style, line_width)
    texts = _texts(len(after), labels, class_names, before_ious, after_ious)
    _draw_texts(draw, photo.size, (after.detach() * factor).tolist(), texts, font, line_width)

    legend = _legend(photo.width, [style for style, _ in reversed(layers)], font, line_width)
    picture = Image.new("RGB", (legend.width, photo.height + legend.height))
    picture.paste(photo, (0, 0))
    picture.paste(legend, (0, photo.height))
    return picture


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows of ``columns``, centred on white; each row as high, each column as wide as it needs.

    Raises:
        ValueError: there are no pictures, or fewer than one column.
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


def _check_shapes(
    image: Tensor,
    before: Tensor,
    after: Tensor,
    ground_truth: Tensor | None,
    labels: Tensor | None,
    before_ious: Tensor | None,
    after_ious: Tensor | None,
) -> None:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an RGB image of shape [3, H, W], got {list(image.shape)}")
    for name, boxes in {"before": before, "after": after, "ground_truth": ground_truth}.items():
        if boxes is not None and (boxes.ndim != 2 or boxes.shape[1] != 4):
            raise ValueError(f"expected {name} of shape [N, 4], got {list(boxes.shape)}")
    per_box = {"after": after, "labels": labels, "before_ious": before_ious, "after_ious": after_ious}
    for name, values in per_box.items():
        if values is not None and len(values) != len(before):
            raise ValueError(f"{name} has {len(values)} entries for the {len(before)} boxes of before")


def _to_pil(image: Tensor) -> Image.Image:
    if image.is_floating_point():
        image = (image.detach() * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def _draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float], style: _Style, line_width: int) -> None:
    """An outline centred on the box's edges, with a dark halo that sets it off from a light picture."""
    x1, y1, x2, y2 = box
    dash = 4 * line_width if style.dashed else math.inf
    strokes = [(start, y, end, y) for start, end in _dashes(x1, x2, dash) for y in (y1, y2)]
    strokes += [(x, start, x, end) for start, end in _dashes(y1, y2, dash) for x in (x1, x2)]
    # All of the halo first, so that it darkens no colour of the same box.
    for reach, colour in ((line_width / 2 + 1, "black"), (line_width / 2, style.colour)):
        for left, top, right, bottom in strokes:
            # PIL also fills the row and the column of the last corner.
            corners = (left - reach, top - reach, right + reach - 1, bottom + reach - 1)
            draw.rectangle([round(corner) for corner in corners], fill=colour)


def _dashes(start: float, end: float, dash: float) -> list[tuple[float, float]]:
    """Evenly spaced intervals, of which the first begins at ``start`` and the last stops at ``end``."""
    length = end - start
    if math.isinf(dash) or length <= 0:
        return [(start, end)]
    dash = min(dash, length / 3)  # at least two dashes and a gap, also on the smallest box
    count = round((length / dash + 1) / 2)
    pitch = (length - dash) / (count - 1)
    return [(start + i * pitch, start + i * pitch + dash) for i in range(count)]


def _texts(
    count: int,
    labels: Tensor | None,
    class_names: Sequence[str] | Mapping[int, str] | None,
    before_ious: Tensor | None,
    after_ious: Tensor | None,
) -> list[str]:
    names = [""] * count
    if labels is not None:
        names = [str(label) if class_names is None else class_names[label] for label in labels.tolist()]
    ious = [[f"{iou:.2f}" for iou in values.tolist()] for values in (before_ious, after_ious) if values is not None]
    # Pillow's own font has no arrow.
    changes = [" » ".join(change) for change in zip(*ious, strict=True)] or [""] * count
    return [f"{name} {change}".strip() for name, change in zip(names, changes, strict=True)]


def _draw_texts(
    draw: ImageDraw.ImageDraw,
    picture_size: tuple[int, int],
    boxes: list[list[float]],
    texts: list[str],
    font: ImageFont.FreeTypeFont,
    line_width: int,
) -> None:
    """Writes each text beside its box, inside the picture, where it hides least of the texts before it."""
    halo = max(1, round(font.size / 8))
    taken: list[_Rectangle] = []
    for (x1, y1, x2, y2), text in zip(boxes, texts, strict=True):
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font, stroke_width=halo)
        width, height = right - left, bottom - top
        above, below = (x1, y1 - height - line_width), (x1, y2 + line_width)
        beside, inside = (x2 + line_width, y1), (x1 + line_width, y1 + line_width)
        places = []
        for x, y in (above, below, beside, inside):
            x = max(0, min(x, picture_size[0] - width))
            y = max(0, min(y, picture_size[1] - height))
            places.append((x, y, x + width, y + height))
        place = min(places, key=lambda place: sum(_intersection(place, other) for other in taken))
        taken.append(place)
        origin = (place[0] - left, place[1] - top)
        draw.text(origin, text, fill="white", font=font, stroke_width=halo, stroke_fill="black")


def _intersection(a: _Rectangle, b: _Rectangle) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _legend(width: int, styles: list[_Style], font: ImageFont.FreeTypeFont, line_width: int) -> Image.Image:
    """A strip with a sample of each line, in rows that fit ``width``; wider only if one sample is."""
    em = round(font.size)
    sample, gap, row_height = 3 * em, em // 2, 2 * em
    widths = [2 * gap + sample + math.ceil(font.getlength(style.name)) for style in styles]
    places, x, y = [], 0, 0
    for entry_width in widths:
        if x > 0 and x + entry_width + gap > width:
            x, y = 0, y + row_height
        places.append((x + gap, y + row_height / 2))
        x += entry_width + gap
    strip = Image.new("RGB", (max(width, max(widths) + gap), y + row_height), (40, 40, 40))
    draw = ImageDraw.Draw(strip)
    for (x, y), style in zip(places, styles, strict=True):
        _draw_box(draw, (x, y, x + sample, y), style, line_width)
        draw.text((x + sample + gap, y), style.name, fill="white", font=font, anchor="lm")
    return strip
