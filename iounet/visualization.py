"""Pictures of boxes before and after refinement."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from operator import attrgetter, itemgetter
from typing import NamedTuple, TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image

# Smaller pictures are enlarged: on them, lines and text would hide the boxes they mark.
_MIN_SIDE = 640

# Boxes move by a pixel or two, of which an arrow would be a dot: it gets so many pixels of the picture a pixel.
_ARROW_SCALE = 8

# Of the tiles of a changes sheet, in pixels. Four in a row are as wide as a page.
_TILE = 240
_GAP = 8
_INSET = (_TILE - _GAP) // 2
_TILE_LINE_WIDTH = 2
_MIN_REGION = 4  # pixels of the image; narrower, and nothing of the picture would be recognised around a corner

_DARK = (40, 40, 40)

_Rectangle = tuple[float, float, float, float]  # xyxy, pixels of the enlarged picture


class _Style(NamedTuple):
    name: str
    colour: tuple[int, int, int]
    line: str  # "solid", "dashed" or "arrow"


# Dashed and solid, for readers to whom orange and green look alike.
_GROUND_TRUTH = _Style("ground truth", (255, 255, 255), "solid")
_BEFORE = _Style("before", (255, 150, 20), "dashed")
_AFTER = _Style("after", (40, 230, 110), "solid")
_PATH = _Style("path of two corners", (80, 205, 255), "arrow")


@dataclass(frozen=True)
class BoxChange:
    """One box on its way through refinement, for a picture of it.

    Attributes:
        image: RGB [3, H, W], uint8, or float in [0, 1].
        path: float [T + 1, 4], the box after 0 to T steps, xyxy in pixels of ``image``.
        predicted_ious: float [T + 1], the predicted IoU of each.
        ground_truth: float [4], the object's own box.
        name: what is written first, such as the class and the file.

    Raises:
        ValueError: a shape is not as above.
    """

    image: Tensor
    path: Tensor
    predicted_ious: Tensor
    ground_truth: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        _check_image(self.image)
        if self.path.ndim != 2 or not len(self.path) or self.path.shape[1] != 4:
            raise ValueError(f"expected path of shape [T + 1, 4], got {list(self.path.shape)}")
        for name, values, shape in (
            ("predicted_ious", self.predicted_ious, [len(self.path)]),
            ("ground_truth", self.ground_truth, [4]),
        ):
            if values is not None and list(values.shape) != shape:
                raise ValueError(f"expected {name} of shape {shape}, got {list(values.shape)}")

    @property
    def true_ious(self) -> Tensor:
        """float [T + 1], the IoU of each box of the path with the ground truth, which is needed (ValueError)."""
        if self.ground_truth is None:
            raise ValueError(f"the box '{self.name}' has no ground truth, so nobody knows its IoU; leave it out")
        return box_iou(self.path, self.ground_truth[None])[:, 0]

    @property
    def gain(self) -> float:
        """By how much the true IoU rose from the first to the last box; raises as :attr:`true_ious`."""
        true_ious = self.true_ious
        return float(true_ious[-1] - true_ious[0])


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
    paths: Tensor | None = None,
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
        paths: float [T + 1, N, 4], the boxes after 0 to T steps. The path of each box's top right and bottom left
            corner (which hold all four coordinates) is drawn as an arrow from where it began, lengthened to at
            least 8 pixels of the picture a pixel of ``image``; the legend says how many times. A path too short for
            an arrow has none.

    Returns:
        An RGB picture: above a legend, the image, enlarged by a whole factor if its longer side is below 640
        pixels. The arguments are left as they were.

    Raises:
        ValueError: a shape is not as above.
    """
    _check_shapes(image, before, after, ground_truth, labels, before_ious, after_ious, paths)
    before, after = _near(before, image), _near(after, image)
    ground_truth = None if ground_truth is None else _near(ground_truth, image)
    paths = None if paths is None else _near(paths, image)
    factor = max(1, math.ceil(_MIN_SIDE / max(image.shape[1:])))
    photo = _to_pil(image)
    photo = photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.BICUBIC)
    line_width = max(2, round(max(photo.size) / 320))
    font = ImageFont.load_default(size=max(14, max(photo.size) // 45))

    # The dashes go on top: where a box stayed in place, its green shows between them.
    layers = [(_AFTER, after), (_BEFORE, before)]
    if ground_truth is not None:
        layers.insert(0, (_GROUND_TRUTH, ground_truth))
    styles = [style for style, _ in reversed(layers)]
    draw = ImageDraw.Draw(photo)
    for style, boxes in layers:
        for box in (boxes * factor).tolist():
            _draw_box(draw, box, style, line_width)
    if paths is not None:
        times = math.ceil(_ARROW_SCALE / factor)
        # Not the top left corner: the texts stand there.
        corners = (paths * factor)[..., [[2, 1], [0, 3]]].flatten(1, 2).transpose(0, 1)  # [2 N, T + 1, xy]
        _draw_paths(photo, (corners[:, :1] + times * (corners - corners[:, :1])).tolist(), line_width)
        styles.append(_PATH if times == 1 else _PATH._replace(name=f"{_PATH.name}, {times} times as long"))
    texts = _texts(len(after), labels, class_names, before_ious, after_ious)
    _draw_texts(draw, photo.size, (after * factor).tolist(), texts, font, line_width)

    legend = _legend(photo.width, styles, font, line_width)
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


def draw_box_change(change: BoxChange) -> Image.Image:
    """A box before (dashed, orange) and after refinement (solid, green), magnified.

    Returns:
        An RGB tile on white, 240 pixels wide. From above: the box, which fills most of a square; its top left and
        its bottom right corner under a stronger magnification, with the path of each as an arrow; in words, the
        name, the predicted IoU before and after, and, where the ground truth (white) is known, the true IoU.
    """
    photo = _to_pil(change.image)
    height, width = change.image.shape[1:]
    path = change.path.detach().float().cpu()
    truth = path[:0] if change.ground_truth is None else change.ground_truth.detach().float().cpu()[None]
    layers = [*((_GROUND_TRUTH, box) for box in truth), (_AFTER, path[-1]), (_BEFORE, path[0])]

    # Only what lies inside the image is worth showing, and is small enough to be cut out of it.
    boxes = clip_boxes_to_image(torch.cat([path, truth]), (height, width))
    steps = boxes[: len(path)]
    whole = _region(boxes.unflatten(1, (2, 2)).flatten(0, 1), margin=1.25)
    corners = []
    for corner in (slice(0, 2), slice(2, 4)):
        near = _region(boxes[:, corner], margin=1.7)
        # Where the ground truth lies far off, a picture that holds it too would not show the path.
        corners.append(near if near.side < whole.side / 3 else _region(steps[:, corner], margin=2))
    side = max(corner.side for corner in corners)  # for both, so that the two paths can be compared
    top_left, bottom_right = (corner._replace(side=side) for corner in corners)

    tile = Image.new("RGB", (_TILE, _TILE + _GAP + _INSET), "white")
    for region, size, place, corner in (
        (whole, _TILE, (0, 0), None),
        (top_left, _INSET, (0, _TILE + _GAP), slice(0, 2)),
        (bottom_right, _INSET, (_INSET + _GAP, _TILE + _GAP), slice(2, 4)),
    ):
        view = _magnified(photo, region, size)
        scale = size / region.side
        start = torch.tensor([region.left, region.top])
        for style, box in layers:
            _draw_box(ImageDraw.Draw(view), ((box - start.repeat(2)) * scale).tolist(), style, _TILE_LINE_WIDTH)
        if corner is not None:
            _draw_paths(view, [((path[:, corner] - start) * scale).tolist()], _TILE_LINE_WIDTH)
        tile.paste(view, place)
    return _stacked([tile, _caption(change)])


Change = TypeVar("Change")


def most_changed(
    changes: Iterable[Change], num_boxes: int = 4, *, gain: Callable[[Change], float] = attrgetter("gain")
) -> list[Change]:
    """The boxes whose true IoU refinement raised most and those whose it lowered most, the greatest changes first.

    Args:
        changes: may be a generator: no more than those returned, with their images, are kept.
        num_boxes: at most so many that gained, and so many that lost; a box whose IoU stayed is neither.
        gain: of a change; by default that of a :class:`BoxChange`.

    Raises:
        ValueError: a box has no ground truth; ``num_boxes`` is below 1.
    """
    if num_boxes < 1:
        raise ValueError(f"expected num_boxes of at least 1, got {num_boxes}")
    gained: list[tuple[float, Change]] = []
    lost: list[tuple[float, Change]] = []
    for change in changes:
        by = gain(change)
        if by > 0:
            gained = nlargest(num_boxes, [*gained, (by, change)], key=itemgetter(0))
        elif by < 0:
            lost = nsmallest(num_boxes, [*lost, (by, change)], key=itemgetter(0))
    return [change for _, change in (*gained, *lost)]


def changes_sheet(changes: Iterable[BoxChange], num_boxes: int = 4) -> Image.Image:
    """Tiles of :func:`most_changed`, in a titled row for those that gained and one for those that lost."""
    changed = most_changed(changes, num_boxes)
    parts = []
    for title, row in (
        ("Gained most", [change for change in changed if change.gain > 0]),
        ("Lost most", [change for change in changed if change.gain < 0]),
    ):
        parts.append(_title(title if row else f"{title}: no box"))
        if row:
            parts.append(contact_sheet([draw_box_change(change) for change in row], columns=len(row)))
    font = ImageFont.load_default(size=14)
    width = max(part.width for part in parts)
    parts.append(_legend(width, [_BEFORE, _AFTER, _GROUND_TRUTH, _PATH], font, _TILE_LINE_WIDTH))
    return _stacked(parts)


def _check_shapes(
    image: Tensor,
    before: Tensor,
    after: Tensor,
    ground_truth: Tensor | None,
    labels: Tensor | None,
    before_ious: Tensor | None,
    after_ious: Tensor | None,
    paths: Tensor | None,
) -> None:
    _check_image(image)
    for name, boxes in {"before": before, "after": after, "ground_truth": ground_truth}.items():
        if boxes is not None and (boxes.ndim != 2 or boxes.shape[1] != 4):
            raise ValueError(f"expected {name} of shape [N, 4], got {list(boxes.shape)}")
    per_box = {"after": after, "labels": labels, "before_ious": before_ious, "after_ious": after_ious}
    for name, values in per_box.items():
        if values is not None and len(values) != len(before):
            raise ValueError(f"{name} has {len(values)} entries for the {len(before)} boxes of before")
    if paths is not None and (paths.ndim != 3 or not len(paths) or paths.shape[1:] != before.shape):
        raise ValueError(f"expected paths of shape [T + 1, {len(before)}, 4], got {list(paths.shape)}")


def _check_image(image: Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an RGB image of shape [3, H, W], got {list(image.shape)}")


def _near(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes [..., 4] cut off an image's size away from it: drawing a box takes as long as it is wide."""
    reach = boxes.new_tensor(image.shape[:0:-1]).repeat(2)
    return boxes.detach().clamp(-reach, 2 * reach)


def _to_pil(image: Tensor) -> Image.Image:
    if image.is_floating_point():
        image = (image.detach() * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def _draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float], style: _Style, line_width: int) -> None:
    """An outline centred on the box's edges, with a dark halo that sets it off from a light picture."""
    x1, y1, x2, y2 = box
    dash = 4 * line_width if style.line == "dashed" else math.inf
    strokes = [(start, y, end, y) for start, end in _dashes(x1, x2, dash) for y in (y1, y2)]
    strokes += [(x, start, x, end) for start, end in _dashes(y1, y2, dash) for x in (x1, x2)]
    # All of the halo first, so that it darkens no colour of the same box.
    for reach, colour in ((line_width / 2 + 1, "black"), (line_width / 2, style.colour)):
        for left, top, right, bottom in strokes:
            # PIL also fills the row and the column of the last corner.
            corners = (left - reach, top - reach, right + reach - 1, bottom + reach - 1)
            draw.rectangle([round(corner) for corner in corners], fill=colour)


def _draw_paths(picture: Image.Image, paths: list[list[list[float]]], line_width: float) -> None:
    """Thin arrows along polylines of (x, y), with a dark halo; none where a path is too short for a head to be seen."""
    fine = 4  # drawn so much larger and reduced: PIL's own slanted lines are jagged
    size = (picture.width * fine, picture.height * fine)
    halo, ink = Image.new("L", size), Image.new("L", size)
    for path in paths:
        points = [(x * fine, y * fine) for x, y in path]
        if math.dist(points[0], points[-1]) < 2 * line_width * fine:
            continue
        for layer, width in ((halo, line_width + 2), (ink, line_width)):
            _draw_arrow(ImageDraw.Draw(layer), points, round(width * fine), 5 * line_width * fine)
    for layer, colour in ((halo, "black"), (ink, _PATH.colour)):
        picture.paste(colour, (0, 0), layer.reduce(fine))


def _draw_arrow(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], width: int, head: float) -> None:
    tip = points[-1]
    head = min(head, math.dist(points[0], tip))
    # Steeply falling steps end in a huddle of points whose last direction says nothing of the way.
    base = [point for point in points if math.dist(point, tip) >= head]
    tail = base[-1]
    angle = math.atan2(tip[1] - tail[1], tip[0] - tail[0])
    barbs = [(tip[0] - head * math.cos(angle + turn), tip[1] - head * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
    neck = ((barbs[0][0] + barbs[1][0]) / 2, (barbs[0][1] + barbs[1][1]) / 2)
    draw.line([*points[: points.index(tail) + 1], neck], fill=255, width=width, joint="curve")
    draw.polygon([tip, *barbs], fill=255)
    draw.line([tip, *barbs, tip], fill=255, width=width // 2, joint="curve")


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


class _Region(NamedTuple):
    """A square of an image, in its pixels."""

    x: float  # of its middle
    y: float
    side: float

    @property
    def left(self) -> float:
        return self.x - self.side / 2

    @property
    def top(self) -> float:
        return self.y - self.side / 2


def _region(points: Tensor, margin: float) -> _Region:
    """Around points [K, 2], ``margin`` times as wide as they need."""
    low, high = points.amin(0), points.amax(0)
    x, y = ((low + high) / 2).tolist()
    return _Region(x, y, max(_MIN_REGION, margin * float((high - low).max())))


def _magnified(photo: Image.Image, region: _Region, size: int) -> Image.Image:
    """The region as a picture of ``size`` times ``size`` pixels, dark grey beyond the photo."""
    around = 2  # pixels, for the interpolation at the edges
    left, top = math.floor(region.left) - around, math.floor(region.top) - around
    crop_side = math.ceil(region.side) + 1 + 2 * around
    crop = Image.new("RGB", (crop_side, crop_side), _DARK)
    crop.paste(photo, (-left, -top))
    x, y = region.left - left, region.top - top
    return crop.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + region.side, y + region.side))


def _caption(change: BoxChange) -> Image.Image:
    font = ImageFont.load_default(size=14)
    rows = [("predicted IoU", change.predicted_ious.detach())]
    if change.ground_truth is not None:
        rows.append(("true IoU", change.true_ious.detach()))
    height = 20
    caption = Image.new("RGB", (_TILE, height * (len(rows) + 1) + 4), "white")
    draw = ImageDraw.Draw(caption)
    name = change.name
    while font.getlength(name) > _TILE:
        name = name.removesuffix("…")[:-1] + "…"
    draw.text((0, height / 2 + 4), name, fill="black", font=font, anchor="lm")
    for number, (label, ious) in enumerate(rows, start=1):
        y = number * height + height / 2 + 4
        first, last = float(ious[0]), float(ious[-1])
        draw.text((0, y), label, fill=(90, 90, 90), font=font, anchor="lm")
        draw.text((_TILE - 55, y), f"{first:.2f} » {last:.2f}", fill="black", font=font, anchor="rm")
        draw.text((_TILE, y), f"{last - first:+.2f}", fill="black", font=font, anchor="rm")
    return caption


def _title(text: str) -> Image.Image:
    font = ImageFont.load_default(size=20)
    title = Image.new("RGB", (_GAP + math.ceil(font.getlength(text)) + _GAP, 36), "white")
    ImageDraw.Draw(title).text((_GAP, 22), text, fill="black", font=font, anchor="lm")
    return title


def _stacked(pictures: list[Image.Image]) -> Image.Image:
    """One below the other, at the left, on white."""
    stack = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        stack.paste(picture, (0, top))
        top += picture.height
    return stack


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
    strip = Image.new("RGB", (max(width, max(widths) + gap), y + row_height), _DARK)
    draw = ImageDraw.Draw(strip)
    for (x, y), style in zip(places, styles, strict=True):
        if style.line == "arrow":
            _draw_paths(strip, [[(x, y), (x + sample, y)]], line_width)
        else:
            _draw_box(draw, (x, y, x + sample, y), style, line_width)
        draw.text((x + sample + gap, y), style.name, fill="white", font=font, anchor="lm")
    return strip
