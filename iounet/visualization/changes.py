"""Draw single boxes before and after refinement, and choose the boxes that changed most."""

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

# Sizes of the tiles of a changes sheet, in pixels. A row of four is as wide as a page.
_TILE = 240
_GAP = 8
_INSET = (_TILE - _GAP) // 2
_TILE_LINE_WIDTH = 2


@dataclass(frozen=True)
class BoxChange:
    """The refinement of one box, to be drawn.

    Attributes:
        image: RGB [3, H, W], uint8, or float in [0, 1].
        path: float [T + 1, 4], the box after 0 to T steps, xyxy in pixels of `image`.
        predicted_ious: float [T + 1], the predicted IoU after each step.
        ground_truth: float [4], the ground-truth box, if known.
        name: First line of the caption, such as the class and the file.

    Raises:
        ValueError: A shape is not as above.
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
        """IoU of each box of the path with the ground truth, float [T + 1].

        Raises:
            ValueError: There is no ground truth.
        """
        if self.ground_truth is None:
            raise ValueError(f"the box '{self.name}' has no ground truth, so its true IoU is unknown; leave it out")
        ious: Tensor = box_iou(self.path, self.ground_truth[None])
        return ious[:, 0]

    @property
    def gain(self) -> float:
        """Rise of the true IoU from the first to the last box.

        Raises:
            ValueError: There is no ground truth.
        """
        true_ious = self.true_ious
        return float(true_ious[-1] - true_ious[0])


def draw_box_change(change: BoxChange) -> Image.Image:
    """Draw a magnified box before (dashed, orange) and after refinement (solid, green).

    Returns:
        An RGB tile on white, 240 pixels wide. From top to bottom, it shows the box, which fills most of a square; its
        top left and bottom right corners at a higher magnification, with their paths as arrows; and a caption with
        the name, the predicted IoU before and after, and the true IoU if the ground truth (white) is known.
    """
    photo = to_pil(change.image)
    height, width = change.image.shape[1:]
    path = change.path.detach().float().cpu()
    truth = path[:0] if change.ground_truth is None else change.ground_truth.detach().float().cpu()[None]
    layers = [*((GROUND_TRUTH, box) for box in truth), (AFTER, path[-1]), (BEFORE, path[0])]

    # Show only what lies inside the image. A box that reaches far outside would need a huge crop.
    boxes = clip_boxes_to_image(torch.cat([path, truth]), (height, width))
    steps = boxes[: len(path)]
    whole = region_around(boxes.unflatten(1, (2, 2)).flatten(0, 1), margin=1.25)
    corners = []
    for corner in (slice(0, 2), slice(2, 4)):
        near = region_around(boxes[:, corner], margin=1.7)
        # If the ground truth is far away, a picture that includes it would not show the path.
        corners.append(near if near.side < whole.side / 3 else region_around(steps[:, corner], margin=2))
    side = max(corner.side for corner in corners)  # the same for both corners, so that their paths can be compared
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
    """Return the boxes whose true IoU rose most, followed by those whose true IoU fell most, largest changes first.

    Args:
        changes: May be a generator. Only the images of the returned boxes are kept in memory.
        num_boxes: Maximum number of boxes that gained, and of boxes that lost. Boxes with an unchanged IoU are skipped.
        gain: Returns the gain of a change. The default is `BoxChange.gain`.

    Raises:
        ValueError: A box has no ground truth, or `num_boxes` is less than 1.
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
    """Draw the tiles of `most_changed`: a titled row of boxes that gained and one of boxes that lost."""
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
