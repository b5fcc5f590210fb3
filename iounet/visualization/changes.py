"""Pictures of single boxes that refinement changed, and the choice of those that it changed most."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from operator import attrgetter, itemgetter
from typing import TypeVar

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image

from .crops import magnified, region_around
from .drawing import (
    AFTER,
    BEFORE,
    GROUND_TRUTH,
    PATH,
    check_image,
    contact_sheet,
    draw_box,
    draw_paths,
    legend,
    stacked,
    to_pil,
)
from .fonts import scalable_font

# Of the tiles of a changes sheet, in pixels. Four in a row are as wide as a page.
_TILE = 240
_GAP = 8
_INSET = (_TILE - _GAP) // 2
_TILE_LINE_WIDTH = 2


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
        check_image(self.image)
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
        ious: Tensor = box_iou(self.path, self.ground_truth[None])
        return ious[:, 0]

    @property
    def gain(self) -> float:
        """By how much the true IoU rose from the first to the last box; raises as :attr:`true_ious`."""
        true_ious = self.true_ious
        return float(true_ious[-1] - true_ious[0])


def draw_box_change(change: BoxChange) -> Image.Image:
    """A box before (dashed, orange) and after refinement (solid, green), magnified.

    Returns:
        An RGB tile on white, 240 pixels wide. From above: the box, which fills most of a square; its top left and
        its bottom right corner under a stronger magnification, with the path of each as an arrow; in words, the
        name, the predicted IoU before and after, and, where the ground truth (white) is known, the true IoU.
    """
    photo = to_pil(change.image)
    height, width = change.image.shape[1:]
    path = change.path.detach().float().cpu()
    truth = path[:0] if change.ground_truth is None else change.ground_truth.detach().float().cpu()[None]
    layers = [*((GROUND_TRUTH, box) for box in truth), (AFTER, path[-1]), (BEFORE, path[0])]

    # Only what lies inside the image is worth showing, and is small enough to be cut out of it.
    boxes = clip_boxes_to_image(torch.cat([path, truth]), (height, width))
    steps = boxes[: len(path)]
    whole = region_around(boxes.unflatten(1, (2, 2)).flatten(0, 1), margin=1.25)
    corners = []
    for corner in (slice(0, 2), slice(2, 4)):
        near = region_around(boxes[:, corner], margin=1.7)
        # Where the ground truth lies far off, a picture that holds it too would not show the path.
        corners.append(near if near.side < whole.side / 3 else region_around(steps[:, corner], margin=2))
    side = max(corner.side for corner in corners)  # for both, so that the two paths can be compared
    top_left, bottom_right = (corner._replace(side=side) for corner in corners)

    tile = Image.new("RGB", (_TILE, _TILE + _GAP + _INSET), "white")
    for region, size, position, coordinates in (
        (whole, _TILE, (0, 0), None),
        (top_left, _INSET, (0, _TILE + _GAP), slice(0, 2)),
        (bottom_right, _INSET, (_INSET + _GAP, _TILE + _GAP), slice(2, 4)),
    ):
        view = magnified(photo, region, size)
        scale = size / region.side
        start = torch.tensor([region.left, region.top])
        for style, box in layers:
            draw_box(ImageDraw.Draw(view), ((box - start.repeat(2)) * scale).tolist(), style, _TILE_LINE_WIDTH)
        if coordinates is not None:
            draw_paths(view, [((path[:, coordinates] - start) * scale).tolist()], _TILE_LINE_WIDTH)
        tile.paste(view, position)
    return stacked([tile, _caption(change)])


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
    font = scalable_font(14)
    width = max(part.width for part in parts)
    parts.append(legend(width, [BEFORE, AFTER, GROUND_TRUTH, PATH], font, _TILE_LINE_WIDTH))
    return stacked(parts)


def _caption(change: BoxChange) -> Image.Image:
    font, name_font = scalable_font(14), scalable_font(14, change.name)
    rows = [("predicted IoU", change.predicted_ious.detach())]
    if change.ground_truth is not None:
        rows.append(("true IoU", change.true_ious.detach()))
    height = 20
    caption = Image.new("RGB", (_TILE, height * (len(rows) + 1) + 4), "white")
    draw = ImageDraw.Draw(caption)
    name = change.name
    while name_font.getlength(name) > _TILE:
        name = name.removesuffix("…")[:-1] + "…"
    draw.text((0, height / 2 + 4), name, fill="black", font=name_font, anchor="lm")
    for number, (label, ious) in enumerate(rows, start=1):
        y = number * height + height / 2 + 4
        first, last = float(ious[0]), float(ious[-1])
        draw.text((0, y), label, fill=(90, 90, 90), font=font, anchor="lm")
        draw.text((_TILE - 55, y), f"{first:.2f} → {last:.2f}", fill="black", font=font, anchor="rm")
        draw.text((_TILE, y), f"{last - first:+.2f}", fill="black", font=font, anchor="rm")
    return caption


def _title(text: str) -> Image.Image:
    font = scalable_font(20)
    title = Image.new("RGB", (_GAP + math.ceil(font.getlength(text)) + _GAP, 36), "white")
    ImageDraw.Draw(title).text((_GAP, 22), text, fill="black", font=font, anchor="lm")
    return title
